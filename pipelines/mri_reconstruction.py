"""MR image from undersampled Cartesian k-space, with its uncertainty.

Input: ``kspace`` (:class:`pipelines.contract.KSpace`), any number of coils and slices; a 3D acquisition comes as
slices, transformed along its readout. Further contrasts or sets of the acquisition come as further k-space ("kspace 2",
...) and are images of their own, with the coils' maps of one of them. Output for each: the magnitude of a mean of the
estimate and posterior samples, the voxel-wise standard deviation of the samples, the region where it is large, and
measurements of fit. Values are in the units of k-space (an orthonormal Fourier transform apart), which for MR are
arbitrary: unit "1".

Model: y = A x + e with A = P F S and white e; prior: the bundle ``mri_prior``, a denoiser of complex images whose
99th percentile of magnitude is one. Thin slices without gaps can be coupled in the estimate. Samples start at the
estimate and are drawn slice by slice, with the original prior. Samples of k-space that were held out set the share of
the estimate in the image and scale the spread. By the option ``coils``, several coils without calibration lines are
reconstructed each by itself and combined by the root sum of squares (``pipelines.separate_coils``); such a result is
held for a person. Papers: ESPIRiT (Uecker 2014), DDS (Chung 2024), EDM (Karras 2022), AdaDiff (Güngör 2023, as
corrected in ``model_zoo.adaptation``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_zoo import uncertainty
from model_zoo.operators import centred_fft, magnitude
from pipelines.codes import LOW_CONFIDENCE, SPATIAL, STANDARD_DEVIATION
from pipelines.contract import (
    Case,
    Finding,
    Grid,
    Image,
    Input,
    KSpace,
    Measurement,
    Note,
    ParametricMap,
    Pipeline,
    Progress,
    Refused,
    Segment,
    Segmentation,
    Volume,
)
from pipelines.encoding import Problem, check_acquisition, find_separate, prepare_acquisition
from pipelines.inversion import (
    Options,
    adapt_prior,
    count_evaluations,
    draw_samples,
    estimate_slices,
    estimate_volume,
    is_volume,
)
from pipelines.seeds import derive_seed
from pipelines.separate_coils import combine_coil_images, prepare_separate_coils
from pipelines.spread import SLICES, Spread, evaluations_held_out, measure_spread, mix_images

if TYPE_CHECKING:
    from model_zoo.adaptation import Adaptation
    from model_zoo.bundle import Model

__all__ = ["PIPELINE", "find_low_confidence", "interpolate", "run"]


def interpolate(x: Tensor, fov_mm: tuple[float, float], grid: Grid) -> Tensor:
    """Evaluate images (slice, [set,] a, b) of ``fov_mm`` at the pixels of ``grid``: crop, and zero-fill interpolation.

    x(r) = sum_k X_k exp(2 pi i k r / fov), exact for any pixel size; pixel n // 2 of either grid is the same point.
    Amplitudes are those of the object, whatever the matrix.
    """
    X = centred_fft(x)
    rows = _interpolation(X.shape[-2], fov_mm[0], grid.shape[1], grid.spacing_mm[1])
    columns = _interpolation(X.shape[-1], fov_mm[1], grid.shape[2], grid.spacing_mm[2])
    result: Tensor = torch.einsum("ja,...ab,ib->...ji", rows, X, columns)
    return result


def _interpolation(n: int, fov_mm: float, count: int, spacing_mm: float) -> Tensor:
    k = torch.arange(n, dtype=torch.float64) - n // 2
    r = (torch.arange(count, dtype=torch.float64) - count // 2) * spacing_mm
    E: Tensor = torch.exp(2j * torch.pi * r[:, None] * k[None, :] / fov_mm) / n**0.5
    return E.to(torch.complex64)


def _encoded_pixel(k: KSpace) -> tuple[float, float]:
    """Return the size of an encoded pixel in delivered pixels (j, i)."""
    (fov_a, fov_b), (na, nb) = k.encoded_fov_mm, k.mask.shape[1:]
    _, spacing_j, spacing_i = k.grid.spacing_mm
    return fov_a / na / spacing_j, fov_b / nb / spacing_i


@dataclass(frozen=True)
class _Slice:
    """Reconstructed slice on the delivered grid, in physical units: image, sd (j, i), and its chi-square."""

    image: Tensor
    sd: Tensor
    chi_square: float


def run(case: Case, model: Model, options: Options, seed: int, progress: Progress) -> list[Finding]:
    """Reconstruct every image of the acquisition: estimate, samples, sd, low-confidence region, fit to the data."""
    images = [k for k in case.inputs.values() if isinstance(k, KSpace)]
    if not images:
        raise Refused("mri_reconstruction takes k-space, not an image")
    check_acquisition(images, options.coils)
    progress(0.0, "coils")
    model = replace(model, bf16=options.bf16)
    findings: list[Finding] = []
    with torch.no_grad():
        problems = _prepare(images, options)
        for n, (k, problem) in enumerate(zip(images, problems, strict=True)):
            findings += _reconstruct_image(
                k,
                problem,
                model,
                options,
                seed if n == 0 else derive_seed(seed, -n),
                _scale_progress(progress, n, len(images)),
            )
    return [*findings, *_worst_fit(findings)]


def _prepare(images: Sequence[KSpace], options: Options) -> list[Problem]:
    """Return the problem of each image, with maps or, as the option ``coils`` says, without."""
    separate = find_separate(images, options.coils)
    with_maps = [k for k, without in zip(images, separate, strict=True) if not without]
    prepared = iter(prepare_acquisition(with_maps, coil_loss=options.coil_loss) if with_maps else ())
    problems = [
        prepare_separate_coils(k, coil_loss=options.coil_loss) if without else next(prepared)
        for k, without in zip(images, separate, strict=True)
    ]
    for k, problem in zip(images, problems, strict=True):
        if problem.separate_coils > 1:
            _check_effort(k, problem, options)
    return problems


def _check_effort(k: KSpace, problem: Problem, options: Options) -> None:
    """Refuse what coils without maps cannot do, and what would take too long."""
    if options.across_slices > 0 and is_volume(k):
        raise Refused("k-space: slices cannot be coupled without coil maps: set across_slices = 0")
    held_out = evaluations_held_out(options) * min(SLICES, problem.slice_count) / problem.slice_count
    calls = problem.separate_coils * (count_evaluations(options) + (held_out if options.held_out > 0 else 0))
    if calls > options.most_evaluations:
        raise Refused(
            f"k-space: {problem.separate_coils} coils without maps need {calls:.0f} evaluations of the denoiser per "
            f"slice, above most_evaluations = {options.most_evaluations}: lower steps or samples, or raise it"
        )


def _scale_progress(progress: Progress, n: int, count: int) -> Progress:
    return lambda done, step: progress((n + done) / count, step)


def _reconstruct_image(
    k: KSpace, problem: Problem, model: Model, options: Options, seed: int, progress: Progress
) -> list[Finding]:
    """Reconstruct one image and return its findings."""
    extra: list[Measurement] = []
    prior, adaptation_calls = model, 0
    if options.solver == "adadiff":
        progress(0.02, _with_label("adaptation", k))
        prior, adaptation = adapt_prior(problem, model, options, derive_seed(seed, -1))
        adaptation_calls = adaptation.evaluations
        extra = _measure_adaptation(adaptation)
    progress(0.04, _with_label("spread against held-out samples", k))
    is_coupled = options.across_slices > 0 and is_volume(k)
    spread = measure_spread(problem, prior, model, options, derive_seed(seed, -2), is_coupled=is_coupled)
    extra += _measure_spread(spread)
    volume = None
    if is_coupled:
        progress(0.05, _with_label("estimate across slices", k))
        volume = estimate_volume(problem.to(model.device), prior, options)
    slices, count = [], problem.slice_count
    for i in range(count):
        progress(0.05 + 0.9 * i / count, _with_label(f"slice {i + 1} of {count}", k))
        one = problem.one_slice(i).to(model.device)
        x = estimate_slices(one, prior, options) if volume is None else volume[i : i + 1]
        slices.append(_reconstruct_slice(one, x, spread.share, k, model, options, derive_seed(seed, i)))
    progress(0.95, "findings")
    image = Volume(torch.stack([s.image for s in slices]).numpy(), k.grid)
    pooled = uncertainty.pool_sd(torch.stack([s.sd for s in slices]).numpy(), _encoded_pixel(k))
    sd = Volume(uncertainty.calibrate_sd(pooled, image.data, spread.factor), k.grid)
    calls = problem.images_per_slice * count_evaluations(options) + (adaptation_calls + spread.evaluations) / len(
        slices
    )
    fit = [*_measurements(k, problem, calls, [s.chi_square for s in slices]), *extra]
    notes = [_note_on_coils(k, problem)] if problem.separate_coils > 1 else []
    return [*_findings(k, image, sd, options, problem), *(replace(m, group=k.label) for m in fit), *notes]


def _reconstruct_slice(
    one: Problem, estimate: Tensor, share: float, k: KSpace, model: Model, options: Options, seed: int
) -> _Slice:
    """Draw the samples of one slice and return its image, sd and chi-square; ``share``: of the estimate in the image.

    Estimate and samples explain the data, so that their mean does.
    """
    mean = torch.zeros_like(estimate)

    def deliver_samples() -> Iterator[Tensor]:
        for sample in _draw_one_by_one(one, estimate, model, options, seed):
            mean.add_(sample / options.samples)
            yield _to_delivered_grid(one, sample, k)[0]

    _, sd = uncertainty.mean_and_sd(deliver_samples())
    x = mix_images(estimate, mean, share)
    chi_square = float(uncertainty.chi_square(one.A, x, one.y, one.sigma_y).mean())
    return _Slice(_to_delivered_grid(one, x, k)[0], sd, chi_square)


def _with_label(name: str, k: KSpace) -> str:
    return f"{name}, {k.label}" if k.label else name


def _describe(k: KSpace, words: str) -> str:
    """Return the description with the label first, because a series' description has 64 characters."""
    return f"{k.label}: {words}" if k.label else words


