"""Standard-dose PET from low-dose PET, in the input's own unit, with its uncertainty.

Input: ``pet`` (:class:`pipelines.contract.Volume`), one attenuation-corrected frame in a unit proportional to activity;
``mr`` (optional), an MR of the head of the same session, whose structures are the regions of the numbers and whose
tissues the network takes as region maps; ``ct`` (optional), the CT of the same examination, used likewise with its
tissues by CT number (the network takes the tissues that it was trained with); ``organs`` (optional), a segmentation of
organs in the same frame of reference, which the network takes in place of the CT's tissues. Output, on the grid and in
the unit of ``pet``: the restored image, its standard deviation, the region where that is large, and SUVmean, SUVmax and
SUVpeak before and after.

Model: bundle ``standard_dose_pet``, trained on simulation as ``model_zoo.standard_dose`` describes, after Jiang et al.
The image is resampled to isotropic voxels that the network knows, and back; the scale is a robust percentile of the
low-dose image, so that its inverse is exact; total activity equals the input's to within 1 %. The dose fraction is an
option, because hardly a header states it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from model_zoo import standard_dose
from pipelines.anatomy import check_magnitude
from pipelines.codes import LOW_CONFIDENCE, SPATIAL, STANDARD_DEVIATION
from pipelines.contract import (
    Case,
    Code,
    Finding,
    Grid,
    Image,
    Input,
    Labels,
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
from pipelines.ct_regions import CtTissues, find_ct_tissues
from pipelines.head_regions import HeadRegions, find_head_regions
from pipelines.injected_dose import check_dose_fraction
from pipelines.isotropic import IsotropicTransform, make_isotropic_transform
from pipelines.organ_regions import OrganRegions, find_organs
from pipelines.uptake import Region, Scale, average_over_ball, compare_uptake, dilate, find_body

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["PIPELINE", "Options", "check_pet", "resample_region_maps", "run"]

BODY = Code("38266002", "SCT", "Entire body")

LINEAR_UNITS = ("BQML", "GML", "CNTS", "CPS", "PROPCNTS", "PROPCPS", "CM2ML")
"""Units proportional to activity per volume; the others are fits, ratios or statistics."""
TOLERANCE = 0.01
"""Largest relative error of the total activity; beyond it one factor on the image restores the activity."""
SPILL_MM = 15.0
"""Reach of the body's activity beyond its edge."""
MOST_VOXELS = 16_000_000
SPACINGS_MM = (2.0, 4.0)


