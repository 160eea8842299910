"""A supervised unrolled network beside ``mri_reconstruction``: the images of its prior, trained on pairs.

    python -m benchmarks.unrolled train [--out build/benchmarks/unrolled] [--steps N] [--resume]

Four cascades of a small U-Net and data consistency (``benchmarks.unrolled_network``), 1 to 16 coils, 1D sampling of R 2
to 8, 2D of R 3 to 9, noise drawn; loss L1 + (1 - SSIM) of magnitudes. ``benchmarks.reconstruction --method unrolled``
measures it. Needs the data kit. Weights are not shipped.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from monai.losses import SSIMLoss
from torch import Tensor, nn

from benchmarks.unrolled_network import UnrolledNetwork
from benchmarks.unrolled_scans import draw_problem
from model_zoo.operators import Fourier
from model_zoo.precision import autocast
from model_zoo.training import checkpoint, loop, recipe
from model_zoo.training.recipe import Recipe, Source, make_simulated_sources
from pipelines.encoding import Problem

__all__ = ["CONFIGURATIONS", "FOLDER", "RECIPE", "Configuration", "is_trained", "load", "main", "reconstruct"]

FOLDER = Path("build/benchmarks/unrolled")
VALIDATION_PROBLEMS = 8


@dataclass(frozen=True, kw_only=True)
class Configuration(recipe.Configuration):
    """Settings: number of ``cascades``; ``channels`` and ``blocks`` of their U-Net."""

    cascades: int = 4
    channels: tuple[int, ...] = (32, 64, 96)
    blocks: int = 1


CONFIGURATIONS = {
    "cpu": Configuration(
        steps=1200,
        batch=1,
        learning_rate=1e-3,
        warmup=50,
        ema=0.99,
        threads=1,
        checkpoint_every=50,
        validate_every=10_000,
    ),
    "smoke": Configuration(
        steps=2, batch=1, learning_rate=1e-3, warmup=1, cascades=2, channels=(8, 16), threads=1, checkpoint_every=1
    ),
}


def _make_network(c: Configuration) -> UnrolledNetwork:
    return UnrolledNetwork(c.cascades, c.channels, c.blocks)


def _draw_batch(c: Configuration, source: Source, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw one problem; slices differ in size and number of coils, so that a batch holds one."""
    p, reference = draw_problem(source, c.seed, source.step, generator)
    return {"y": p.y, "maps": p.A.maps, "mask": p.A.mask, "sigma_y": p.sigma_y, "gain": p.gain, "reference": reference}


def _compute_loss(network: nn.Module, batch: dict[str, Tensor], _: Configuration) -> Tensor:
    """Return L1 + (1 - SSIM) of magnitudes in the units of the samples, over the reference's 99th percentile."""
    x = network(Fourier(batch["maps"], batch["mask"]), batch["y"], batch["sigma_y"])
    with torch.autocast(x.device.type, enabled=False):
        level = torch.quantile(batch["reference"].flatten(), 0.99)
        image, truth = (each[None] / level for each in (_measure_magnitude(x, batch["gain"]), batch["reference"]))
        similar = SSIMLoss(spatial_dims=2, data_range=float(truth.max()), kernel_type="uniform", win_size=7)
        loss: Tensor = (image - truth).abs().mean() + similar(image, truth)
    return loss


def _measure_magnitude(x: Tensor, gain: Tensor) -> Tensor:
    """Return the magnitude in the units of the samples; eps, since the derivative of |x| is not finite at zero."""
    if x.ndim == 4:
        x = torch.einsum("smnab,snab->smab", gain.to(x.dtype), x)
        return (x.real.square() + x.imag.square()).sum(dim=1).add(1e-12).sqrt()
    return gain * (x.real.square() + x.imag.square() + 1e-12).sqrt()


def _validate(network: nn.Module, c: Configuration, source: Source) -> dict[str, float]:
    """Return the mean loss of fixed problems of the validation subjects."""
    batches = [
        _draw_batch(c, replace(source, step=10**6 + n), recipe.seeded(c.seed, 10**9 + n))
        for n in range(VALIDATION_PROBLEMS if c.steps > 10 else 1)
    ]
    return {"validation_loss": sum(float(_compute_loss(network, b, c)) for b in batches) / len(batches)}


def _describe_inference(c: Configuration) -> dict[str, Any]:
    return {}


RECIPE = Recipe(
    name="unrolled",
    bundle="",
    configurations=CONFIGURATIONS,
    make_network=_make_network,
    draw_batch=_draw_batch,
    compute_loss=_compute_loss,
    validate=_validate,
    describe_inference=_describe_inference,
    facts={},
)


def is_trained(folder: Path = FOLDER) -> bool:
    """Return whether a checkpoint is there."""
    return (folder / checkpoint.NAME).exists()


@lru_cache(maxsize=1)
def load(folder: Path = FOLDER) -> UnrolledNetwork:
    """Return the trained network with averaged weights."""
    saved = checkpoint.read(folder / checkpoint.NAME)
    network = _make_network(Configuration.from_json(saved.configuration))
    network.load_state_dict(saved.merge_average())
    return network.eval()


def reconstruct(p: Problem, network: UnrolledNetwork) -> Tensor:
    """Return the images (slice, [set,] a, b), scaled as the problem is, slice by slice."""
    ones = [p.slices(i, i + 1) for i in range(len(p.y))]
    with torch.no_grad(), autocast("cpu"):
        return torch.cat([network(one.A, one.y, one.sigma_y) for one in ones])


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["train"])
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--configuration", choices=tuple(CONFIGURATIONS), default="cpu")
    parser.add_argument("--steps", type=int, help="of the configuration when not given")
    parser.add_argument("--phantom", action="store_true", help="nested ellipsoids instead of label maps, for a trial")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args(words)
    c = CONFIGURATIONS[arguments.configuration]
    c = replace(c, steps=arguments.steps or c.steps)
    began = time.process_time()
    sources = make_simulated_sources(phantom=arguments.phantom)
    try:
        path = loop.train(
            RECIPE, c, arguments.out, sources=sources, resume=arguments.resume, report=print, progress=_print_progress
        )
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))
    print(f"{path}: {c.steps} steps, {time.process_time() - began:.0f} s of processor time in this run")


def _print_progress(at: loop.Progress) -> None:
    if at.step % 25 == 0:
        print(f"step {at.step} of {at.steps}, loss {at.loss:.4f}, {at.left_s / 60:.0f} min left", flush=True)


if __name__ == "__main__":
    main()
