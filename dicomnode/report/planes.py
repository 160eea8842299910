"""Planes through volumes as a viewer shows them, with the letters of the patient's sides.

Axial planes are seen from the feet, coronal ones from the front, sagittal ones from the left. A plane of the volume's
own grid is not resampled, and pixels keep the ratio of their sides in millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.contract import Grid

__all__ = ["ReportPlane", "choose_planes", "name_side", "sample_on_plane"]

_NAMES = ("sagittal", "coronal", "axial")
_LETTERS = ("RL", "AP", "FH")  # of -x +x, -y +y, -z +z in LPS; feet and head as in PS3.3 C.7.6.1.1.1
_SCREEN_DIRECTIONS = {
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "axial": ((1, 0, 0), (0, 1, 0)),
}
"""Directions to the right and downwards on the screen, in LPS."""
_OBLIQUE_SHARE = 0.35
"""Component of a unit direction along a further axis from which that axis is named too."""
_SLAB_RATIO = 2.6
"""Ratio of the spacings from which a reformatted plane would show slabs and not anatomy."""


@dataclass(frozen=True)
class ReportPlane:
    """A plane at voxel ``index`` of ``axis`` (0: k, 1: j, 2: i) of a grid, which has ``count`` voxels along it.

    ``places_mm``: positions (row, column, 3) in LPS; ``spacing_mm``: of rows and columns; ``letters``: the patient's
    side at the left, right, top and bottom.
    """

    name: str
    axis: int
    index: int
    count: int
    places_mm: NDArray[np.float64]
    spacing_mm: tuple[float, float]
    letters: tuple[str, str, str, str]

    @property
    def extent_mm(self) -> tuple[float, float]:
        """Width and height in mm."""
        rows, columns = self.places_mm.shape[:2]
        return columns * self.spacing_mm[1], rows * self.spacing_mm[0]

    def crop(self, keep: NDArray[np.bool_], margin_mm: float) -> ReportPlane:
        """Crop the plane to the pixels to keep and a margin; unchanged where ``keep`` is empty."""
        if not keep.any():
            return self
        spans = []
        for along, spacing in ((1, self.spacing_mm[0]), (0, self.spacing_mm[1])):
            filled = np.flatnonzero(keep.any(axis=along))
            margin = int(np.ceil(margin_mm / spacing))
            spans.append(slice(max(int(filled[0]) - margin, 0), int(filled[-1]) + margin + 1))
        return ReportPlane(self.name, self.axis, self.index, self.count, self.places_mm[spans[0], spans[1]],
                     self.spacing_mm, self.letters)  # fmt: skip


def choose_planes(grid: Grid, weight: NDArray[np.float32], most: int) -> list[ReportPlane]:
    """Choose up to ``most`` planes through the largest ``weight`` (k, j, i).

    Nearly isotropic voxels: axial, coronal, sagittal planes, in this order. Thick slices: planes along the slices only.
    """
    if not _is_nearly_isotropic(grid):
        return [_cut_plane(grid, 0, index) for index in _spread_indices(weight, most)]
    order = sorted(range(3), key=lambda axis: -_NAMES.index(_plane_name(grid, axis)))
    return [_cut_plane(grid, axis, _best_index(weight, axis)) for axis in order[:most]]


def _is_nearly_isotropic(grid: Grid) -> bool:
    spacing = grid.spacing_mm
    thin = min(size * step for size, step in zip(grid.shape, spacing, strict=True)) < 40
    return max(spacing) / min(spacing) < _SLAB_RATIO and min(grid.shape) > 1 and not thin


def sample_on_plane(
    volume: NDArray[np.generic], grid: Grid, plane: ReportPlane, *, nearest: bool = False
) -> NDArray[np.float32]:
    """Sample a volume (k, j, i) at the pixels of a plane, linear between voxels, zero outside."""
    from scipy import ndimage

    shape = plane.places_mm.shape[:2]
    places = np.concatenate([plane.places_mm.reshape(-1, 3), np.ones((shape[0] * shape[1], 1))], axis=1)
    index = np.linalg.solve(grid.affine_mm, places.T)[:3][::-1]
    index = np.where(np.abs(index - np.round(index)) < 1e-6, np.round(index), index)
    flat = [at for at, size in enumerate(grid.shape) if size == 1]
    for at in flat:  # one slice is as thick as it is
        index[at] = np.where(np.abs(index[at]) <= 0.5, 0.0, index[at])
    order = 0 if nearest else 1
    values = ndimage.map_coordinates(np.asarray(volume, np.float32), index, order=order, mode="constant")
    return np.asarray(values.reshape(shape), np.float32)


def _direction(grid: Grid, axis: int) -> NDArray[np.float64]:
    column = grid.affine_mm[:3, 2 - axis]
    return np.asarray(column / np.linalg.norm(column))


def _plane_name(grid: Grid, axis: int) -> str:
    """Return the name of the anatomical plane across an axis of the array."""
    free = {at: np.abs(_direction(grid, at)) for at in range(3)}
    assigned: dict[int, int] = {}
    for _ in range(3):  # the clearest first, so that each name is given once
        at, along = max(
            ((a, n) for a in free for n in range(3) if n not in assigned.values()),
            key=lambda pair: free[pair[0]][pair[1]],
        )
        assigned[at] = along
        del free[at]
    return _NAMES[assigned[axis]]


def _best_index(weight: NDArray[np.float32], axis: int) -> int:
    """Return the index of the largest weight along an axis, the middle one of equals."""
    others = tuple(each for each in range(3) if each != axis)
    along = weight.sum(axis=others, dtype=np.float64)
    most = np.flatnonzero(along >= 0.999 * along.max())
    return int(most[len(most) // 2])


def _spread_indices(weight: NDArray[np.float32], most: int) -> list[int]:
    """Return the best slice, then one a quarter of the stack away, so that two rows show two places."""
    first, count = _best_index(weight, 0), weight.shape[0]
    apart = max(count // 4, 1)
    others = [each for each in (first + apart, first - apart) if 0 <= each < count and each != first]
    return [first, *others][: max(most, 1)]


def _cut_plane(grid: Grid, axis: int, index: int) -> ReportPlane:
    name = _plane_name(grid, axis)
    across, down = (np.array(each, float) for each in _SCREEN_DIRECTIONS[name])
    rest = [at for at in range(3) if at != axis]
    horizontal = max(rest, key=lambda at: abs(float(_direction(grid, at) @ across)))
    vertical = next(at for at in rest if at != horizontal)
    columns, rows = np.arange(grid.shape[horizontal]), np.arange(grid.shape[vertical])
    right, below = _direction(grid, horizontal), _direction(grid, vertical)
    if right @ across < 0:
        columns, right = columns[::-1], -right
    if below @ down < 0:
        rows, below = rows[::-1], -below
    voxels = np.zeros((len(rows), len(columns), 4))
    voxels[..., 2 - axis], voxels[..., 3] = index, 1
    voxels[..., 2 - horizontal], voxels[..., 2 - vertical] = columns[None, :], rows[:, None]
    spacing = grid.spacing_mm
    letters = name_side(-right), name_side(right), name_side(-below), name_side(below)
    places = (voxels @ grid.affine_mm.T)[..., :3]
    return ReportPlane(name, axis, index, grid.shape[axis], places, (spacing[vertical], spacing[horizontal]), letters)


def name_side(direction: NDArray[np.float64]) -> str:
    """Return the letters of the side that a unit direction (LPS) points to, strongest first (PS3.3 C.7.6.1.1.1)."""
    order = np.argsort(-np.abs(direction))
    return "".join(_LETTERS[n][int(direction[n] > 0)] for n in order if abs(direction[n]) > _OBLIQUE_SHARE)
