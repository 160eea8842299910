"""Recipe ``mri-prior``: the complex denoiser behind MRI reconstruction, trained on simulated brain slices only.

Data: random planes through the label maps of ``anatomy.TRAIN`` with random contrast, texture, bias field and phase
(``simulate.slices``), cut into patches. Loss: EDM denoising score matching. Every step draws its data and noise from a
generator seeded by (seed, step), so a run that was stopped and resumed sees what an unbroken run would have seen.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from model_zoo.denoisers import Denoiser, training_loss
from model_zoo.networks.local_unet import LocalUNet
from model_zoo.simulate import anatomy
from model_zoo.simulate.slices import random_slice

__all__ = [
    "CONFIGURATIONS",
    "SIGMA_DATA",
    "Configuration",
    "ema_weights",
    "make_denoiser",
    "patches",
    "train",
    "validate",
]

SIGMA_DATA = 0.27
"""Standard deviation of one component of the training slices (99th percentile of the magnitude at 1)."""

VALIDATION_SIGMAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Configuration:
    """What defines a run: together with the data and the machine it determines the weights."""

    channels: tuple[int, ...]
    blocks: int
    steps: int
    batch: int
    patch: int
    learning_rate: float
    seed: int = 2026
    warmup: int = 200
    ema: float = 0.998
    patches_per_slice: int = 4
    log_sigma_mean: float = -1.8
    log_sigma_sd: float = 1.6
    checkpoint_every: int = 250


CONFIGURATIONS: dict[str, Configuration] = {
    "cpu": Configuration((64, 128, 192), blocks=2, steps=8000, batch=16, patch=96, learning_rate=8e-4),
    "gpu": Configuration((96, 160, 224), blocks=3, steps=40000, batch=64, patch=128, learning_rate=6e-4, ema=0.9995),
    "smoke": Configuration(
        (16, 32), blocks=1, steps=6, batch=4, patch=48, learning_rate=1e-3, warmup=2, checkpoint_every=3
    ),
}


def make_denoiser(configuration: Configuration) -> Denoiser:
    """The untrained denoiser of a configuration, initialised from its seed."""
    torch.manual_seed(configuration.seed)
    network = LocalUNet(channels=configuration.channels, blocks=configuration.blocks)
    return Denoiser(network, SIGMA_DATA, network.stride)


def patches(
    subjects: tuple[str, ...], count: int, c: Configuration, generator: torch.Generator, data: Path | None = None
) -> Tensor:
    """``count`` random patches (count, 2, patch, patch) from simulated slices of ``subjects``, flipped and turned.

    ``data``: the data kit's folder, by default ``anatomy.data_root()``.
    """
    found: list[Tensor] = []
    while len(found) < count:
        subject = subjects[int(torch.randint(len(subjects), (1,), generator=generator))]
        x = random_slice(anatomy.tissue_map(subject, data), generator)
        short = [max(0, c.patch - n) for n in x.shape]
        x = torch.nn.functional.pad(x, (0, short[1], 0, short[0]))
        for _ in range(min(c.patches_per_slice, count - len(found))):
            found.append(_patch(x, c.patch, generator))
    return torch.stack(found)


def _patch(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """One patch (2, size, size), drawn up to five times until it holds more than a little tissue."""
    for _ in range(5):
        j, i = (int(torch.randint(n - size + 1, (1,), generator=generator)) for n in x.shape)
        piece = x[j : j + size, i : i + size]
        if float((piece.abs() > 0.05).float().mean()) > 0.15:
            break
    turns = int(torch.randint(4, (1,), generator=generator))
    piece = torch.rot90(piece, turns)
    if float(torch.rand(1, generator=generator)) < 0.5:
        piece = piece.flip(0).conj()
    return torch.stack([piece.real, piece.imag])


def _generator(*key: int) -> torch.Generator:
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part + 1) % (2**63 - 1)
    return torch.Generator().manual_seed(seed)


def _learning_rate(c: Configuration, step: int) -> float:
    """Linear warm-up, then a half cosine to zero."""
    if step < c.warmup:
        return c.learning_rate * (step + 1) / c.warmup
    return c.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - c.warmup) / max(1, c.steps - c.warmup)))


def train(
    c: Configuration,
    out: Path,
    *,
    data: Path | None = None,
    device: str = "cpu",
    resume: bool = False,
    report: Callable[[dict[str, float]], None],
) -> Path:
    """Train to ``c.steps`` and return the path of the last checkpoint.

    Writes ``checkpoint.pt`` (network, average, optimiser, step; tensors and numbers only, read back with
    ``weights_only``) and ``log.jsonl``. ``report`` gets each log line. Raises FileExistsError when ``out`` holds a run
    already and ``resume`` is not asked for, ValueError when the run there has another configuration.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.pt"
    D = make_denoiser(c)
    D.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # unknown to torch's stubs
    optimiser = torch.optim.AdamW(D.network.parameters(), lr=c.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    average = {name: p.detach().clone() for name, p in D.network.named_parameters()}
    first = _restore(checkpoint, c, D, optimiser, average, device, resume)
    began, window = time.monotonic(), []
    for step in range(first, c.steps):
        window.append(_step(D, optimiser, average, c, step, device, data))
        if (step + 1) % c.checkpoint_every == 0 or step + 1 == c.steps:
            per_step = (time.monotonic() - began) / (step + 1 - first)
            line = {"step": step + 1, "loss": sum(window) / len(window), "seconds_per_step": per_step}
            line |= validate(D, average, c, device, data)
            _save(checkpoint, c, D, optimiser, average, step + 1)
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            report(line)
            window = []
    return checkpoint


def _step(
    D: Denoiser,
    optimiser: torch.optim.Optimizer,
    average: dict[str, Tensor],
    c: Configuration,
    step: int,
    device: str,
    data: Path | None,
) -> float:
    generator = _generator(c.seed, step)
    x0 = patches(anatomy.TRAIN, c.batch, c, generator, data).to(device)
    sigma = (torch.randn(c.batch, generator=generator) * c.log_sigma_sd + c.log_sigma_mean).exp()
    sigma = sigma.clamp(D.sigma_min, D.sigma_max).to(device)
    noise = torch.randn(x0.shape, generator=generator).to(device)
    for group in optimiser.param_groups:
        group["lr"] = _learning_rate(c, step)
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        loss = training_loss(D, x0, sigma, noise).mean()
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(D.network.parameters(), 1.0)
    optimiser.step()
    decay = min(c.ema, (step + 1) / (step + 10))
    with torch.no_grad():
        for name, p in D.network.named_parameters():
            average[name].lerp_(p, 1 - decay)
    return float(loss.detach())


def validate(
    D: Denoiser, average: dict[str, Tensor], c: Configuration, device: str, data: Path | None = None
) -> dict[str, float]:
    """Denoising PSNR in dB (peak 1) of the averaged weights on patches of ``anatomy.VALIDATION``, by noise level."""
    generator = _generator(c.seed, 10**9)
    x0 = patches(anatomy.VALIDATION, 16, c, generator, data).to(device)
    noise = torch.randn(x0.shape, generator=generator).to(device)
    training = {name: p.detach().clone() for name, p in D.network.named_parameters()}
    D.network.load_state_dict(average, strict=True)
    found: dict[str, float] = {}
    with torch.no_grad(), torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        for sigma in VALIDATION_SIGMAS:
            level = torch.full((len(x0),), sigma, device=device)
            error = D.denoise_channels(x0 + sigma * noise, level) - x0
            found[f"psnr_{sigma}"] = -10 * math.log10(2 * float(error.square().mean()))
    D.network.load_state_dict(training, strict=True)
    return found


def _save(
    path: Path, c: Configuration, D: Denoiser, optimiser: torch.optim.Optimizer, average: dict[str, Tensor], step: int
) -> None:
    content = {
        "configuration": json.dumps(asdict(c)),
        "network": D.network.state_dict(),
        "average": average,
        "optimiser": optimiser.state_dict(),
        "step": step,
    }
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    temporary.replace(path)


def _restore(
    path: Path,
    c: Configuration,
    D: Denoiser,
    optimiser: torch.optim.Optimizer,
    average: dict[str, Tensor],
    device: str,
    resume: bool,
) -> int:
    """Load ``path`` into the arguments and return its step; 0 when there is nothing to resume."""
    if not path.exists():
        return 0
    if not resume:
        raise FileExistsError(f"{path} holds a run already: resume it or choose another folder")
    content = torch.load(path, map_location=device, weights_only=True)
    if content["configuration"] != json.dumps(asdict(c)):
        raise ValueError(f"{path} was trained with another configuration: {content['configuration']}")
    D.network.load_state_dict(content["network"])
    optimiser.load_state_dict(content["optimiser"])
    for name, value in content["average"].items():
        average[name].copy_(value)
    return int(content["step"])


def ema_weights(path: Path) -> tuple[dict[str, Tensor], Configuration, int]:
    """Averaged weights, configuration and step of a checkpoint."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    fields = json.loads(content["configuration"])
    return content["average"], Configuration(**fields | {"channels": tuple(fields["channels"])}), int(content["step"])
