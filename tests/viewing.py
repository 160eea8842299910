"""A study for the viewer: a head as a scanner sends it, and results as the node writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicomnode import results
from dicomnode.config.results import ResultsConfig
from dicomnode.reading import frames
from pipelines.contract import Code, Finding, Grid, Image, Measurement, ParametricMap, Segment, Segmentation, Volume
from tests.bundles import phantom, phantom_grid
from tests.findings import NOW, PROVENANCE, STANDARD_DEVIATION
from tests.series import write_slices

__all__ = ["make_results", "write_head_series"]

_FIRST, _LAST = 10, 40


def write_head_series(folder: Path) -> tuple[list[Path], Grid]:
    """Write the files of a T1-like series, one for each slice."""

    values, _, grid = _make_head()
    stored = np.rint(800 * values).astype(np.uint16)

    def name(_: int, ds: Dataset) -> None:
        ds.SeriesDescription, ds.StudyDescription = "T1w", "Head"
        ds.WindowCenter, ds.WindowWidth = "400", "800"

    return write_slices(folder, grid, stored, edit=name, key="viewed"), grid


def make_results(sources: list[Path], grid: Grid) -> list[Dataset]:
    """Make an image (clean and labelled), uncertainty, segmentation and report."""
    values, structure, _ = _make_head()
    made = (2 * np.sqrt(values)).astype(np.float32)  # a window of 2 would round to nothing
    deviation = (60 * np.abs(np.gradient(values)[2])).astype(np.float32)  # the viewer colours 0 to 1 by itself
    largest = np.argsort(np.bincount(structure[structure > 0]))[-2:]
    inside = np.where(structure == largest[1], 1, np.where(structure == largest[0], 2, 0)).astype(np.uint8)
    segments = tuple(
        Segment(number, name, Code("91723000", "SCT", "Anatomical structure"), Code(code, "SCT", meaning))
        for number, name, code, meaning in (
            (1, "first structure", "12738006", "Brain"),
            (2, "second structure", "35764002", "Brain ventricle"),
        )
    )
    findings: list[Finding] = [
        Image("image", Volume(made, grid), "Synthetic image", 4.0),
        ParametricMap("deviation", Volume(deviation, grid), STANDARD_DEVIATION, "Standard deviation", 4.0),
        Segmentation("structures", inside, grid, segments, "Structures", 4.0),
        Measurement("chi-square", 1.02, "1"),
    ]
    headers = [frames.read_header(path) for path in sources]
    return results.write(findings, headers, PROVENANCE, ResultsConfig(), NOW)


def _make_head() -> tuple[NDArray[np.float32], NDArray[np.uint8], Grid]:
    """Return the phantom without the almost empty slices at its ends."""
    values, structure = phantom()
    affine = phantom_grid().affine_mm.copy()
    affine[:3, 3] += _FIRST * affine[:3, 2]
    cropped = slice(_FIRST, _LAST)
    return values[cropped], structure[cropped], Grid((_LAST - _FIRST, *values.shape[1:]), affine)
