"""Share of the lateral ventricles in the intracranial volume, from any MR image of the head.

Input: ``head``, a volume. Output: a segmentation of the ventricles on the image's own voxels, their volume and that of
the cranial cavity in millilitres, and the share of the one in the other, in per cent. Model: the node's own bundle
``anatomy``. A share above ``large_above_percent`` is said in words; whether the result is then held for a person is
decided by [quality] of node.toml, not here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from model_zoo.structures import COUNT, number
from pipelines import anatomy
from pipelines.codes import VOLUME
from pipelines.contract import (
    Case,
    Code,
    Finding,
    Input,
    Measurement,
    Note,
    Pipeline,
    Progress,
    Refused,
    Segment,
    Segmentation,
    Volume,
)

if TYPE_CHECKING:
    from model_zoo.bundle import Model

VENTRICLES = "lateral ventricles"
LATERAL_VENTRICLE = Code("66720007", "SCT", "Lateral Ventricle")
ANATOMICAL_STRUCTURE = Code("123037004", "SCT", "Anatomical Structure")


class Options(BaseModel):
    """Options of a route; an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    large_above_percent: float = Field(default=3.0, gt=0)


def run(case: Case, model: Model, options: Options, seed: int, progress: Progress) -> list[Finding]:
    """Segment, count, compare."""
    head = case["head"]
    if not isinstance(head, Volume):
        raise Refused("ventricle_share takes an MR image, not k-space")
    anatomy.check_head(head, case.facts)
    found = anatomy.segment_head(head, model, progress)
    ventricles_ml, cavity_ml = found.volume_ml(number(VENTRICLES)), found.volume_ml(*range(1, COUNT + 1))
    if not cavity_ml:
        raise Refused("no brain was found in this image")
    percent = 100 * ventricles_ml / cavity_ml
    return [_mask(found, head), *_numbers(ventricles_ml, cavity_ml, percent), _words(percent, options)]


def _mask(found: anatomy.Anatomy, head: Volume) -> Segmentation:
    segment = Segment(1, "Lateral ventricles", ANATOMICAL_STRUCTURE, LATERAL_VENTRICLE)
    labels = found.mask(VENTRICLES).astype(np.uint8)
    thickness_mm = head.slice_thickness_mm or head.grid.spacing_mm[0]
    return Segmentation("ventricles", labels, head.grid, (segment,), "Lateral ventricles", thickness_mm)


def _numbers(ventricles_ml: float, cavity_ml: float, percent: float) -> list[Finding]:
    """A group that bears the segment's name refers to the segment in the report."""
    group = "Lateral ventricles"
    return [
        Measurement("volume", ventricles_ml, "ml", group=group, site=LATERAL_VENTRICLE, quantity=VOLUME),
        Measurement("intracranial volume", cavity_ml, "ml", "Brain and CSF"),
        Measurement("ventricle share", percent, "%", "Lateral ventricles in the intracranial volume"),
    ]


def _words(percent: float, options: Options) -> Note:
    side = "above" if percent > options.large_above_percent else "not above"
    return Note(
        "ventricle share", f"{percent:.1f} % of the intracranial volume, {side} {options.large_above_percent:g} %"
    )


PIPELINE = Pipeline(
    name="ventricle_share",
    title="Share of the lateral ventricles in the intracranial volume",
    inputs=(Input("head", Volume),),
    bundle="anatomy",
    options_type=Options,
    run=run,
)