class Options(BaseModel):
    """Options of a route."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dose_fraction: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="dose of the image over the standard dose; no header states it",
    )
    blend: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of the restored image; the rest is the input with its noise",
    )
    low_confidence: float = Field(
        default=0.15,
        gt=0,
        description="standard deviation over activity above which a voxel is marked as of low confidence",
    )
    check_dose: bool = Field(
        default=True,
        description="hold results where the header contradicts the dose fraction; false for images of a part of the "
        "counts, whose headers state the whole dose",
    )


RegionMaps = list[HeadRegions | OrganRegions | CtTissues]
"""Regions from other images of the study, registered to the PET or not."""


@dataclass(frozen=True)
class _Restored:
    """The network's image, its sd, and the sd of the input's noise, (k, j, i) on the input's grid and in its unit.

    ``spacing_mm``: spacing of the voxels that the network saw.
    """

    mean: NDArray[np.float32]
    sd: NDArray[np.float32]
    noise_sd: NDArray[np.float32]
    spacing_mm: float


@dataclass(frozen=True)
class _Result:
    """Delivered result.

    ``image`` and ``sd``; ``body`` and the ``spill_region``, the body with its spill; ``correction``: factor that
    preserved the activity.
    """

    image: NDArray[np.float32]
    sd: NDArray[np.float32]
    body: NDArray[np.bool_]
    spill_region: NDArray[np.bool_]
    correction: float


def run(case: Case, model: Model, options: Options, seed: int, progress: Progress) -> list[Finding]:
    """Restore, preserve the activity, blend and measure. No step is random."""
    pet = case["pet"]
    if not isinstance(pet, Volume):
        raise Refused("standard_dose_pet takes a PET image")
    check_pet(pet, case.facts)
    region_maps = _find_regions(case, pet, model, progress)
    restored = _restore(pet, region_maps, model, options, lambda done: progress(0.3 + 0.5 * done, "restoring"))
    progress(0.8, "measuring")
    body = find_body(pet)
    result = _preserve_activity(pet, restored, body, options)
    return [
        *_images(pet, result, options),
        *_measure(pet, restored, result, _list_regions(body, region_maps), case.facts, options),
        *(check_dose_fraction(case.facts, pet.grid, options.dose_fraction) if options.check_dose else []),
        *_notes(case.facts, options, region_maps),
    ]


def check_pet(pet: Volume, facts: Mapping[str, Any]) -> None:
    """Raise Refused unless the header allows the image to be one frame of activity."""
    if facts.get("modality", "PT") != "PT":
        raise Refused(f"standard_dose_pet takes PET; the Modality (0008,0060) of this series is {facts['modality']}")
    units = str(facts.get("units", "BQML"))
    if units not in LINEAR_UNITS:
        raise Refused(f"Units (0054,1001) are {units}, not proportional to activity; needed is one of {LINEAR_UNITS}")
    series_type = [term.upper() for term in facts.get("series_type", ())]
    if {"DYNAMIC", "GATED", "REPROJECTION"} & set(series_type):
        raise Refused(f"Series Type (0054,1000) is {'/'.join(series_type)}; standard_dose_pet takes a static image")
    corrections = facts.get("corrections")
    if corrections is not None and "ATTN" not in corrections:
        raise Refused("Corrected Image (0028,0051) has no ATTN: without attenuation correction this is no activity")
    if min(pet.grid.shape) < 8:
        raise Refused(f"{min(pet.grid.shape)} voxels along one axis are too few for a volume; at least 8 are needed")
    if not np.isfinite(pet.data).all() or float(pet.data.max()) <= 0:
        raise Refused("the image holds no activity, or values that are no numbers")


def _find_regions(case: Case, pet: Volume, model: Model, progress: Progress) -> RegionMaps:
    """Return structures of the head by MR, organs by a segmentation and tissues by CT, where they were sent."""
    region_maps: RegionMaps = []
    mr, ct, organs = (case.inputs.get(name) for name in ("mr", "ct", "organs"))
    if isinstance(mr, Volume):
        check_magnitude(case.facts.get("mr", {}), "the MR")
        region_maps.append(
            find_head_regions(mr, pet, model.helpers["anatomy"], lambda done, step: progress(0.25 * done, step))
        )
    if isinstance(organs, Labels):
        region_maps.append(find_organs(organs, pet, case.facts.get("organs", {})))
    if isinstance(ct, Volume):
        progress(0.25, "tissues by CT")
        region_maps.append(find_ct_tissues(ct, pet, case.facts.get("ct", {})))
    return region_maps


def _spacing_mm(grid: Grid, model: Model) -> float:
    """Return the image's finest spacing within the range of training, coarser where that makes too many voxels."""
    least_mm, most_mm = map(float, model.settings.get("spacings_mm", SPACINGS_MM))
    affordable_mm = float((math.prod(grid.shape) * math.prod(grid.spacing_mm) / MOST_VOXELS) ** (1 / 3))
    return min(max(least_mm, min(grid.spacing_mm), affordable_mm), most_mm)


def _restore(
    pet: Volume, region_maps: RegionMaps, model: Model, options: Options, progress: Callable[[float], None]
) -> _Restored:
    isotropic = make_isotropic_transform(pet.grid, _spacing_mm(pet.grid, model))
    spacing_mm = isotropic.grid.spacing_mm[0]
    low = isotropic.to_isotropic(torch.from_numpy(pet.data).to(model.device))
    mean, sd = standard_dose.restore(
        model.network,
        low,
        options.dose_fraction,
        spacing_mm=spacing_mm,
        regions=resample_region_maps(region_maps, isotropic, model),
        progress=progress,
    )
    noise_sd = _to_image_grid(isotropic, standard_dose.estimate_noise_sd(low), linear=True)
    restored = np.maximum(_to_image_grid(isotropic, mean), 0)
    return _Restored(restored, _to_image_grid(isotropic, sd, linear=True), noise_sd, spacing_mm)


