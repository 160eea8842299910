"""Results on the frames of images: those that the job makes, or its sources where it makes none on that grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicomnode.errors import GeometryError
from dicomnode.reading.frames import Frame, frames_of
from pipelines.contract import Grid

__all__ = ["arrange_frames", "find_series_on", "list_slices", "set_pixel_measures"]

_ALONG = 0.25
"""How far from its regular place a frame may lie, in steps: sources are as even as scanners make them."""
_SIDEWAYS_MM = 0.15
_PARALLEL = 1e-3
Scalar = TypeVar("Scalar", bound=np.generic)


def find_series_on(sources: Sequence[Dataset], grid: Grid) -> list[Dataset]:
    """Return the instances of the first series whose frames are exactly the slices of the grid, or an empty list."""
    series: dict[str, list[Dataset]] = {}
    for source in sources:
        series.setdefault(str(source.get("SeriesInstanceUID", "")), []).append(source)
    return next((images for images in series.values() if list_slices(images, grid) is not None), [])


def arrange_frames(volume: NDArray[Scalar], grid: Grid, images: Sequence[Dataset], name: str) -> NDArray[Scalar]:
    """Return the slices of a (k, j, i) array in the order of the frames of ``images``.

    A labelled image has a band of rows, perhaps columns, after the last; they are zero. Raises ``GeometryError`` when
    the frames are not the slices of the grid.
    """
    slices = list_slices(images, grid)
    if slices is None or volume.shape != grid.shape:
        raise GeometryError(f"result '{name}' of shape {volume.shape}: the images are not on its grid of {grid.shape}")
    more = (0, images[0].Rows - grid.shape[1], images[0].Columns - grid.shape[2])
    return np.pad(volume[slices], [(0, count) for count in more])


def set_pixel_measures(ds: Dataset, grid: Grid, thickness_mm: float) -> None:
    """Set the Pixel Measures of the grid, with the finding's own slice thickness.

    highdicom would keep those of the images, where scanners state a spacing between slices that is not theirs or none.
    """
    between, rows, columns = grid.spacing_mm
    ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = hd.PixelMeasuresSequence(
        pixel_spacing=[rows, columns], slice_thickness=thickness_mm, spacing_between_slices=between
    )


def list_slices(images: Sequence[Dataset], grid: Grid) -> list[int] | None:
    """Return the slice number of each frame, in the order of the frames; None unless each slice has one frame."""
    if len(images) > 1 and any(image.get("NumberOfFrames") for image in images):
        return None  # highdicom refers to one multi-frame object or to several single frames
    if not all(_in_plane(image, grid) for image in images):
        return None
    frames = [frame for image in images for frame in frames_of(image)]
    if len(frames) != grid.shape[0]:
        return None
    found = [_slice(frame, grid) for frame in frames]
    slices = [k for k in found if k is not None]
    return slices if sorted(slices) == list(range(grid.shape[0])) else None


def _in_plane(image: Dataset, grid: Grid) -> bool:
    rows, columns = int(image.get("Rows") or 0), int(image.get("Columns") or 0)
    labelled = image.get("BurnedInAnnotation") == "YES"
    same = (rows, columns) == grid.shape[1:]
    return same or (labelled and rows >= grid.shape[1] and columns >= grid.shape[2])


def _slice(frame: Frame, grid: Grid) -> int | None:
    position, orientation = frame.numbers("ImagePositionPatient", 3), frame.numbers("ImageOrientationPatient", 6)
    if position is None or orientation is None:
        return None
    axes = grid.affine_mm[:3, :3] / np.linalg.norm(grid.affine_mm[:3, :3], axis=0)
    if np.abs(orientation - np.concatenate([axes[:, 0], axes[:, 1]])).max() > _PARALLEL:
        return None
    i, j, k = np.linalg.solve(grid.affine_mm[:3, :3], position - grid.affine_mm[:3, 3])
    _, row, column = grid.spacing_mm
    near = abs(k - round(k)) <= _ALONG and max(abs(i) * column, abs(j) * row) <= _SIDEWAYS_MM
    return round(k) if near else None
