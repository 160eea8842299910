"""Losses of the engine ``syndiff``, equations 17.21 to 17.32, with x of the target (A) and y of the source (B).

    y~ = G_phi_B(x), x~ = G_phi_A(y)                                    guesses of the images that have no pair
    x0~ = G_theta_A(x_n, y~, n),  x^_{n-1} from q(x_{n-1} | x_n, x0~)   and the same for y
    L = w_c (|x - G_phi_A(y~)| + |y - G_phi_B(x~)| + |x - x0~| + |y - y0~|)
        + adversarial_weight (the four judges' parts)

Judges: of guesses against true images of that kind, and of x^_{n-1} against a true x_{n-1}, each with x_n and n.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from model_zoo.training.dir_losses import weighted_mean
from model_zoo.training.opponents import Judged, Pair, make_judge
from model_zoo.translation import syndiff
from model_zoo.translation.network import Sampling

if TYPE_CHECKING:
    from model_zoo.training.translation import Configuration

__all__ = [
    "Generators",
    "check",
    "compute_cycle_loss",
    "compute_loss",
    "estimate",
    "make_judges",
    "make_settings",
    "measure",
]

SAMPLES = 8
"""Samples of the validation."""


class Generators(Protocol):
    """The four generators, as ``networks.syndiff.SynDiff``; images (b, 1, *space)."""

    def denoise_target(self, x_t: Tensor, source: Tensor, n: Tensor) -> Tensor: ...
    def denoise_source(self, x_t: Tensor, target: Tensor, n: Tensor) -> Tensor: ...
    def translate_to_target(self, source: Tensor) -> Tensor: ...
    def translate_to_source(self, target: Tensor) -> Tensor: ...


def compute_loss(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> tuple[Tensor, Judged]:
    """Return the cycles' errors, and the images of the four judges."""
    x, y, weight_x, weight_y = (_to_image(each, c) for each in _get_images(batch))
    total, judged = compute_cycle_loss(syndiff.as_syndiff(network), x, y, weight_x, weight_y)
    return c.cycle_weight * total, judged


def _get_images(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return 2 * batch["target"] - 1, batch["input"][:, :1], batch["weight"], batch["source_weight"]


def _to_image(x: Tensor, c: Configuration) -> Tensor:
    """Return x (b, 1, k, j, i) with the axes of the network: of slices (b, 1, j, i)."""
    return x[:, :, 0] if c.plan.slices else x


def compute_cycle_loss(
    network: Generators, x: Tensor, y: Tensor, weight_x: Tensor, weight_y: Tensor
) -> tuple[Tensor, Judged]:
    """Return the sum of the four mean errors (17.31 without weights), and what the judges compare."""
    source_of_x, target_of_y = network.translate_to_source(x), network.translate_to_target(y)
    x0, denoised_x = _denoise(network.denoise_target, x, source_of_x)
    y0, denoised_y = _denoise(network.denoise_source, y, target_of_y)
    total = weighted_mean((x - network.translate_to_target(source_of_x)).abs(), weight_x)
    total = total + weighted_mean((y - network.translate_to_source(target_of_y)).abs(), weight_y)
    total = total + weighted_mean((x - x0).abs(), weight_x) + weighted_mean((y - y0).abs(), weight_y)
    judged = {"target": Pair(target_of_y, x), "source": Pair(source_of_x, y)}
    return total, judged | {"denoised_target": denoised_x, "denoised_source": denoised_y}


def _denoise(denoise: syndiff.Denoiser, x: Tensor, guess: Tensor) -> tuple[Tensor, Pair]:
    """Return the estimate of x from a random x_n and the guess of the other kind, and what its judge compares."""
    n = torch.randint(1, syndiff.STEPS + 1, (len(x),), device=x.device)
    previous = syndiff.diffuse(x, n - 1, torch.randn_like(x))
    x_n = syndiff.step_forward(previous, n, torch.randn_like(x))
    x0 = denoise(x_n, guess, n)
    made = syndiff.draw_previous(x_n, x0, n, torch.randn_like(x))
    step = (n / syndiff.STEPS).to(x).reshape(-1, *[1] * (x.dim() - 1)).expand_as(x)
    return x0, Pair(*(torch.cat([each, x_n, step], dim=1) for each in (made, previous)))


def make_judges(c: Configuration) -> dict[str, nn.Module]:
    """Return the judges of guesses, and those of denoised images, which see x_n and n."""
    inputs = {"target": 1, "source": 1, "denoised_target": 3, "denoised_source": 3}
    dimensions = 2 if c.plan.slices else 3
    return {name: make_judge(c.opponent_channels, count, dimensions) for name, count in inputs.items()}


def estimate(network: nn.Module, batch: Mapping[str, Tensor], c: Configuration) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of samples of each item, each (b, 1, k, j, i)."""
    samples = _draw(network, batch, c, SAMPLES)
    return samples.mean(dim=0), samples.std(dim=0)


def _draw(network: nn.Module, batch: Mapping[str, Tensor], c: Configuration, samples: int) -> Tensor:
    """Return samples of the target (samples, b, 1, k, j, i) for the batch's sources."""
    sampling = Sampling(1, syndiff.STEPS, torch.Generator().manual_seed(c.seed))
    source = _to_image(batch["input"][:, :1], c)
    repeated = source.repeat(samples, *[1] * (source.dim() - 1))
    (found,) = syndiff.draw_samples(syndiff.as_syndiff(network).denoise_target, repeated, sampling, c.patch_shape[-1])
    shaped: Tensor = found.reshape(samples, *batch["target"].shape)
    return shaped


def measure(network: nn.Module, batch: Mapping[str, Tensor], c: Configuration) -> dict[str, float]:
    """Return what needs no pairs, inside: mean of made less that of true targets, their sd divided by that of true
    ones, and the mean error of a target after both guesses.
    """
    made, target = _draw(network, batch, c, 1)[0], batch["target"]
    of_made, of_true = made[batch["source_weight"] > 0.5], target[batch["weight"] > 0.5]
    if of_made.numel() < 2 or of_true.numel() < 2:
        return {}
    generators = syndiff.as_syndiff(network)
    x = _to_image(2 * target - 1, c)
    cycle = (x - generators.translate_to_target(generators.translate_to_source(x))).abs() / 2
    return {
        "cycle_mae": float(cycle[_to_image(batch["weight"], c) > 0.5].mean()),
        "made_mean_difference": float(of_made.mean() - of_true.mean()),
        "made_sd_ratio": float(of_made.std() / of_true.std().clamp(min=1e-6)),
    }


def check(network: nn.Module, c: Configuration) -> None:
    """Raise ValueError for a configuration that cannot teach: patch, opponents."""
    stride = syndiff.as_syndiff(network).stride
    if c.patch_shape[-1] % stride:
        raise ValueError(f"the engine syndiff needs a patch that is a multiple of {stride}, not {c.patch_shape[-1]}")
    if not c.adversarial_weight:
        raise ValueError("the engine syndiff learns from its opponents: adversarial_weight has to be above 0")


def make_settings(c: Configuration) -> dict[str, Any]:
    """Return the size of the windows, and the shape of one for the smoke test."""
    return {"window": c.patch_shape[-1], "shape": list(c.patch_shape)}
