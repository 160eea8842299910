"""Solving for the image: estimate and posterior samples of a prepared problem, under a prior that may adapt to it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from model_zoo import adaptation, classical, coupling, samplers, uncertainty
from model_zoo.operators import Fourier
from pipelines.contract import KSpace
from pipelines.encoding import Problem

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = [
    "Options",
    "adapt_prior",
    "count_evaluations",
    "draw_samples",
    "estimate_slices",
    "estimate_volume",
    "is_volume",
]

TERMINAL_SD = 0.05
"""Largest error of an estimate that terminal consistency corrects for, in units of the 99th percentile."""

ADAPTED_SLICES = 4
"""Slices that AdaDiff adapts the prior on, spread over the volume: the prior is one acquisition's, not one slice's."""
THIN_MM = 2.5
GAP = 0.05
"""Slices are coupled where they are at most ``THIN_MM`` apart with no gap between them above ``GAP`` of that."""


class Options(BaseModel):
    """What a route may set.

    ``solver``: how samples are drawn; with "adadiff" by DDS under the prior as it was trained, while the estimate takes
    ``rapid_steps`` under the prior adapted by such reconstructions. ``across_slices``: weight of the coupling of
    neighbouring slices, one over the usual difference between them in units of the 99th percentile of magnitude; 0
    leaves every slice alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    solver: Literal["dds", "dps", "score_mri", "ald", "adadiff"] = "dds"
    steps: int = Field(default=20, ge=2, le=2000)
    mean_steps: int = Field(default=25, ge=2, le=2000)
    samples: int = Field(default=4, ge=2, le=64)
    mean_sigma_max: float = Field(default=0.5, gt=0, le=20)
    mean_sigma_min: float = Field(default=0.01, gt=0)
    sigma_max: float = Field(default=1.0, gt=0, le=20)
    sigma_min: float = Field(default=0.005, gt=0)
    coil_energy: float = Field(default=0.99, ge=0.95, le=1)
    measured: Literal["auto", "within noise", "exactly"] = "auto"
    low_confidence: float = Field(default=0.1, gt=0)
    batch: int = Field(default=4, ge=1)
    across_slices: float = Field(default=0.0, ge=0)
    rapid_steps: int = Field(default=12, ge=2, le=100)
    adaptation_rank: int = Field(default=2, ge=1, le=64)
    adaptation_steps: int = Field(default=120, ge=1, le=2000)
    adaptation_rate: float = Field(default=5e-4, gt=0, le=0.1)


