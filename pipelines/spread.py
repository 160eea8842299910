"""Scale of the samples' standard deviation, measured on k-space that the samples were not made from.

Samples of a prior that was trained on simulated heads lie too close together, by a factor that depends on the
acquisition. A part of the acquired samples is held out, the image is reconstructed and sampled from the rest, and the
held-out samples show how far the truth lies from the estimate in units of the samples' spread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model_zoo import adaptation, uncertainty
from model_zoo.operators import Fourier
from pipelines.encoding import Problem
from pipelines.inversion import Options, count_evaluations, draw_samples, estimate_slices

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["Spread", "measure_spread"]

SLICES = 2
"""Number of slices, spread over the volume, of which samples are held out."""
SAMPLES = 4


@dataclass(frozen=True)
class Spread:
    """``factor``: what the standard deviation of samples is multiplied by; ``evaluations``: calls of the denoiser."""

    factor: float
    evaluations: int


def measure_spread(problem: Problem, prior: Model, model: Model, options: Options, seed: int) -> Spread:
    """Return the factor of :func:`model_zoo.uncertainty.spread_factor` for the slices of one image.

    ``prior`` makes the estimate and ``model`` the samples, as in the reconstruction. The factor is the usual one where
    ``options.held_out`` is zero.
    """
    residual = noise = variance = 0.0
    slices = _choose_slices(problem) if options.held_out > 0 else []
    generator = torch.Generator().manual_seed(seed)
    for i in slices:
        one = problem.slices(i, i + 1).to(model.device)
        split = adaptation.split_samples(one.A.mask, options.held_out, generator)
        rest = replace(one, A=Fourier(one.A.maps, split.inputs), y=one.y * split.inputs[:, None])
        held_out = Fourier(one.A.maps, split.targets)
        x = estimate_slices(rest, prior, options)
        seeds = torch.randint(2**62, (SAMPLES,), generator=generator).tolist()
        _, sd = uncertainty.mean_and_sd(map(held_out, _draw_one_by_one(rest, model, options, seeds, x)))
        residual += float((one.y * split.targets[:, None] - held_out(x)).abs().square().sum())
        noise += float((2 * held_out.measured * one.sigma_y.square()).sum())
        variance += float(sd.square().sum())
    calls = count_evaluations(options.model_copy(update={"samples": SAMPLES}))
    return Spread(uncertainty.spread_factor(residual, noise, variance), problem.A.sets * calls * len(slices))


def _choose_slices(problem: Problem) -> list[int]:
    """Return up to SLICES slices, spread over those in which the coils see an object."""
    visible = [i for i in range(len(problem.y)) if bool(problem.slices(i, i + 1).A.support.any())]
    count = min(len(visible), SLICES)
    return [visible[(2 * n + 1) * len(visible) // (2 * count)] for n in range(count)]


def _draw_one_by_one(problem: Problem, model: Model, options: Options, seeds: list[int], x: Tensor) -> Iterator[Tensor]:
    for seed in seeds:
        yield draw_samples(problem, model, options, [seed], x)
