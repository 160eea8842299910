"""Undersampled Cartesian k-space to an MR image, with what the data leave uncertain.

Input: ``kspace`` (:class:`pipelines.contract.KSpace`), any number of coils and slices; a 3D acquisition comes as
slices, transformed along its readout. Output: the magnitude of the posterior-mean estimate, the voxel-wise standard
deviation of posterior samples, the region where it is large, and measurements of fit. Values are in the units of the
samples (an orthonormal Fourier transform apart), which for MR are arbitrary: unit "1".

Model: y = A x + e with A = P F S and white e; prior: the bundle ``mri_prior``, a denoiser of complex images whose
99th percentile of magnitude is one. Papers: ESPIRiT (Uecker 2014), DDS (Chung 2024), EDM (Karras 2022).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from model_zoo import classical, samplers, uncertainty
from model_zoo.operators import Fourier, centred_fft
from pipelines.contract import (
    Case,
    Code,
    Finding,
    Grid,
    Image,
    Input,
    KSpace,
    Measurement,
    ParametricMap,
    Pipeline,
    Progress,
    Refused,
    Segment,
    Segmentation,
    Volume,
)
from pipelines.encoding import Problem, check, prepare

if TYPE_CHECKING:
    from model_zoo.registry import Model

__all__ = ["PIPELINE", "Options", "draw", "estimate", "evaluations", "low_confidence", "on_grid", "run"]

STANDARD_DEVIATION = Code("386136009", "SCT", "Standard Deviation")
SPATIAL = Code("309825002", "SCT", "Spatial and Relational Concept")
LOW_CONFIDENCE = Code("LOWCONF", "99DICOMNODE", "Low-confidence region of a reconstruction")

TERMINAL_SD = 0.05
"""Largest error of an estimate that terminal consistency corrects for, in units of the 99th percentile."""


class Options(BaseModel):
    """What a route may set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    solver: Literal["dds", "dps", "score_mri", "ald"] = "dds"
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


def estimate(problem: Problem, model: Model, options: Options) -> Tensor:
    """Posterior-mean estimate (slice, a, b), scaled: annealed without injected noise, then kept to the data."""
    D, A, y = _inside(model.denoiser, problem.A), problem.A, problem.y
    sigmas = samplers.karras(options.mean_sigma_max, options.mean_sigma_min, options.mean_steps)
    x = samplers.posterior_mean(
        D,
        A,
        y,
        sigmas,
        sigma_y=problem.sigma_y,
        sigma_data=model.denoiser.sigma_data,
        start=classical.cg_sense(A, y, ridge=0.05),
    )
    return _keep_measured(problem, x, options.measured)


def draw(problem: Problem, model: Model, options: Options, seeds: list[int]) -> Tensor:
    """One posterior sample per slice and seed; ``problem`` holds one slice per seed."""
    D, A, y = _inside(model.denoiser, problem.A), problem.A, problem.y
    noise = samplers.noise_source(seeds)
    sigmas = samplers.karras(options.sigma_max, options.sigma_min, options.steps)
    if options.solver == "dds":
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


def on_grid(x: Tensor, fov_mm: tuple[float, float], grid: Grid) -> Tensor:
    """Images (slice, a, b) over ``fov_mm`` evaluated at the pixels of ``grid``: crop, and zero-fill interpolation.

    x(r) = sum_k X_k exp(2 pi i k r / fov), exact for any pixel size; pixel n // 2 of either lattice is the same point.
    Amplitudes are those of the object, whatever the matrix.
    """
    X = centred_fft(x)
    rows = _interpolation(X.shape[-2], fov_mm[0], grid.shape[1], grid.spacing_mm[1])
    columns = _interpolation(X.shape[-1], fov_mm[1], grid.shape[2], grid.spacing_mm[2])
    found: Tensor = torch.einsum("ja,sab,ib->sji", rows, X, columns)
    return found


