"""A study with lesions and its earlier examination, with a finished job, for the reading page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from db.models import Study
from dicomnode import results
from dicomnode.config.results import ResultsConfig
from pipelines.contract import Code, Finding, Image, ParametricMap, Segment, Segmentation, Volume
from tests.findings import NOW, PROVENANCE
from tests.web_node import Web
from tests.web_studies import (
    claim_job,
    finish_job,
    make_grid,
    make_head,
    make_series,
    receive,
    route_study,
    study_uid,
)

__all__ = ["LESIONS", "SLICE_OF_LESION_2", "make_lesion_results", "make_reading", "study_page"]

_KIND = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_SD = Code("113061", "DCM", "Standard Deviation")
LESIONS = (
    # number, place, colour, middle voxel (k, j, i), radius in voxels
    (1, "Periventricular lesion", (86, 180, 233), (3, 40, 38), 4),
    (2, "Juxtacortical lesion", (230, 159, 0), (6, 30, 60), 3),
    (3, "Periventricular lesion", (86, 180, 233), (4, 56, 58), 2),
)
SLICE_OF_LESION_2 = 6
SHIFT_MM = 24.0
"""The earlier head lay two slices higher than the present one, as the registration found."""


def make_reading(
    web: Web, *, is_held: bool = False, with_prior: bool = True, destinations: Sequence[str] = ("pacs",)
) -> int:
    """Make a study with a finished job, with an earlier examination; return the job's number."""
    images = make_series("reading", description="FLAIR 3D", PatientID="P-471")
    further = {}
    if with_prior:
        prior = receive(
            web, make_series("reading prior", description="FLAIR 2009", PatientID="P-471", StudyDate="20090412")
        )
        with web.sessions() as session:
            rows = session.get_one(Study, prior).series
            further = {"prior_flair": [row.id for series in rows for row in series.instances]}
    job = route_study(web, receive(web, images), destinations=destinations, further=further)
    assert claim_job(web) == job
    why = "low-confidence fraction 0.184 is above 0.15" if is_held else ""
    finish_job(web, job, make_lesion_results(images), held_because=why, found=_report(with_prior))
    return job


def make_lesion_results(sources: Sequence[Dataset]) -> list[Dataset]:
    """Return images, their uncertainty, a segmentation with a segment for each lesion, and a report."""
    where, data, mask = make_grid(), make_head(7), draw_lesions()
    data[mask > 0] += 180
    deviation = (np.abs(np.gradient(data, axis=2)) / 30 + 1).astype(np.float32)
    segments = tuple(Segment(n, f"Lesion {n}", _KIND, _KIND, place, colour) for n, place, colour, _, _ in LESIONS)
    found: list[Finding] = [
        Image("DIR", Volume(data, where), "Synthetic DIR", 12.0),
        ParametricMap("standard deviation", Volume(deviation, where), _SD, "Standard deviation of synthetic DIR", 12.0),
        Segmentation("lesions", mask, where, segments, "Lesions by location", 12.0),
    ]
    return results.write(found, sources, PROVENANCE, ResultsConfig(), NOW)


def draw_lesions() -> NDArray[np.uint8]:
    """Return the numbers of the lesions (slice, row, column)."""
    mask = np.zeros(make_head().shape, np.uint8)
    _, rows, columns = np.indices(mask.shape)
    for number, _, _, (k, j, i), radius in LESIONS:
        inside: NDArray[np.bool_] = np.asarray((rows - j) ** 2 + (columns - i) ** 2 <= radius**2)
        inside[:k] = inside[k + 1 :] = False
        mask[inside] = number
    return mask


def study_page() -> str:
    """Return the address of the reading page."""
    return f"/studies/{study_uid('reading')}/reading"


def _report(with_prior: bool) -> dict[str, Any]:
    whole = [
        ("lesions", 3.0, "1"),
        ("lesion load", 3.28, "ml"),
        ("unsure parts", 5.0, "1"),
        ("dropout passes", 20.0, "1"),
    ]
    if with_prior:
        whole += [("new lesions", 2.0, "1"), ("enlarged lesions", 1.0, "1"), ("earlier lesion load", 4.77, "ml"),
                  ("lesion load compared", 3.28, "ml")]  # fmt: skip
    measurements = [
        {"group": "", "name": name, "value": value, "unit": unit, "description": ""} for name, value, unit in whole
    ]
    for number, place, _, _, radius in LESIONS:
        for name, value, unit, words in (
            ("volume", 58.1 * radius**2, "mm3", place),
            ("mean lesion probability", 0.9, "1", ""),
        ):
            group = f"lesion {number}"
            measurements.append({"group": group, "name": name, "value": value, "unit": unit, "description": words})
    correction = np.eye(4)
    correction[2, 3] = -SHIFT_MM
    found: dict[str, Any] = {"measurements": measurements}
    return found | (
        {"alignments": [{"input": "prior_flair", "correction_mm": correction.tolist()}]} if with_prior else {}
    )
