"""Estimate and posterior samples of a CT scan under a learned prior, and their spread against rays that were held out.

Images are attenuation over that of water, float32 (slice, j, i): air is 0, water is 1. y = A x + e with A the weighted
projection of ``model_zoo.radon``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from model_zoo import classical, samplers, uncertainty
from model_zoo.radon import Radon, weigh_counts
from pipelines.contract import Projections, Refused
from pipelines.seeds import derive_seed
from pipelines.spread import Spread

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["CtProblem", "Options", "count_evaluations", "draw_samples", "estimate", "measure_spread", "prepare_scan"]

MODEL_ERROR = 0.2
"""Standard deviation of a line integral that pixels cannot represent, over that of a pixel of water.

It is 0.3 for ellipses of water with sharp edges, whatever the pixels.
"""
TERMINAL_SD = 0.05
"""Largest error of an estimate that terminal consistency corrects for, 50 HU."""
START_ITERATIONS = 20
ITERATIONS = 8
"""Conjugate gradients of the first image, and of each step."""
HELD_OUT_SLICES = 2
HELD_OUT_SAMPLES = 4
_FEWEST_VIEWS = 8


class Options(BaseModel):
    """Options of a route."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=5, ge=2, le=2000, description="steps of each posterior sample")
    mean_steps: int = Field(default=9, ge=2, le=2000, description="steps of the estimate")
    momentum: float = Field(
        default=0.65, ge=0, lt=1, description="share of the last change by which a step looks ahead"
    )
    samples: int = Field(
        default=4,
        ge=2,
        le=64,
        description="posterior samples, from which the standard deviation and a share of the image come",
    )
    held_out: float = Field(
        default=0.15,
        ge=0,
        le=0.5,
        description="share of the views held out of two slices, which set the estimate's share of the image and the "
        "scale of the standard deviation; 0: none",
    )
    sigma_max: float = Field(
        default=0.3, gt=0, le=20, description="largest noise level of estimate and samples; 1 is 1000 HU"
    )
    sigma_min: float = Field(default=0.005, gt=0, description="smallest noise level; 1 is 1000 HU")
    low_confidence_hu: float = Field(
        default=50.0, gt=0, description="standard deviation in HU above which a voxel is marked as of low confidence"
    )
    batch: int = Field(default=4, ge=1, description="samples of one slice computed at once; more need more memory")
    bf16: bool = Field(default=True, description="run the network in bfloat16 where the processor has it")

    @model_validator(mode="after")
    def _check_sigmas(self) -> Self:
        if self.sigma_max <= self.sigma_min:
            raise ValueError(f"sigma_max {self.sigma_max:g} is not above sigma_min {self.sigma_min:g}")
        return self


@dataclass(frozen=True)
class CtProblem:
    """Scan in units of water: A, data y (slice, view, bin), the sd of their noise sigma_y (slice,)."""

    A: Radon
    y: Tensor
    sigma_y: Tensor

    def one_slice(self, i: int) -> CtProblem:
        """Return the problem of slice ``i``."""
        part = slice(i, i + 1)
        return CtProblem(self.A.select(part), self.y[part], self.sigma_y[part])

    def repeat(self, n: int) -> CtProblem:
        """Return the problem with every slice repeated n times."""
        return CtProblem(self.A.repeat(n), self.y.repeat_interleave(n, 0), self.sigma_y.repeat_interleave(n, 0))

    def keep_views(self, chosen: Tensor) -> CtProblem:
        """Return the problem of the views where ``chosen``, bool (view,), is True; the others were not measured."""
        mask = chosen.to(self.y.dtype)[:, None]
        return replace(self, A=Radon(self.A.rays, self.A.weight * mask), y=self.y * mask)


def prepare_scan(scan: Projections) -> CtProblem:
    """Return the weighted problem of all slices; the noise of a ray is that of its photons and of the model."""
    counts = torch.from_numpy(scan.counts)
    model_error = MODEL_ERROR * scan.beam.pixel_mm * scan.water_per_mm
    A, sigma = weigh_counts(scan.beam, counts / (1 + counts * model_error**2))
    y = A.whiten(torch.from_numpy(scan.line_integrals))
    return CtProblem(A, y / scan.water_per_mm, sigma / scan.water_per_mm)


