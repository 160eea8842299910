"""Findings -> DICOM objects: no inference, no disk, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from pydicom.dataset import Dataset

from dicomnode.errors import GeometryError
from dicomnode.results import image
from dicomnode.results.header import Context
from dicomnode.results.provenance import Provenance
from pipelines.contract import Finding, Grid, Image, Measurement, ParametricMap, Segmentation
from pipelines.quality import Outcome, Verdict

if TYPE_CHECKING:
    from dicomnode.config import ResultsConfig

__all__ = ["Provenance", "refusal", "write"]

_SAME_PLACE_MM = 1e-3


def write(
    findings: Sequence[Finding],
    sources: Sequence[Dataset],
    provenance: Provenance,
    config: ResultsConfig,
    now: datetime,
    verdict: Verdict = Verdict(),
    doubts: Sequence[str] = (),
    priors: Sequence[Dataset] = (),
) -> list[Dataset]:
    """Data sets with file meta information, ready to save; a series for each image variant, map and segmentation, and
    one for the report.

    An image becomes a clean and a labelled series (``config.clean``, ``config.labelled``); maps and segmentations refer
    to the image on their grid, the clean one if it is written, or to the sources where no image of the job is on it.
    The report (``config.report``) holds every measurement and note, the gate's ``verdict`` and the ``doubts`` about the
    input; measurements of the whole result stand in the header of every object, those of regions only where no report
    is written. ``sources``: the headers of all inputs of the study, pixels or payload not needed; ``priors``:
    those of earlier examinations. Raises ``GeometryError`` or
    ``InputRefused``.
    """
    from dicomnode.results import parametric, planes, seg, sr  # highdicom: the gate before the wire does without it

    measurements = tuple(
        finding for finding in findings if isinstance(finding, Measurement) and not (finding.group and config.report)
    )
    context = Context(tuple(sources), provenance, measurements, config, now, tuple(priors))
    written: list[Dataset] = []
    images: list[tuple[Image, list[Dataset]]] = []
    masks: list[tuple[Segmentation, Dataset]] = []
    series = 0
    for picture in (finding for finding in findings if isinstance(finding, Image)):
        for labelled in [False] * config.clean + [True] * config.labelled:
            instances = image.write(picture, context, config.series_number_base + series, labelled=labelled)
            images.append((picture, instances))
            written += instances
            series += 1
    for finding in findings:
        if not isinstance(finding, ParametricMap | Segmentation):
            continue
        grid = finding.grid if isinstance(finding, Segmentation) else finding.volume.grid
        on = _image_on(grid, images, finding.of) or planes.shown_by(sources, grid)
        if not on:
            where = f"its grid of {grid.shape}, and no series of the sources"
            raise GeometryError(f"result '{finding.name}': no result image lies on {where}")
        number = config.series_number_base + series
        series += 1
        if isinstance(finding, ParametricMap):
            written.append(parametric.write(finding, context, number, on))
        else:
            masks.append((finding, seg.write(finding, context, number, on)))
            written.append(masks[-1][1])
    if config.report:
        made = sr.Written(tuple(written), tuple(masks))
        written.append(sr.write(findings, made, context, config.series_number_base + series, verdict, doubts))
    return written


def refusal(
    reason: str,
    sources: Sequence[Dataset],
    provenance: Provenance,
    config: ResultsConfig,
    now: datetime,
    priors: Sequence[Dataset] = (),
) -> Dataset:
    """The note that nothing was made of these sources, and why."""
    from dicomnode.results import sr

    context = Context(tuple(sources), provenance, (), config, now, tuple(priors))
    return sr.write((), sr.Written(), context, config.series_number_base, Verdict(Outcome.REFUSE, (reason,)))


def _image_on(grid: Grid, images: Sequence[tuple[Image, list[Dataset]]], name: str) -> list[Dataset]:
    """The image of that name on the grid, or the first there where no name is given."""
    for picture, instances in images:
        other = picture.volume.grid
        if name not in ("", picture.name):
            continue
        if other.shape == grid.shape and np.allclose(other.affine_mm, grid.affine_mm, rtol=0, atol=_SAME_PLACE_MM):
            return instances
    return []