def _to_image_grid(isotropic: IsotropicTransform, x: Tensor, *, linear: bool = False) -> NDArray[np.float32]:
    result: NDArray[np.float32] = isotropic.from_isotropic(x.float(), linear=linear).cpu().numpy()
    return result


def resample_region_maps(region_maps: RegionMaps, isotropic: IsotropicTransform, model: Model) -> Tensor | None:
    """Return the region maps in the network's order, or None where it knows no registered ones; the MR's go first.

    The training told either organs or tissues by CT, so that organs replace the CT's tissues.
    """
    names = list(model.settings.get("regions", ()))
    fractions: Tensor | None = None
    for each in region_maps:
        if isinstance(each, CtTissues) and _tells_organs(region_maps):
            continue
        if each.is_registered and set(each.tissue_names) & set(names):
            maps = each.resample_fractions(names, isotropic.grid)
            fractions = maps if fractions is None else fractions + maps * (1 - fractions.sum(dim=0))
    return fractions.to(model.device) if fractions is not None and bool(fractions.any()) else None


def _tells_organs(region_maps: RegionMaps) -> bool:
    return any(isinstance(each, OrganRegions) and each.is_registered and each.tissue_names for each in region_maps)


def _preserve_activity(pet: Volume, restored: _Restored, body: NDArray[np.bool_], options: Options) -> _Result:
    """Restore the body's activity, then blend. Errors of network and noise add, because they are not independent."""
    spill_region = dilate(body, pet.grid, SPILL_MM)
    before, after = (float(x[spill_region].sum(dtype=np.float64)) for x in (pet.data, restored.mean))
    if before <= 0 or after <= 0:
        raise Refused("no activity is left in the body; this is no image of a tracer")
    correction = before / after if abs(after / before - 1) > TOLERANCE else 1.0
    w = options.blend
    image = (1 - w) * pet.data + w * correction * restored.mean
    sd = w * correction * restored.sd + (1 - w) * restored.noise_sd
    return _Result(image.astype(np.float32), sd.astype(np.float32), body, spill_region, correction)


def _list_regions(body: NDArray[np.bool_], region_maps: RegionMaps) -> list[Region]:
    return [
        Region("body", body, BODY),
        *(region for each in region_maps if each.is_registered for region in each.list_regions()),
    ]


def _images(pet: Volume, result: _Result, options: Options) -> list[Finding]:
    thickness_mm = pet.slice_thickness_mm or pet.grid.spacing_mm[0]
    blended = f", blended with {100 * (1 - options.blend):.0f} % of the input" if options.blend < 1 else ""
    level = 0.5 * float(result.image[result.body].mean())
    uncertain = result.body & (result.sd > options.low_confidence * np.maximum(result.image, level))
    segment = Segment(
        1, "Low confidence", SPATIAL, LOW_CONFIDENCE,
        f"Standard deviation above {options.low_confidence:g} of the activity, or of half the body's mean",
    )  # fmt: skip
    return [
        Image(
            "standard dose", Volume(result.image, pet.grid, pet.unit, thickness_mm),
            f"Standard-dose PET from low-dose PET{blended}", thickness_mm, modality="PT",
        ),
        ParametricMap(
            "standard deviation", Volume(result.sd, pet.grid, pet.unit, thickness_mm), STANDARD_DEVIATION,
            "Standard deviation of the activity in a voxel", thickness_mm,
        ),
        Segmentation(
            "low confidence", uncertain.astype(np.uint8), pet.grid, (segment,),
            "Region where the low dose leaves the activity uncertain", thickness_mm,
        ),
    ]  # fmt: skip


def _measure(
    pet: Volume, restored: _Restored, result: _Result, regions: list[Region], facts: Mapping[str, Any], options: Options
) -> list[Finding]:
    peaks = average_over_ball(pet.data, pet.grid), average_over_ball(result.image, pet.grid)
    return [
        *_measure_whole_image(pet, restored, result, peaks, options),
        *_suv_factor(facts),
        *compare_uptake(pet.data, result.image, peaks, regions, _scale(pet, facts)),
    ]


