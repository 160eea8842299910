"""Scale of the samples' standard deviation, measured on k-space that the samples were not made from.

Samples of a prior that was trained on simulated heads lie too close together, by a factor that depends on the
acquisition. A part of the acquired samples is held out, the image is reconstructed and sampled from the rest, and the
held-out samples show how far the truth lies from the estimate in units of the samples' spread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model_zoo import adaptation, uncertainty
from model_zoo.operators import Fourier
from pipelines.encoding import Problem
from pipelines.inversion import Options, count_evaluations, draw_samples, estimate_slices
from pipelines.separate_coils import compare_combined

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["SLICES", "Spread", "evaluations_held_out", "measure_spread"]

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
    compare = compare_samples if problem.separate_coils == 1 else compare_combined
    for i in slices:
        one = problem.one_slice(i).to(model.device)
        split = _split_slice(one, options.held_out, generator)
        rest = replace(one, A=Fourier(one.A.maps, split.inputs), y=one.y * split.inputs[:, None])
        x = estimate_slices(rest, prior, options)
        seeds = torch.randint(2**62, (SAMPLES, len(one.y)), generator=generator).tolist()
        found = compare(one, x, _draw_one_by_one(rest, model, options, seeds, x), split)
        residual, noise, variance = residual + found[0], noise + found[1], variance + found[2]
    calls = problem.images_per_slice * evaluations_held_out(options) * len(slices)
    return Spread(uncertainty.spread_factor(residual, noise, variance), calls)


def evaluations_held_out(options: Options) -> int:
    """Return the calls of the denoiser per image of a slice of which samples are held out."""
    return count_evaluations(options.model_copy(update={"samples": SAMPLES}))


def compare_samples(
    one: Problem, x: Tensor, samples: Iterable[Tensor], split: adaptation.Split
) -> tuple[float, float, float]:
    """Return residual, noise and variance of the held-out samples, as ``uncertainty.spread_factor`` takes them."""
    held_out = Fourier(one.A.maps, split.targets)
    _, sd = uncertainty.mean_and_sd(map(held_out, samples))
    residual = (one.y * split.targets[:, None] - held_out(x)).abs().square().sum()
    noise = (2 * held_out.measured * one.sigma_y.square()).sum()
    return float(residual), float(noise), float(sd.square().sum())


def _split_slice(one: Problem, fraction: float, generator: torch.Generator) -> adaptation.Split:
    """Hold the same samples out of every coil of a slice."""
    split = adaptation.split_samples(one.A.mask[:1], fraction, generator)
    return adaptation.Split(split.inputs.expand_as(one.A.mask), split.targets.expand_as(one.A.mask))


def _choose_slices(problem: Problem) -> list[int]:
    """Return up to SLICES slices, spread over those in which the coils see an object."""
    visible = [i for i in range(problem.slice_count) if bool(problem.one_slice(i).A.support.any())]
    count = min(len(visible), SLICES)
    return [visible[(2 * n + 1) * len(visible) // (2 * count)] for n in range(count)]


def _draw_one_by_one(
    problem: Problem, model: Model, options: Options, seeds: list[list[int]], x: Tensor
) -> Iterator[Tensor]:
    for of_coils in seeds:
        yield draw_samples(problem, model, options, of_coils, x)