def _draw_one_by_one(one: Problem, x: Tensor, model: Model, options: Options, seed: int) -> Iterator[Tensor]:
    """Yield posterior samples (coil without map or one, [set,] a, b), which are drawn in batches."""
    batch = max(options.batch // one.separate_coils, 1)
    for start in range(0, options.samples, batch):
        numbers = range(start, min(start + batch, options.samples))
        batch_seeds = [derive_seed(seed, options.samples * c + n) for c in range(one.separate_coils) for n in numbers]
        repeated, estimate = one.repeat(len(numbers)), x.repeat_interleave(len(numbers), 0)
        found = draw_samples(repeated, model, options, batch_seeds, estimate)
        yield from found.reshape(len(x), len(numbers), *found.shape[1:]).unbind(dim=1)


def _to_delivered_grid(problem: Problem, x: Tensor, k: KSpace) -> Tensor:
    """Return the magnitude on the delivered grid in physical units, float32 (slice, j, i)."""
    images = interpolate(problem.in_units(x).cpu(), k.encoded_fov_mm, k.grid)
    return magnitude(images) if problem.separate_coils == 1 else combine_coil_images(images, problem, x)


def find_low_confidence(image: NDArray[np.float32], sd: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Return 1 inside the object where sd exceeds ``threshold`` times the signal, else 0.

    A signal below a quarter of its 99th percentile counts as that quarter.
    """
    level = float(np.quantile(image, 0.99))
    inside = image > 0.1 * level
    return (inside & (sd > threshold * np.maximum(image, 0.25 * level))).astype(np.uint8)


def _findings(k: KSpace, image: Volume, sd: Volume, options: Options, problem: Problem) -> list[Finding]:
    name = _with_label("reconstruction", k)
    words = "MR reconstruction" if problem.separate_coils == 1 else "MR without coil maps"
    segment = Segment(
        1, "Low confidence", SPATIAL, LOW_CONFIDENCE,
        f"Standard deviation above {options.low_confidence:g} of the signal",
    )  # fmt: skip
    labels = find_low_confidence(image.data, sd.data, options.low_confidence)
    return [
        Image(
            name, image, _describe(k, f"{words} with a diffusion prior ({options.solver})"),
            k.slice_thickness_mm, modality="MR",
        ),
        ParametricMap(
            _with_label("standard deviation", k), sd, STANDARD_DEVIATION,
            _describe(k, f"Standard deviation of {options.samples} samples, scaled by held-out data"),
            k.slice_thickness_mm, image_name=name,
        ),
        Segmentation(
            _with_label("low confidence", k), labels, k.grid, (segment,),
            _describe(k, "Region where the data leave the image uncertain"), k.slice_thickness_mm, image_name=name,
        ),
    ]  # fmt: skip


def _measurements(k: KSpace, problem: Problem, calls: float, chi_square: list[float]) -> list[Measurement]:
    measurements = [
        Measurement("acceleration", float(k.mask.size / k.mask.sum()), "1", "Positions over acquired samples"),
        Measurement("denoiser evaluations", calls, "1", "Per slice: adaptation, held-out data, estimate, all samples"),
        Measurement(
            "noise level", problem.noise_sd, "1",
            f"Standard deviation of a noise component, from {problem.noise_from}",
        ),
        Measurement(
            "chi-square", float(np.mean(chi_square)), "1",
            "Mean squared residual of the measured samples over their noise variance: 1 is within the noise, 0 exact",
        ),
        Measurement("chi-square, worst slice", float(max(chi_square, key=lambda c: abs(np.log(max(c, 1e-9))))), "1"),
        Measurement("scale", float(problem.gain.abs().flatten(1).amax(dim=1).mean()), "1", "What the prior saw as one"),
        Measurement(
            "coils used", float(problem.separate_coils * problem.y.shape[1]), "1", f"Maps: {_describe_maps(problem)}"
        ),
        Measurement(
            "coil compression loss", problem.coil_loss, "1",
            "Largest share of the local energy of the coils' coarse images, beyond noise, that fewer coils lose",
        ),
    ]  # fmt: skip
    if problem.folded_share is not None:
        meaning = "Largest share of the object in a slice in which two places fold into one (second ESPIRiT eigenvalue)"
        measurements.append(Measurement("folded share", problem.folded_share, "1", meaning))
    if problem.unexplained_share is not None:
        meaning = "Largest share of the local energy of the coils' calibration images, beyond noise, outside the maps"
        measurements.append(Measurement("unexplained coil energy", problem.unexplained_share, "1", meaning))
    return measurements


def _note_on_coils(k: KSpace, problem: Problem) -> Note:
    why = "the acquisition has no calibration lines" if k.calibration is None else "the option coils asks for it"
    text = (
        f"each of {problem.separate_coils} coils was reconstructed by itself, because {why}. Errors are larger than "
        "with coil maps, and a structure may be missing or invented"
    )
    return Note(_with_label("without coil maps", k), text, holds_result=True)


def _describe_maps(problem: Problem) -> str:
    return problem.maps_from if problem.A.sets == 1 else f"{problem.maps_from}, {problem.A.sets} sets (soft SENSE)"


def _measure_spread(spread: Spread) -> list[Measurement]:
    return [
        Measurement(
            "sd factor", spread.factor, "1",
            f"What multiplies the samples' standard deviation: {uncertainty.BEYOND:g} times what held-out data require",
        ),
        Measurement(
            "share of the estimate", spread.share, "1",
            "Part of the image that is the estimate, by held-out data; the rest is the mean of the samples",
        ),
    ]  # fmt: skip


def _measure_adaptation(how: Adaptation) -> list[Measurement]:
    return [
        Measurement("adaptation steps", float(how.steps), "1", "Each with a gradient through the denoiser"),
        Measurement(
            "held-out chi-square before adaptation", how.before, "1",
            "Mean squared residual of samples that nothing was made from, over their noise variance",
        ),
        Measurement("held-out chi-square after adaptation", how.after, "1", "Equal to before: no change was kept"),
    ]  # fmt: skip


_OF_THE_WORST_IMAGE = ("chi-square", "coil compression loss", "unexplained coil energy")


def _worst_fit(findings: Sequence[Finding]) -> list[Finding]:
    """Return the worst fit, loss and folding of several images, for the gate, which judges the complete result."""
    of_images = [m for m in findings if isinstance(m, Measurement) and m.group]
    judged = [[m for m in of_images if m.name == name] for name in _OF_THE_WORST_IMAGE]
    return [
        replace(max(each, key=lambda m: m.value), group="", description="Of the worst image") for each in judged if each
    ]


PIPELINE = Pipeline(
    name="mri_reconstruction",
    title="MR image from undersampled k-space",
    inputs=(Input("kspace", KSpace),),
    bundle="mri_prior",
    options_type=Options,
    run=run,
)