def _interpolation(n: int, fov_mm: float, count: int, spacing_mm: float) -> Tensor:
    k = torch.arange(n, dtype=torch.float64) - n // 2
    r = (torch.arange(count, dtype=torch.float64) - count // 2) * spacing_mm
    E: Tensor = torch.exp(2j * torch.pi * r[:, None] * k[None, :] / fov_mm) / n**0.5
    return E.to(torch.complex64)


def _encoded_pixel(k: KSpace) -> tuple[float, float]:
    """Size of an encoded pixel in delivered pixels (j, i)."""
    (fov_a, fov_b), (na, nb) = k.encoded_fov_mm, k.mask.shape[1:]
    _, spacing_j, spacing_i = k.grid.spacing_mm
    return fov_a / na / spacing_j, fov_b / nb / spacing_i


@dataclass(frozen=True)
class _Slice:
    """One reconstructed slice on the delivered grid, in physical units: image, sd (j, i), and its chi-square."""

    image: Tensor
    sd: Tensor
    chi_square: float


def run(case: Case, model: Model, options: Options, seed: int, progress: Progress) -> list[Finding]:
    """Reconstruct every slice: estimate, samples, standard deviation, low-confidence region, fit to the data."""
    k = case["kspace"]
    if not isinstance(k, KSpace):
        raise Refused("mri_reconstruction takes k-space, not an image")
    check(k)
    progress(0.0, "coils")
    with torch.no_grad():
        problem = prepare(k, coil_energy=options.coil_energy)
        slices = []
        for i in range(len(problem.y)):
            progress(0.05 + 0.9 * i / len(problem.y), f"slice {i + 1} of {len(problem.y)}")
            one = problem.slices(i, i + 1).to(model.device)
            slices.append(_slice(one, k, model, options, _seed(seed, i)))
    progress(0.95, "findings")
    image = Volume(torch.stack([s.image for s in slices]).numpy(), k.grid)
    sd = Volume(uncertainty.pooled(torch.stack([s.sd for s in slices]).numpy(), _encoded_pixel(k)), k.grid)
    return [*_findings(k, image, sd, options), *_measurements(k, problem, options, [s.chi_square for s in slices])]


def _slice(one: Problem, k: KSpace, model: Model, options: Options, seed: int) -> _Slice:
    x = estimate(one, model, options)
    chi_square = float(uncertainty.chi_square(one.A, x, one.y, one.sigma_y)[0])
    image = _delivered(one, x, k)[0]
    _, sd = uncertainty.mean_and_sd(_sample_magnitudes(one, k, model, options, seed))
    return _Slice(image, sd, chi_square)


def _sample_magnitudes(one: Problem, k: KSpace, model: Model, options: Options, seed: int) -> Iterator[Tensor]:
    seeds = [_seed(seed, n) for n in range(options.samples)]
    for start in range(0, options.samples, options.batch):
        part = seeds[start : start + options.batch]
        many = one.repeat(len(part))
        yield from _delivered(many, draw(many, model, options, part), k)


def _delivered(problem: Problem, x: Tensor, k: KSpace) -> Tensor:
    """Magnitude on the delivered grid in physical units, float32 (slice, j, i)."""
    return on_grid((x * problem.gain).cpu(), k.encoded_fov_mm, k.grid).abs()


def _seed(seed: int, index: int) -> int:
    """A seed per slice and sample, the same however the work is split."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:7], "big")


def low_confidence(image: NDArray[np.float32], sd: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """1 inside the object where sd exceeds ``threshold`` times the signal, taken as a quarter of its 99th percentile
    where it is less."""
    level = float(np.quantile(image, 0.99))
    inside = image > 0.1 * level
    return (inside & (sd > threshold * np.maximum(image, 0.25 * level))).astype(np.uint8)


def _findings(k: KSpace, image: Volume, sd: Volume, options: Options) -> list[Finding]:
    words = f"MR reconstruction with a diffusion prior ({options.solver})"
    segment = Segment(
        1, "Low confidence", SPATIAL, LOW_CONFIDENCE,
        f"Standard deviation above {options.low_confidence:g} of the signal",
    )  # fmt: skip
    labels = low_confidence(image.data, sd.data, options.low_confidence)
    return [
        Image("reconstruction", image, words, k.slice_thickness_mm),
        ParametricMap(
            "standard deviation", sd, STANDARD_DEVIATION,
            f"Standard deviation of {options.samples} posterior samples, pooled over neighbours", k.slice_thickness_mm,
        ),
        Segmentation(
            "low confidence", labels, k.grid, (segment,),
            "Region where the data leave the image uncertain", k.slice_thickness_mm,
        ),
    ]  # fmt: skip


def _measurements(k: KSpace, problem: Problem, options: Options, chi_square: list[float]) -> list[Finding]:
    return [
        Measurement("acceleration", float(k.mask.size / k.mask.sum()), "1", "Positions over acquired samples"),
        Measurement("denoiser evaluations", float(evaluations(options)), "1", "Per slice: estimate and all samples"),
        Measurement(
            "noise level", problem.noise_sd, "1",
            f"Standard deviation of a noise component, from {problem.noise_from}",
        ),
        Measurement(
            "chi-square", float(np.mean(chi_square)), "1",
            "Mean squared residual of the measured samples over their noise variance: 1 is within the noise, 0 exact",
        ),
        Measurement("chi-square, worst slice", float(max(chi_square, key=lambda c: abs(np.log(max(c, 1e-9))))), "1"),
        Measurement("scale", float(problem.gain.amax(dim=(1, 2)).mean()), "1", "What the prior saw as one"),
        Measurement("coils used", float(problem.y.shape[1]), "1", f"Maps: {problem.maps_from}"),
    ]  # fmt: skip


def evaluations(options: Options) -> int:
    """Calls of the denoiser per slice."""
    n = options.steps
    each = {"dds": n, "dps": n, "score_mri": 2 * n - 1, "ald": 3 * n + 1}[options.solver]
    return options.mean_steps + options.samples * each


PIPELINE = Pipeline(
    name="mri_reconstruction",
    title="MR image from undersampled k-space",
    inputs=(Input("kspace", KSpace),),
    bundle="mri_prior",
    options_type=Options,
    run=run,
)
