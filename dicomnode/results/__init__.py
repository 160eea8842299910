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

if TYPE_CHECKING:
    from dicomnode.config import ResultsConfig

__all__ = ["Provenance", "write"]

_SAME_PLACE_MM = 1e-3


def write(
    findings: Sequence[Finding],
    sources: Sequence[Dataset],
    provenance: Provenance,
    config: ResultsConfig,
    now: datetime,
) -> list[Dataset]:
    """Data sets with file meta information, ready to save; a series for each image variant,
    map and segmentation.

    An image becomes a clean and a labelled series (``config.clean``, ``config.labelled``); maps and segmentations refer
    to the image on their grid, the clean one if it is written, or to the sources where no image of the job is on it.
    Measurements stand in the header of every object. ``sources``: the headers of all inputs, pixels or payload not
    needed. Raises ``GeometryError`` or ``InputRefused``.
    """
    from dicomnode.results import parametric, planes, seg  # highdicom: the gate before the wire does without it

    measurements = tuple(finding for finding in findings if isinstance(finding, Measurement))
    context = Context(tuple(sources), provenance, measurements, config, now)
    written: list[Dataset] = []
    images: list[tuple[Grid, list[Dataset]]] = []
    series = 0
    for picture in (finding for finding in findings if isinstance(finding, Image)):
        for labelled in [False] * config.clean + [True] * config.labelled:
            instances = image.write(picture, context, config.series_number_base + series, labelled=labelled)
            images.append((picture.volume.grid, instances))
            written += instances
            series += 1
    for finding in findings:
        if not isinstance(finding, ParametricMap | Segmentation):
            continue
        grid = finding.grid if isinstance(finding, Segmentation) else finding.volume.grid
        on = _image_on(grid, images) or planes.shown_by(sources, grid)
        if not on:
            where = f"its grid of {grid.shape}, and no series of the sources"
            raise GeometryError(f"result '{finding.name}': no result image lies on {where}")
        number = config.series_number_base + series
        series += 1
        if isinstance(finding, ParametricMap):
            written.append(parametric.write(finding, context, number, on))
        else:
            written.append(seg.write(finding, context, number, on))
    return written


def _image_on(grid: Grid, images: Sequence[tuple[Grid, list[Dataset]]]) -> list[Dataset]:
    for other, instances in images:
        if other.shape == grid.shape and np.allclose(other.affine_mm, grid.affine_mm, rtol=0, atol=_SAME_PLACE_MM):
            return instances
    return []