def estimate(problem: CtProblem, model: Model, options: Options) -> Tensor:
    """Return the estimate (slice, j, i): annealed without injected noise, then as consistent as the noise warrants."""
    sigma_data = model.denoiser.sigma_data
    correct = samplers.make_correction(
        problem.A, problem.y, sigma_y=problem.sigma_y, sigma_data=sigma_data, iterations=ITERATIONS
    )
    start = classical.cgls(problem.A, problem.y, iterations=START_ITERATIONS)
    sigmas = samplers.karras_schedule(options.sigma_max, options.sigma_min, options.mean_steps)
    x = samplers.anneal(_on_device(model), sigmas, start, correct, momentum=options.momentum)
    return _enforce_data(problem, x)


def draw_samples(problem: CtProblem, model: Model, options: Options, seeds: list[int], start: Tensor) -> Tensor:
    """Return one posterior sample per slice and seed; ``problem`` and ``start``, the estimate, hold one per seed."""
    sigmas = samplers.karras_schedule(options.sigma_max, options.sigma_min, options.steps)
    x = samplers.dds(
        _on_device(model), problem.A, problem.y, sigmas, sigma_y=problem.sigma_y,
        sigma_data=model.denoiser.sigma_data, noise=samplers.noise_source(seeds), start=start, iterations=ITERATIONS,
    )  # fmt: skip
    return _enforce_data(problem, x)


def _on_device(model: Model) -> samplers.Denoiser:
    """Return the denoiser on the model's device; the projections stay where their sparse matrix is."""
    D = model.denoiser
    return lambda x, sigma: D(x.to(model.device), sigma).cpu()


def _enforce_data(problem: CtProblem, x: Tensor) -> Tensor:
    A, y, sigma_y = problem.A, problem.y, problem.sigma_y
    return uncertainty.apply_discrepancy_principle(A, y, x, sigma_y, limit=(TERMINAL_SD / sigma_y) ** 2)


def measure_spread(problem: CtProblem, model: Model, options: Options, seed: int) -> Spread:
    """Return factor and share (:class:`model_zoo.uncertainty.HeldOut`), from views that were held out of two slices.

    Both are the usual ones where nothing is held out, or where fewer than eight views would be left. Raises Refused
    where an estimate or a sample is not finite.
    """
    found = uncertainty.HeldOut()
    views = problem.y.shape[1]
    count = round(options.held_out * views)
    slices = _choose_slices(len(problem.y)) if count and views - count >= _FEWEST_VIEWS else []
    generator = torch.Generator().manual_seed(seed)
    for i in slices:
        one = problem.one_slice(i)
        chosen = torch.ones(views, dtype=torch.bool)
        chosen[torch.randperm(views, generator=generator)[:count]] = False
        rest, held_out = one.keep_views(chosen), one.keep_views(~chosen)
        x = estimate(rest, model, options)
        seeds = [derive_seed(seed, HELD_OUT_SAMPLES * i + n) for n in range(HELD_OUT_SAMPLES)]
        drawn_samples = draw_samples(rest.repeat(HELD_OUT_SAMPLES), model, options, seeds, x.expand(len(seeds), -1, -1))
        mean, sd = uncertainty.mean_and_sd(held_out.A(sample[None]) for sample in drawn_samples)
        noise = float((held_out.A.measured * one.sigma_y.square()).sum())
        compared = uncertainty.compare_held_out(held_out.y, held_out.A(x), mean, sd, noise)
        if not compared.is_finite:
            raise Refused(f"the estimate or a sample of slice {i + 1} is not finite")
        found += compared
    evaluations = (options.mean_steps + HELD_OUT_SAMPLES * options.steps) * len(slices)
    return Spread(found.factor(found.share), found.share, evaluations)


def _choose_slices(count: int) -> list[int]:
    chosen = min(count, HELD_OUT_SLICES)
    return [(2 * n + 1) * count // (2 * chosen) for n in range(chosen)]


def count_evaluations(options: Options) -> int:
    """Return the calls of the denoiser per slice, without those for held-out views."""
    return options.mean_steps + options.samples * options.steps
