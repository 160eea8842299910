"""Reconstruction of a prepared problem: estimate and posterior samples under a prior that may be adapted to it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from model_zoo import adaptation, classical, coupling, samplers, uncertainty
from model_zoo.operators import Fourier
from pipelines.contract import KSpace, Refused
from pipelines.encoding import COIL_LOSS, Problem

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

DATA_WEIGHT = 3.0
"""What the samples weigh in the estimate, in units of the weight that their noise warrants.

The denoiser's errors are not white, as the warranted weight takes them to be: they lie on structures that it smooths.
"""

SAMPLE_CG_ITERATIONS = 3
"""CG iterations of a step of a sample. The estimate takes five: with three it loses up to 0.3 dB."""

MARGIN = 8
"""Pixels around the support that the prior sees."""

ADAPTED_SLICES = 4
"""Number of slices, spread over the volume, on which AdaDiff adapts the prior to the acquisition."""
THIN_MM = 2.5
GAP = 0.05
"""Limits for the coupling of slices: spacing of at most ``THIN_MM``, gaps of at most ``GAP`` of the thickness."""

STEPS = {"dds": 5, "adadiff": 5, "dps": 100, "score_mri": 100, "ald": 60}
"""Steps of a sample by solver, where a route states none. DDS begins at the estimate, the other three with noise."""
_FROM_NOISE = ("dps", "score_mri", "ald")
_OTHERS = ("dds", *_FROM_NOISE)
MISPLACED = {
    "sigma_max": ("dds", "adadiff"),
    "dds_sigma_max": _FROM_NOISE,
    "mean_sigma_max": ("adadiff",),
    "mean_steps": ("adadiff",),
    "momentum": ("adadiff",),
    "rapid_steps": _OTHERS,
    "rapid_sigma_max": _OTHERS,
    "adaptation_rank": _OTHERS,
    "adaptation_steps": _OTHERS,
    "adaptation_rate": _OTHERS,
}
"""Options that a solver does not read, by the solvers that do not."""


class Options(BaseModel):
    """Options of a route.

    "adadiff" draws samples by DDS under the prior as it was trained, while the estimate takes ``rapid_steps`` under the
    prior adapted by such reconstructions, without momentum. ``across_slices`` is one over the usual difference of
    neighbouring slices in units of the 99th percentile of magnitude.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    solver: Literal["dds", "dps", "score_mri", "ald", "adadiff"] = Field(
        default="dds",
        description="sampler; adadiff adapts the prior to the acquisition and takes rapid_steps for its estimate",
    )
    steps: int = Field(
        default=5,
        ge=2,
        le=2000,
        description="steps of each posterior sample; not given: 5 for dds and adadiff, 100 for dps and score_mri, "
        "60 for ald",
    )
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
        description="share of the acquired samples held out of two slices, which set the estimate's share of the image "
        "and the scale of the standard deviation; 0: none",
    )
    mean_sigma_max: float = Field(
        default=0.3,
        gt=0,
        le=20,
        description="largest noise level of the estimate; 1 is the 99th percentile of the magnitude",
    )
    mean_sigma_min: float = Field(default=0.01, gt=0, description="smallest noise level of the estimate")
    dds_sigma_max: float = Field(
        default=0.3,
        gt=0,
        le=20,
        description="noise level at which dds and adadiff begin their samples, around the estimate",
    )
    sigma_max: float = Field(
        default=1.0,
        gt=0,
        le=20,
        description="noise level at which the samples of the other solvers begin, from noise alone",
    )
    sigma_min: float = Field(default=0.005, gt=0, description="smallest noise level of the samples")
    coil_loss: float = Field(
        default=COIL_LOSS,
        ge=0,
        le=0.05,
        description="largest share of the coils' local energy that combining them may lose anywhere in the object",
    )
    coils: Literal["maps", "auto", "without maps"] = Field(
        default="maps",
        description="several coils: maps refuses an acquisition without calibration lines; auto reconstructs each coil "
        "of such an acquisition by itself, without maps those of every acquisition, and holds the result",
    )
    most_evaluations: int = Field(
        default=2000,
        ge=1,
        description="denoiser evaluations per slice above which coils without maps are refused",
    )
    measured: Literal["auto", "within noise", "exactly"] = Field(
        default="auto",
        description="how measured samples are kept; auto: exactly for one coil of unknown noise, else within noise",
    )
    low_confidence: float = Field(
        default=0.1,
        gt=0,
        description="standard deviation over signal above which a voxel is marked as of low confidence",
    )
    batch: int = Field(
        default=4,
        ge=1,
        description="slices, or samples or coils of one slice, computed at once; more need more memory",
    )
    bf16: bool = Field(default=True, description="run the network in bfloat16 where the processor has it")
    across_slices: float = Field(
        default=0.0,
        ge=0,
        description="weight of the coupling of neighbouring slices; 0: every slice alone",
    )
    rapid_steps: int = Field(default=12, ge=2, le=100, description="steps of the estimate by adadiff")
    rapid_sigma_max: float = Field(default=0.5, gt=0, le=20, description="largest noise level of that estimate")
    adaptation_rank: int = Field(
        default=2,
        ge=1,
        le=64,
        description="rank of the weights that adadiff adds to the prior",
    )
    adaptation_steps: int = Field(
        default=120,
        ge=1,
        le=2000,
        description="most steps in which adadiff adapts the prior",
    )
    adaptation_rate: float = Field(default=5e-4, gt=0, le=0.1, description="learning rate of adadiff's adaptation")

    @model_validator(mode="before")
    @classmethod
    def _choose_steps(cls, values: Any) -> Any:
        if isinstance(values, dict) and "steps" not in values and values.get("solver") in STEPS:
            return {**values, "steps": STEPS[values["solver"]]}
        return values

    @model_validator(mode="after")
    def _check_solver(self) -> Self:
        """Refuse noise levels that do not descend, and a value of an option that the solver does not read."""
        for top, bottom in (
            ("mean_sigma_max", "mean_sigma_min"), ("rapid_sigma_max", "mean_sigma_min"),
            ("sigma_max", "sigma_min"), ("dds_sigma_max", "sigma_min"),
        ):  # fmt: skip
            is_read = self.solver not in MISPLACED.get(top, ())
            if is_read and getattr(self, top) <= getattr(self, bottom):
                raise ValueError(f"{top} {getattr(self, top):g} is not above {bottom} {getattr(self, bottom):g}")
        for name, solvers in MISPLACED.items():
            if self.solver in solvers and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"solver {self.solver} does not read {name}: remove it, or choose another solver")
        return self