def _measure_whole_image(
    pet: Volume,
    restored: _Restored,
    result: _Result,
    peaks: tuple[NDArray[np.float32], NDArray[np.float32]],
    options: Options,
) -> list[Finding]:
    total = float(pet.data[result.spill_region].sum(dtype=np.float64))
    created = float((result.image - pet.data)[~result.spill_region].sum(dtype=np.float64)) / total
    moved = np.abs(peaks[1] - peaks[0])[result.body] / np.maximum(restored.noise_sd[result.body], 1e-12)
    noise = float(np.median(restored.noise_sd[result.body] / np.maximum(peaks[0][result.body], 1e-12)))
    activity_ratio = float(result.image[result.spill_region].sum(dtype=np.float64)) / total
    return [
        Measurement(
            "total activity ratio", activity_ratio, "1", f"Result over input, in the body and {SPILL_MM:g} mm about it"
        ),
        Measurement("activity correction", result.correction, "1", "What the network's image was multiplied by"),
        Measurement(
            "activity outside the body", 100 * created, "%", "Created (or removed) there, of the total activity"
        ),
        Measurement(
            "largest local change", float(moved.max()), "1",
            "Of the mean over 1 ml, in standard deviations of a voxel's noise in the input",
        ),
        Measurement("noise of the input", 100 * noise, "%", "Standard deviation of a voxel over its surroundings"),
        Measurement("blend", options.blend, "1", "Share of the restored image; the rest is the input with its noise"),
        Measurement("dose fraction", options.dose_fraction, "1", "As the network was told"),
        Measurement("voxels of the network", restored.spacing_mm, "mm", "Isotropic spacing that it saw the image on"),
    ]  # fmt: skip


def _suv_factor(facts: Mapping[str, Any]) -> list[Finding]:
    """Return the factor of SUVs, where SUVs were computed."""
    value = facts.get("suv_bw_per_unit")
    return (
        [] if value is None else [Measurement("SUVbw factor", float(value), "1", "SUVbw (g/ml) per unit of the image")]
    )


def _scale(pet: Volume, facts: Mapping[str, Any]) -> Scale:
    if facts.get("suv_bw_per_unit"):
        return Scale.suv(float(facts["suv_bw_per_unit"]))
    return Scale(1.0, pet.unit, "activity ")


def _notes(facts: Mapping[str, Any], options: Options, region_maps: RegionMaps) -> list[Finding]:
    origin = "set for this route" if "dose_fraction" in options.model_fields_set else "the default, as none was set"
    notes: list[Finding] = [
        Note(
            "dose fraction",
            f"{options.dose_fraction:g} of the standard dose: {origin}. No header states it; a wrong one means too "
            "much or too little smoothing.",
        )
    ]
    if facts.get("suv_bw_per_unit"):
        factor = float(facts["suv_bw_per_unit"])
        notes.append(Note("SUV", f"Standardised uptake by body weight: {factor:.6g} g/ml per unit of the image."))
    else:
        reason = facts.get("suv_unknown_because") or "the header does not state what it takes"
        notes.append(Note("SUV", f"Not known, numbers are in the image's own unit: {reason}."))
    if facts.get("corrections") is None:
        notes.append(
            Note("attenuation", "Corrected Image (0028,0051) is not stated; attenuation correction is assumed.")
        )
    none = "No MR of the head, no CT and no segmentation came with the study: the network was told no regions."
    words = [each.description for each in region_maps]
    if _tells_organs(region_maps) and any(isinstance(each, CtTissues) for each in region_maps):
        words.append("The network was told the organs in place of the CT's tissues, which serve for numbers only.")
    return [*notes, Note("regions", " ".join(words) or none)]


PIPELINE = Pipeline(
    name="standard_dose_pet",
    title="Standard-dose PET from low-dose PET",
    inputs=(
        Input("pet", Volume),
        Input("mr", Volume, required=False),
        Input("ct", Volume, required=False),
        Input("organs", Labels, required=False),
    ),
    bundle="standard_dose_pet",
    options_type=Options,
    run=run,
    helpers=("anatomy",),
)
