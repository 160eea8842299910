"""Pipeline ``translate:BUNDLE`` of a plan with holes: the missing or damaged slices of one series, from its others.

Input: ``image``, a series of which slices are missing between others, or are damaged by the option ``slices``. Output
on its grid: the series with these slices filled, the standard deviation of the filled slices (0 where measured), and
a segmentation of the synthetic slices. Measured slices keep their stored values: slope and intercept of the result are
those of the source, and filled values are rounded to its steps.

Model: the cubic spline along the slices plus what a network learned (``model_zoo.translation.holes``). A filled slice
is the mean of what it can be: a finding that no neighbour shows is not in it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from model_zoo.translation import holes
from model_zoo.translation.network import Prediction
from model_zoo.translation.plan import Plan
from model_zoo.translation.preparation import scale_series
from model_zoo.translation.scales import AIR, Level
from pipelines import TRANSLATE_PREFIX
from pipelines.codes import SPATIAL, STANDARD_DEVIATION
from pipelines.contract import (
    Case,
    Code,
    Finding,
    Image,
    Input,
    Measurement,
    Note,
    ParametricMap,
    Pipeline,
    Progress,
    Refused,
    Segment,
    Segmentation,
    StoredSlices,
    Volume,
)
from pipelines.translation_inputs import IMAGE, read_plan

if TYPE_CHECKING:
    from model_zoo.bundle import BundleFacts, Model

__all__ = ["Options", "make_pipeline", "run"]

SYNTHETIC = Code("SYNSLICE", "99DICOMNODE", "Synthetic slice of a series")


class Options(BaseModel):
    """Options of a route."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slices: tuple[int, ...] = Field(
        default=(),
        description="damaged slices to fill like missing ones: Instance Numbers, or frames of a multi-frame object",
    )


def make_pipeline(facts: BundleFacts) -> Pipeline:
    """Return the pipeline of this bundle, whose plan has holes."""
    return Pipeline(
        name=f"{TRANSLATE_PREFIX}{facts.name}",
        title=str(facts.metadata.get("task") or facts.name),
        inputs=(Input(IMAGE, Volume, allows_gaps=True),),
        bundle=facts.name,
        options_type=Options,
        run=run,
    )


def run(case: Case, model: Model, options: Options, seed: int, progress: Progress) -> list[Finding]:
    """Fill the missing and the damaged slices. Raises Refused. Nothing is random."""
    plan = read_plan(f"{model.name}@{model.version}", model.settings.get("plan"))
    image = case[IMAGE]
    if not isinstance(image, Volume) or image.slices is None:
        raise Refused("the image does not state which of its slices were measured")
    holes_k = _find_holes(image.slices, options.slices)
    _check_holes(holes_k, len(image.data), plan)
    progress(0.1, "scale")
    scaled, level = _scale_measured(image, holes_k, plan)
    progress(0.2, "slices")
    p = holes.predict_missing(model.network, plan, scaled, holes_k)
    progress(0.9, "result")
    words = _describe_slices(image.slices, holes_k)
    return [
        *_make_images(image, image.slices, holes_k, p, level, words),
        *_measure(p, level, holes_k, image.unit),
        Note("synthetic slices", f"{words}. They were estimated from the other slices, which keep their stored values"),
    ]


def _find_holes(slices: StoredSlices, damaged: tuple[int, ...]) -> list[int]:
    """Return the slices k to fill: missing ones, and damaged ones by their numbers. Raises Refused."""
    found = {k for k, number in enumerate(slices.numbers) if number is None}
    for number in damaged:
        at = [k for k, each in enumerate(slices.numbers) if each == number]
        if len(at) != 1:
            raise Refused(f"option slices: {len(at)} slices of the series have the number {number}; it has to be one")
        found.add(at[0])
    if not found:
        raise Refused("no slice is missing between the others, and the option slices names none: nothing to fill")
    return sorted(found)


def _check_holes(missing: list[int], count: int, plan: Plan) -> None:
    try:
        holes.check_gaps(missing, count, plan.most_missing)
    except ValueError as error:
        raise Refused(str(error)) from error


def _scale_measured(image: Volume, missing: list[int], plan: Plan) -> tuple[Tensor, Level]:
    """Return the scaled image, whose level comes from its measured slices alone. Raises Refused."""
    data = torch.from_numpy(image.data)
    measured = [k for k in range(len(data)) if k not in missing]
    try:
        _, level = scale_series(plan.sources[0], data[measured], None, plan.spacing_mm)
    except ValueError as error:
        raise Refused(str(error)) from error
    least = float(level.apply(data[measured]).min())
    if plan.sources[0].parsed_scale.kind != "window" and least < -AIR:
        raise Refused(
            f"the series has signal below zero (down to {least * level.width:.4g}), as real and phase images have: its "
            "slices would be filled without it"
        )
    return level.apply(data), level


def _make_images(
    image: Volume, slices: StoredSlices, missing: list[int], p: Prediction, level: Level, words: str
) -> list[Finding]:
    """Return the filled series, the standard deviation and the segmentation of its synthetic slices."""
    thickness_mm = image.slice_thickness_mm or image.grid.spacing_mm[0]
    data, sd, labels = image.data.copy(), np.zeros_like(image.data), np.zeros(image.data.shape, np.uint8)
    data[missing] = _round_to_steps(level.invert(p.mean.cpu()).numpy(), np.delete(data, missing, axis=0), slices)
    sd[missing] = level.width * p.sd.cpu().numpy()
    labels[missing] = 1
    segment = Segment(1, "Synthetic slices", SPATIAL, SYNTHETIC, words)
    sd_volume = Volume(sd, image.grid, image.unit)
    sd_words = "Standard deviation of synthetic slices, 0 where measured"
    return [
        Image(
            "filled series", replace(image, data=data), f"Series with {len(missing)} synthetic of {len(data)} slices",
            thickness_mm, synthetic_slices=tuple(missing),
        ),
        ParametricMap("standard deviation", sd_volume, STANDARD_DEVIATION, sd_words, thickness_mm),
        Segmentation("synthetic slices", labels, image.grid, (segment,), "Synthetic slices", thickness_mm),
    ]  # fmt: skip


def _round_to_steps(
    values: NDArray[np.float32], measured: NDArray[np.float32], slices: StoredSlices
) -> NDArray[np.float32]:
    """Return the values that the source's steps can store, within the range of the measured ones."""
    steps = np.rint((values.astype(np.float64) - slices.intercept) / slices.slope)
    found = (slices.slope * steps + slices.intercept).clip(measured.min(), measured.max())
    return found.astype(np.float32)


def _measure(p: Prediction, level: Level, missing: list[int], unit: str) -> list[Finding]:
    inside = p.mean > AIR
    sd = float(p.sd[inside].mean()) if bool(inside.any()) else 0.0
    words = "Mean inside head or body"
    return [
        Measurement("synthetic slices", len(missing), "1", "Number of slices that were not measured"),
        Measurement("mean standard deviation of synthetic slices", level.width * sd, unit, words),
    ]


def _describe_slices(slices: StoredSlices, missing: list[int]) -> str:
    """Return which slices are synthetic: by place from 1 along the normal, and by the numbers beside the gap."""
    found = []
    for first, last in holes.find_gaps(missing):
        places = f"slice {first + 1}" if first == last else f"slices {first + 1} to {last + 1}"
        near = (slices.numbers[first - 1], slices.numbers[last + 1])
        found.append(f"{places} of {len(slices.numbers)} (between the images numbered {near[0]} and {near[1]})")
    return f"Synthetic: {', '.join(found)}"