def adapt_prior(problem: Problem, model: Model, options: Options, seed: int) -> tuple[Model, adaptation.Adaptation]:
    """The model with its prior adapted to this acquisition, and how that went; ``model`` itself stays as it is."""
    count = min(len(problem.y), ADAPTED_SLICES)
    part = problem.of([(2 * n + 1) * len(problem.y) // (2 * count) for n in range(count)]).to(model.device)
    found = adaptation.adapt(
        model.network,
        lambda network: replace(model.denoiser, network=network),
        part.A,
        part.y,
        _mean_sigmas(options),
        sigma_y=part.sigma_y,
        sigma_data=model.denoiser.sigma_data,
        settings=adaptation.Settings(options.adaptation_rank, options.adaptation_steps, options.adaptation_rate),
        generator=torch.Generator().manual_seed(seed),
    )
    return replace(model, network=found.network), found


def _mean_sigmas(options: Options) -> list[float]:
    return samplers.karras(options.mean_sigma_max, options.mean_sigma_min, _mean_steps(options))


def _mean_steps(options: Options) -> int:
    """An adapted prior is right for the steps that it was adapted in: more of them would overdo its corrections."""
    return options.rapid_steps if options.solver == "adadiff" else options.mean_steps


def is_volume(k: KSpace) -> bool:
    """Whether its slices are thin and without gaps, so that neighbours show nearly the same."""
    spacing = k.grid.spacing_mm[0]
    return len(k.samples) > 1 and spacing <= THIN_MM and spacing <= k.slice_thickness_mm * (1 + GAP)


def estimate_slices(problem: Problem, model: Model, options: Options) -> Tensor:
    """Posterior-mean estimate (slice, a, b), scaled: annealed without injected noise, then kept to the data."""
    D, A, y = _inside(model.denoiser, problem.A), problem.A, problem.y
    correct = samplers.correction(A, y, sigma_y=problem.sigma_y, sigma_data=model.denoiser.sigma_data)
    x = samplers.annealed(D, _mean_sigmas(options), classical.cg_sense(A, y, ridge=0.05), correct)
    return _keep_measured(problem, x, options.measured)


def estimate_volume(problem: Problem, model: Model, options: Options) -> Tensor:
    """Do :func:`estimate_slices` with total variation across the slices.

    The denoiser sees ``options.batch`` slices at a time.
    """
    ones = [problem.slices(i, i + 1) for i in range(len(problem.y))]
    start = torch.cat([classical.cg_sense(one.A, one.y, ridge=0.05) for one in ones])
    D = coupling.Differences(coupling.comparable(start, problem.gain))
    correct = coupling.Coupled(
        problem.A, problem.y, problem.sigma_y, model.denoiser.sigma_data, D, options.across_slices
    )
    inside = problem.A.support > 0

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return inside * torch.cat(
            [model.denoiser(x[i : i + options.batch], sigma) for i in range(0, len(x), options.batch)]
        )

    x = samplers.annealed(denoise, _mean_sigmas(options), start, correct)
    kept = [_keep_measured(one, x[i : i + 1], options.measured) for i, one in enumerate(ones)]
    return torch.cat(kept)


def draw_samples(problem: Problem, model: Model, options: Options, seeds: list[int]) -> Tensor:
    """One posterior sample per slice and seed; ``problem`` holds one slice per seed."""
    D, A, y = _inside(model.denoiser, problem.A), problem.A, problem.y
    noise = samplers.noise_source(seeds)
    sigmas = samplers.karras(options.sigma_max, options.sigma_min, options.steps)
    if options.solver in ("dds", "adadiff"):
        x = samplers.dds(D, A, y, sigmas, sigma_y=problem.sigma_y, sigma_data=model.denoiser.sigma_data, noise=noise)
    elif options.solver == "dps":
        x = samplers.dps(D, A, y, sigmas, noise=noise)
    elif options.solver == "score_mri":
        x = samplers.score_mri(D, A, y, sigmas, noise=noise)
    else:
        x = samplers.ald(D, A, y, sigmas, sigma_y=problem.sigma_y, noise=noise)
    return _keep_measured(problem, x, options.measured)


def _inside(D: samplers.Denoiser, A: Fourier) -> samplers.Denoiser:
    """D on the support of the maps and zero outside, where no coil sees an object and no data would hold it back."""
    inside = A.support > 0
    return lambda x, sigma: D(x, sigma) * inside


def _keep_measured(problem: Problem, x: Tensor, measured: str) -> Tensor:
    """Terminal consistency with the samples: within their noise (chi-square at most one), or exactly.

    "auto" keeps them exactly where one coil measured and the noise level is a guess: with one coil that amplifies no
    noise, while smoothing by a wrong level would take signal away. Several coils at high acceleration do amplify it.
    """
    A, y, sigma_y = problem.A, problem.y, problem.sigma_y
    if measured == "auto":
        measured = "exactly" if y.shape[1] == 1 and not problem.noise_is_known else "within noise"
    if measured == "exactly":
        return samplers.consistent(A, A.H(y), x, 1e4, iterations=10)
    return uncertainty.within_noise(A, y, x, sigma_y, limit=(TERMINAL_SD / sigma_y) ** 2)


def count_evaluations(options: Options) -> int:
    """Calls of the denoiser per slice, without those of an adaptation."""
    n = options.steps
    each = {"dds": n, "adadiff": n, "dps": n, "score_mri": 2 * n - 1, "ald": 3 * n + 1}[options.solver]
    return _mean_steps(options) + options.samples * each
