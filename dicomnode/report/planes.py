"""Pictures of volumes: a plane through the patient as a viewer shows it, with the sides of the patient named.

Axial planes are seen from the feet, coronal ones from the front, sagittal ones from the left; nothing is resampled in
the plane of the volume that it was cut from, and pixels keep the ratio of their sides in millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.contract import Grid

__all__ = ["Plane", "planes_of", "sampled"]

_NAMES = ("sagittal", "coronal", "axial")
_LETTERS = ("RL", "AP", "IS")  # of -x +x, -y +y, -z +z in LPS
_SEEN = {"sagittal": ((0, 1, 0), (0, 0, -1)), "coronal": ((1, 0, 0), (0, 0, -1)), "axial": ((1, 0, 0), (0, 1, 0))}
"""Which way goes right and which way goes down on the screen, in LPS."""
_NEARLY = 0.35
"""Of a direction's length, along a further axis, from which that axis is named too."""
_FLAT = 2.6
"""Ratio of the spacings from which a reformatted plane would show slabs and not anatomy."""


@dataclass(frozen=True)
class Plane:
    """A cut at voxel ``index`` of ``axis`` (0: k, 1: j, 2: i) of a grid. ``places_mm`` (row, column, 3) in LPS;
    ``spacing_mm``: of rows and columns; ``letters``: the patient's side at the left, right, top and bottom."""

    name: str
    axis: int
    index: int
    count: int
    places_mm: NDArray[np.float64]
    spacing_mm: tuple[float, float]
    letters: tuple[str, str, str, str]

    @property
    def extent_mm(self) -> tuple[float, float]:
        """Width and height."""
        rows, columns = self.places_mm.shape[:2]
        return columns * self.spacing_mm[1], rows * self.spacing_mm[0]

    def cropped(self, keep: NDArray[np.bool_], margin_mm: float) -> Plane:
        """The part about the pixels to keep; all of it where there is none."""
        if not keep.any():
            return self
        spans = []
        for along, spacing in ((1, self.spacing_mm[0]), (0, self.spacing_mm[1])):
            found = np.flatnonzero(keep.any(axis=along))
            more = int(np.ceil(margin_mm / spacing))
            spans.append(slice(max(int(found[0]) - more, 0), int(found[-1]) + more + 1))
        return Plane(self.name, self.axis, self.index, self.count, self.places_mm[spans[0], spans[1]],
                     self.spacing_mm, self.letters)  # fmt: skip


def planes_of(grid: Grid, weight: NDArray[np.float32], wanted: int) -> list[Plane]:
    """Up to ``wanted`` planes through where ``weight`` (k, j, i) is largest: first that of the slices, then axial,
    coronal, sagittal, as long as the voxels are no slabs. A grid of thick slices is cut along its slices only."""
    order = [0, *sorted((1, 2), key=lambda axis: -_NAMES.index(_name(grid, axis)))]
    if _nearly_isotropic(grid):
        order.sort(key=lambda axis: -_NAMES.index(_name(grid, axis)))
        return [_plane(grid, axis, _best(weight, axis)) for axis in order[:wanted]]
    return [_plane(grid, 0, index) for index in _spread(weight, wanted)]


def _nearly_isotropic(grid: Grid) -> bool:
    spacing = grid.spacing_mm
    thin = min(size * step for size, step in zip(grid.shape, spacing, strict=True)) < 40
    return max(spacing) / min(spacing) < _FLAT and min(grid.shape) > 1 and not thin


def sampled(volume: NDArray[np.generic], grid: Grid, plane: Plane, *, nearest: bool = False) -> NDArray[np.float32]:
    """Values of a volume (k, j, i) on the pixels of a plane, linear between voxels, zero outside."""
    from scipy import ndimage

    shape = plane.places_mm.shape[:2]
    places = np.concatenate([plane.places_mm.reshape(-1, 3), np.ones((shape[0] * shape[1], 1))], axis=1)
    index = np.linalg.solve(grid.affine_mm, places.T)[:3][::-1]
    index = np.where(np.abs(index - np.round(index)) < 1e-6, np.round(index), index)
    flat = [at for at, size in enumerate(grid.shape) if size == 1]
    for at in flat:  # one slice is as thick as it is
        index[at] = np.where(np.abs(index[at]) <= 0.5, 0.0, index[at])
    order = 0 if nearest else 1
    found = ndimage.map_coordinates(np.asarray(volume, np.float32), index, order=order, mode="constant")
    return np.asarray(found.reshape(shape), np.float32)


def _direction(grid: Grid, axis: int) -> NDArray[np.float64]:
    column = grid.affine_mm[:3, 2 - axis]
    return np.asarray(column / np.linalg.norm(column))


def _name(grid: Grid, axis: int) -> str:
    """The anatomical plane across an axis of the array."""
    free = {at: np.abs(_direction(grid, at)) for at in range(3)}
    taken: dict[int, int] = {}
    for _ in range(3):  # the clearest first, so that each name is given once
        at, along = max(
            ((a, n) for a in free for n in range(3) if n not in taken.values()), key=lambda pair: free[pair[0]][pair[1]]
        )
        taken[at] = along
        del free[at]
    return _NAMES[taken[axis]]


def _best(weight: NDArray[np.float32], axis: int) -> int:
    """Where there is most, the middle one of those with as much."""
    others = tuple(each for each in range(3) if each != axis)
    along = weight.sum(axis=others, dtype=np.float64)
    most = np.flatnonzero(along >= 0.999 * along.max())
    return int(most[len(most) // 2])


def _spread(weight: NDArray[np.float32], wanted: int) -> list[int]:
    """The best slice, then one a quarter of the stack away, so that two rows show two places."""
    first, count = _best(weight, 0), weight.shape[0]
    apart = max(count // 4, 1)
    others = [each for each in (first + apart, first - apart) if 0 <= each < count and each != first]
    return [first, *others][: max(wanted, 1)]


def _plane(grid: Grid, axis: int, index: int) -> Plane:
    name = _name(grid, axis)
    across, down = (np.array(each, float) for each in _SEEN[name])
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
    letters = _side(-right), _side(right), _side(-below), _side(below)
    places = (voxels @ grid.affine_mm.T)[..., :3]
    return Plane(name, axis, index, grid.shape[axis], places, (spacing[vertical], spacing[horizontal]), letters)


def _side(direction: NDArray[np.float64]) -> str:
    """The side of the patient that a direction leads to, the strongest first (PS3.3 C.7.6.1.1.1)."""
    order = np.argsort(-np.abs(direction))
    return "".join(_LETTERS[n][int(direction[n] > 0)] for n in order if abs(direction[n]) > _NEARLY)