def adapt_prior(problem: Problem, model: Model, options: Options, seed: int) -> tuple[Model, adaptation.Adaptation]:
    """Return the model with its prior adapted to this acquisition, and the record of it; ``model`` is not changed."""
    count = min(len(problem.y), ADAPTED_SLICES)
    subset = problem.select([(2 * n + 1) * len(problem.y) // (2 * count) for n in range(count)]).to(model.device)
    result = adaptation.adapt(
        model.network,
        lambda network: replace(model.denoiser, network=network),
        subset.A,
        subset.y,
        _mean_sigmas(options),
        sigma_y=subset.sigma_y,
        sigma_data=model.denoiser.sigma_data,
        settings=adaptation.Settings(options.adaptation_rank, options.adaptation_steps, options.adaptation_rate),
        generator=torch.Generator().manual_seed(seed),
    )
    return replace(model, network=result.network), result


def _mean_sigmas(options: Options) -> list[float]:
    top = options.rapid_sigma_max if options.solver == "adadiff" else options.mean_sigma_max
    return samplers.karras_schedule(top, options.mean_sigma_min, _mean_steps(options))


def _mean_steps(options: Options) -> int:
    """Return the number of steps of the estimate.

    An adapted prior is right for its number of steps: more of them would overdo its corrections.
    """
    return options.rapid_steps if options.solver == "adadiff" else options.mean_steps


def _momentum(options: Options) -> float:
    """Return the momentum of the estimate; none where the prior was adapted to steps without it."""
    return 0.0 if options.solver == "adadiff" else options.momentum


def _data_weight(options: Options) -> float:
    """Return the weight of the samples; the warranted one where the prior was adapted to it, and across slices.

    The coupled estimate has that weight, so what is measured on slices of its volume has it as well.
    """
    return 1.0 if options.solver == "adadiff" or options.across_slices > 0 else DATA_WEIGHT


def is_volume(k: KSpace) -> bool:
    """Return whether the slices are thin and without gaps, so that neighbours show nearly the same."""
    spacing = k.grid.spacing_mm[0]
    return len(k.samples) > 1 and spacing <= THIN_MM and spacing <= k.slice_thickness_mm * (1 + GAP)


def estimate_slices(problem: Problem, model: Model, options: Options) -> Tensor:
    """Return the scaled estimate (slice, [set,] a, b): annealed without injected noise, then data-consistent."""
    D = _restrict_to_support(_denoise_in_batches(model.denoiser, options.batch), problem.A)
    A, y = problem.A, problem.y
    sigma_y = problem.sigma_y / _data_weight(options) ** 0.5
    correct = samplers.make_correction(A, y, sigma_y=sigma_y, sigma_data=model.denoiser.sigma_data)
    start = classical.cg_sense(A, y, ridge=0.05)
    x = samplers.anneal(D, _mean_sigmas(options), start, correct, momentum=_momentum(options))
    return _enforce_data(problem, x, options.measured)


def estimate_volume(problem: Problem, model: Model, options: Options) -> Tensor:
    """Return the estimate as :func:`estimate_slices` does, with total variation across the slices.

    Raises Refused for several sets of maps: how the sets divide
    an image differs from slice to slice, so that their images cannot be compared.
    """
    if problem.A.sets > 1:
        raise Refused(
            "k-space: slices cannot be coupled where the object is larger than the field of view: set across_slices = 0"
        )
    ones = [problem.slices(i, i + 1) for i in range(len(problem.y))]
    start = torch.cat([classical.cg_sense(one.A, one.y, ridge=0.05) for one in ones])
    D = coupling.Differences(coupling.slice_factors(start, problem.gain))
    correct = coupling.CoupledCorrection(
        problem.A, problem.y, problem.sigma_y, model.denoiser.sigma_data, D, options.across_slices
    )

    denoise = _restrict_to_support(_denoise_in_batches(model.denoiser, options.batch), problem.A)
    x = samplers.anneal(denoise, _mean_sigmas(options), start, correct, momentum=_momentum(options))
    consistent = [_enforce_data(one, x[i : i + 1], options.measured) for i, one in enumerate(ones)]
    return torch.cat(consistent)


def draw_samples(problem: Problem, model: Model, options: Options, seeds: list[int], estimate: Tensor) -> Tensor:
    """Return one posterior sample per slice and seed; ``problem`` and ``estimate`` hold one slice per seed."""
    D = _restrict_to_support(_denoise_in_batches(model.denoiser, options.batch), problem.A)
    A, y = problem.A, problem.y
    noise, sigma_y = samplers.noise_source(seeds), problem.sigma_y
    top = options.dds_sigma_max if options.solver in ("dds", "adadiff") else options.sigma_max
    sigmas = samplers.karras_schedule(top, options.sigma_min, options.steps)
    if options.solver == "dps":
        x = samplers.dps(D, A, y, sigmas, noise=noise)
    elif options.solver == "score_mri":
        x = samplers.score_mri(D, A, y, sigmas, noise=noise)
    elif options.solver == "ald":
        x = samplers.ald(D, A, y, sigmas, sigma_y=sigma_y, noise=noise)
    else:
        x = samplers.dds(
            D, A, y, sigmas, sigma_y=sigma_y, sigma_data=model.denoiser.sigma_data, noise=noise, start=estimate,
            iterations=SAMPLE_CG_ITERATIONS,
        )  # fmt: skip
    return _enforce_data(problem, x, options.measured)


def _denoise_in_batches(D: samplers.Denoiser, count: int) -> samplers.Denoiser:
    """Return D on ``count`` batch elements at a time, which bounds the memory."""
    return lambda x, sigma: torch.cat([D(x[i : i + count], sigma) for i in range(0, len(x), count)])


def _restrict_to_support(D: samplers.Denoiser, A: Fourier) -> samplers.Denoiser:
    """Return D on the support of the maps and zero outside, where no coil sees an object and no data constrain it.

    D sees the box around the support with a margin, since air takes as long to compute as the object.
    """
    inside = A.support > 0
    rows, columns = _find_box(inside, MARGIN)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        x0_hat = torch.zeros_like(x)
        x0_hat[..., rows, columns] = D(x[..., rows, columns], sigma)
        return x0_hat * inside

    return denoise


def _find_box(inside: Tensor, margin: int) -> tuple[slice, slice]:
    """Return rows and columns of the box around all that is inside (..., a, b), ``margin`` pixels wider."""
    occupied = inside.flatten(0, -3).any(dim=0)
    return _find_range(occupied.any(dim=1), margin), _find_range(occupied.any(dim=0), margin)


def _find_range(occupied: Tensor, margin: int) -> slice:
    where = occupied.nonzero()
    if not len(where):
        return slice(0, len(occupied))
    return slice(max(int(where[0]) - margin, 0), int(where[-1]) + 1 + margin)


def _enforce_data(problem: Problem, x: Tensor, measured: str) -> Tensor:
    """Return ``x`` made consistent with the samples: within their noise (chi-square at most one), or exactly.

    "auto" keeps them exactly where one coil measured and the noise level is a guess: with one coil that amplifies no
    noise, while smoothing by a wrong level would take signal away. Several coils at high acceleration do amplify it.
    """
    A, y, sigma_y = problem.A, problem.y, problem.sigma_y
    if measured == "auto":
        measured = "exactly" if y.shape[1] == 1 and not problem.noise_is_known else "within noise"
    if measured == "exactly":
        return samplers.enforce_consistency(A, A.H(y), x, 1e4, iterations=10)
    return uncertainty.apply_discrepancy_principle(A, y, x, sigma_y, limit=(TERMINAL_SD / sigma_y) ** 2)


def count_evaluations(options: Options) -> int:
    """Return the calls of the denoiser per image of a slice, without those of an adaptation."""
    n = options.steps
    each = {"dds": n, "adadiff": n, "dps": n, "score_mri": 2 * n - 1, "ald": 3 * n + 1}[options.solver]
    return _mean_steps(options) + options.samples * each
