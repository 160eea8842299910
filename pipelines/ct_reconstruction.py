"""CT image from few or noisy projections, with its uncertainty.

Input: ``projections`` (:class:`pipelines.contract.Projections`), parallel beams or fans, slice by slice. Output: the
image in HU, a mean of the estimate and posterior samples; the voxel-wise standard deviation of the samples in HU; the
region where it is large; measurements of fit, and of the angles that were not measured.

Model: y = A x + e, A the projection with each ray weighted by its photons, e white; prior: the bundle ``ct_prior``, a
denoiser of CT slices. Views that were held out set the share of the estimate in the image and scale the spread. A scan
that lacks a part of half a turn has directions in which edges were not measured: they are the prior's, and the result
is held for a person, as is one whose orientation in the patient is an assumption. One energy, no scatter, no cone, no
helix. Papers: DDS (Chung 2024), EDM (Karras 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_zoo import uncertainty
from pipelines.codes import LOW_CONFIDENCE, SPATIAL, STANDARD_DEVIATION
from pipelines.contract import (
    Case,
    Finding,
    Image,
    Input,
    Measurement,
    Note,
    ParametricMap,
    Pipeline,
    Progress,
    Projections,
    Refused,
    Segment,
    Segmentation,
    Volume,
)
from pipelines.ct_inversion import (
    CtProblem,
    Options,
    count_evaluations,
    draw_samples,
    estimate,
    measure_spread,
    prepare_scan,
)
from pipelines.seeds import derive_seed
from pipelines.spread import Spread, mix_images

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["PIPELINE", "find_outside_share", "find_truncated_share", "run"]

HU = "[hnsf'U]"
"""Hounsfield unit in UCUM."""
_EDGE_BINS = 2
_IN_AIR = 0.1
"""Line integral at the edge of the detector up to which a view may pass by the object: 5 mm of water."""


def run(case: Case, model: Model, options: Options, seed: int, progress: Progress) -> list[Finding]:
    """Reconstruct all slices: estimate, samples, sd, low-confidence region, fit to the data, missing angles."""
    scan = case["projections"]
    if not isinstance(scan, Projections):
        raise Refused("ct_reconstruction takes projections, not an image")
    model = replace(model, bf16=options.bf16)
    with torch.no_grad():
        progress(0.0, "projection matrix")
        problem = prepare_scan(scan)
        progress(0.05, "spread against held-out views")
        spread = measure_spread(problem, model, options, derive_seed(seed, -1))
        image, sd, chi_square = _reconstruct_slices(problem, spread, model, options, seed, progress)
    if not np.isfinite(image).all():
        raise Refused("the reconstruction is not finite: the projections contradict their geometry")
    return [
        *_make_images(scan, image, _calibrate(image, sd, spread), options, spread),
        *_measure(scan, options, spread, chi_square),
        *_write_notes(scan),
    ]


def _reconstruct_slices(
    problem: CtProblem, spread: Spread, model: Model, options: Options, seed: int, progress: Progress
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[float]]:
    """Return image and sd of the samples (slice, j, i) in units of water, and the chi-square of each slice."""
    images, sds, chi_square = [], [], []
    count = len(problem.y)
    for i in range(count):
        progress(0.1 + 0.85 * i / count, f"slice {i + 1} of {count}")
        one = problem.one_slice(i)
        x = estimate(one, model, options)
        mean, sd = uncertainty.mean_and_sd(_draw_one_by_one(one, x, model, options, derive_seed(seed, i)))
        image = mix_images(x, mean[None], spread.share)
        chi_square.append(float(uncertainty.chi_square(one.A, image, one.y, one.sigma_y)))
        images.append(image[0].numpy())
        sds.append(sd.numpy())
    return np.stack(images), np.stack(sds), chi_square


def _draw_one_by_one(one: CtProblem, x: Tensor, model: Model, options: Options, seed: int) -> Iterator[Tensor]:
    """Yield posterior samples (j, i), which are drawn in batches."""
    for start in range(0, options.samples, options.batch):
        seeds = [derive_seed(seed, n) for n in range(start, min(start + options.batch, options.samples))]
        yield from draw_samples(one.repeat(len(seeds)), model, options, seeds, x.expand(len(seeds), -1, -1))


def _calibrate(image: NDArray[np.float32], sd: NDArray[np.float32], spread: Spread) -> NDArray[np.float32]:
    return uncertainty.calibrate_sd(uncertainty.pool_sd(sd, (1.0, 1.0)), image, spread.factor)


def _make_images(
    scan: Projections, image: NDArray[np.float32], sd: NDArray[np.float32], options: Options, spread: Spread
) -> list[Finding]:
    scale = "scaled by held-out views" if spread.evaluations else "with the usual scale: no view was held out"
    hu, sd_hu = (Volume((1000 * each).astype(np.float32), scan.grid, HU) for each in (image - 1, sd))
    segment = Segment(
        1, "Low confidence", SPATIAL, LOW_CONFIDENCE, f"Standard deviation above {options.low_confidence_hu:g} HU"
    )
    labels = (sd_hu.data > options.low_confidence_hu).astype(np.uint8)
    name, thickness = "reconstruction", scan.slice_thickness_mm
    return [
        Image(name, hu, "CT reconstruction with a diffusion prior", thickness),
        ParametricMap(
            "standard deviation", sd_hu, STANDARD_DEVIATION,
            f"Standard deviation of {options.samples} samples, {scale}", thickness, image_name=name,
        ),
        Segmentation(
            "low confidence", labels, scan.grid, (segment,), "Region where the data leave the image uncertain",
            thickness, image_name=name,
        ),
    ]  # fmt: skip


def _measure(scan: Projections, options: Options, spread: Spread, chi_square: list[float]) -> list[Measurement]:
    calls = count_evaluations(options) + spread.evaluations / len(chi_square)
    worst = max(chi_square, key=lambda c: abs(np.log(max(c, 1e-9))))
    return [
        Measurement("views", float(scan.beam.views), "1", f"Over an arc of {scan.beam.arc_deg:.4g} degrees"),
        Measurement("missing angle", scan.beam.missing_deg, "deg", "What the arc lacks to half a turn and the fan"),
        Measurement("median photons", float(np.median(scan.counts)), "1", "Photons that a ray detected"),
        Measurement("truncated views", find_truncated_share(scan), "1", "Views where the object leaves the detector"),
        Measurement("object outside", find_outside_share(scan), "1", "Views where the object leaves the image"),
        Measurement("denoiser evaluations", calls, "1", "Per slice: held-out views, estimate, all samples"),
        Measurement(
            "chi-square", float(np.mean(chi_square)), "1",
            "Mean squared residual of the rays over their noise variance: 1 is within the noise, 0 exact",
        ),
        Measurement("chi-square, worst slice", worst, "1"),
        Measurement(
            "sd factor", spread.factor, "1",
            f"What multiplies the samples' standard deviation: {uncertainty.BEYOND:g} times what held-out data require",
        ),
        Measurement(
            "share of the estimate", spread.share, "1",
            "Part of the image that is the estimate, by held-out data; the rest is the mean of the samples",
        ),
    ]  # fmt: skip


def find_truncated_share(scan: Projections) -> float:
    """Return the share of views at whose edge of the detector the object has not ended."""
    edges = np.stack([scan.line_integrals[..., :_EDGE_BINS], scan.line_integrals[..., -_EDGE_BINS:]])
    photons = np.stack([scan.counts[..., :_EDGE_BINS], scan.counts[..., -_EDGE_BINS:]]).sum(axis=-1)
    limit = _IN_AIR + 3 / np.sqrt(np.maximum(photons, 1.0))
    return float((edges.mean(axis=-1) > limit).any(axis=0).mean())


def find_outside_share(scan: Projections) -> float:
    """Return the share of views with two neighbouring rays beside the image that met an object."""
    theta, t = scan.beam.rays
    rows, columns = scan.beam.shape
    half_mm = scan.beam.pixel_mm / 2 * (columns * np.abs(np.cos(theta)) + rows * np.abs(np.sin(theta)))
    is_beside = np.abs(t) > half_mm + scan.beam.bin_mm
    limit = _IN_AIR + 3 / np.sqrt(np.maximum(scan.counts, 1.0))
    is_object = is_beside & (scan.line_integrals > limit)
    return float((is_object[..., 1:] & is_object[..., :-1]).any(axis=-1).mean())


def _write_notes(scan: Projections) -> list[Note]:
    notes = []
    if scan.beam.missing_deg > 0:
        last = scan.beam.first_deg + scan.beam.arc_deg
        text = (
            f"no view between {last:.4g} and {last + scan.beam.missing_deg:.4g} degrees: edges along these directions "
            "were not measured and are the model's; structures may be missing or invented, and the standard deviation "
            "does not cover them"
        )
        notes.append(Note("missing angles", text, holds_result=True))
    if scan.assumptions:
        is_placed = not any(each.startswith("orientation") for each in scan.assumptions)
        notes.append(Note("assumed", "; ".join(scan.assumptions), holds_result=not is_placed))
    return notes


PIPELINE = Pipeline(
    name="ct_reconstruction",
    title="CT image from few or noisy projections",
    inputs=(Input("projections", Projections),),
    bundle="ct_prior",
    options_type=Options,
    run=run,
)
