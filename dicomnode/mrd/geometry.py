"""Geometry in the patient of the image of an MRD acquisition, from each acquisition's position and directions.

ISMRMRD states positions and directions in the DICOM patient system (LPS, mm). ``position`` is the centre of the
encoded plane or slab: voxel ``n // 2`` of each encoded axis, and of the delivered grid's axes, lies there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.contract import Grid, Refused

__all__ = ["Frame", "make_grid", "read_directions", "stack_slices"]

_AGREE_MM = 0.01
_SPACING_TOLERANCE = 0.01  # of the slice spacing
_ORTHONORMAL = 1e-3

Frame = dict[str, NDArray[np.float64]]


def read_directions(heads: NDArray[np.void]) -> Frame:
    """Return the unit vectors "read_dir", "phase_dir", "slice_dir" that all acquisitions share."""
    frame: Frame = {}
    for name in ("read_dir", "phase_dir", "slice_dir"):
        vectors = heads[name].astype(np.float64)
        length = float(np.linalg.norm(vectors[0]))
        if not np.isfinite(vectors).all() or abs(length - 1) > _ORTHONORMAL:
            raise Refused(f"k-space geometry: {name} is not a unit vector (length {length:.4g})")
        if np.abs(vectors - vectors[0]).max() > _ORTHONORMAL:
            raise Refused(f"k-space geometry: {name} differs between acquisitions of one image")
        frame[name] = vectors[0] / length
    axes = np.stack(list(frame.values()))
    if np.abs(axes @ axes.T - np.eye(3)).max() > _ORTHONORMAL:
        raise Refused("k-space geometry: read_dir, phase_dir and slice_dir are not perpendicular")
    return frame


def stack_slices(
    heads: NDArray[np.void], slice_dir: NDArray[np.float64], thickness_mm: float
) -> tuple[list[int], NDArray[np.float64], float]:
    """Return slice counters in order along ``slice_dir``, the position of the first, and the distance of neighbours.

    The counter may follow the order of excitation; the positions say where the slices lie.
    """
    counters = np.unique(heads["idx"]["slice"]).tolist()
    positions = np.stack([_position(heads[heads["idx"]["slice"] == counter], counter) for counter in counters])
    along = positions @ slice_dir
    order = np.argsort(along, kind="stable")
    first = positions[order[0]]
    if len(counters) == 1:
        return counters, first, thickness_mm
    steps = np.diff(along[order])
    spacing = float(steps.mean())
    if steps.min() < _AGREE_MM:
        raise Refused("k-space geometry: two slices lie at the same place")
    if np.abs(steps - spacing).max() > max(_SPACING_TOLERANCE * spacing, _AGREE_MM):
        raise Refused(f"k-space geometry: slices are {steps.min():.3f} to {steps.max():.3f} mm apart, not evenly")
    sideways = positions - first - np.outer(along - along[order[0]], slice_dir)
    if np.abs(sideways).max() > max(_SPACING_TOLERANCE * spacing, _AGREE_MM):
        raise Refused("k-space geometry: the slices are not stacked along slice_dir")
    return [counters[n] for n in order], first, spacing


def make_grid(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    axes: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    centre_mm: NDArray[np.float64],
    centre_index: tuple[int, int, int],
) -> Grid:
    """Return the grid with voxel ``centre_index`` at ``centre_mm``; all tuples in the order (k, j, i)."""
    affine = np.eye(4)
    for column, axis, step in zip((2, 1, 0), axes, spacing_mm, strict=True):
        affine[:3, column] = axis * step
    affine[:3, 3] = centre_mm - affine[:3, :3] @ np.array(centre_index[::-1], dtype=np.float64)
    return Grid(shape, affine)


def _position(heads: NDArray[np.void], counter: int) -> NDArray[np.float64]:
    positions = heads["position"].astype(np.float64)
    if not np.isfinite(positions).all():
        raise Refused(f"k-space geometry: the position of slice {counter} is not finite")
    if np.abs(positions - positions[0]).max() > _AGREE_MM:
        raise Refused(f"k-space geometry: acquisitions of slice {counter} state different positions")
    first: NDArray[np.float64] = positions[0]
    return first
