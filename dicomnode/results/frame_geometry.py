"""A grid as DICOM frames: orientation, positions, and the order in which the slices are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom.valuerep import format_number_as_ds

from dicomnode.errors import GeometryError
from model_zoo.grid import Grid

__all__ = ["FrameGeometry", "decimal"]

_PERPENDICULAR = 1e-4
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class FrameGeometry:
    """Frames in the order of increasing position along the normal (row direction x column direction).

    ``orientation``: Image Orientation (Patient); ``positions_mm`` (frame, 3): centre of the first voxel of each frame;
    ``spacing_mm``: between frames, rows, columns; ``is_reversed``: True where k runs against the normal.
    """

    orientation: tuple[float, ...]
    positions_mm: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    is_reversed: bool

    @classmethod
    def from_grid(cls, grid: Grid) -> FrameGeometry:
        """Return the frames of a grid.

        Raises ``GeometryError`` for a grid that DICOM planes cannot hold: a degenerate or sheared affine.
        """
        if not np.isfinite(grid.affine_mm).all() or min(grid.shape) < 1:
            raise GeometryError(f"result grid: shape {grid.shape}, or an affine that is not finite")
        columns = grid.affine_mm[:3, :3]
        lengths = np.linalg.norm(columns, axis=0)
        if lengths.min() <= 0:
            raise GeometryError("result grid: a voxel axis has no length")
        axes = columns / lengths
        if np.abs(axes.T @ axes - np.eye(3)).max() > _PERPENDICULAR:
            raise GeometryError(
                "result grid: voxel axes are not perpendicular; a sheared grid cannot be stored as planes"
            )
        against = bool(np.linalg.det(axes) < 0)
        frames = np.arange(grid.shape[0])[:: -1 if against else 1]
        positions = grid.affine_mm[:3, 3] + np.outer(frames, columns[:, 2])
        orientation = tuple(float(value) for value in (*axes[:, 0], *axes[:, 1]))
        return cls(orientation, positions, grid.spacing_mm, against)

    def arrange(self, volume: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return the slices of a (k, j, i) array in the order of the frames."""
        return np.ascontiguousarray(volume[::-1] if self.is_reversed else volume)


def decimal(value: float) -> str:
    """Return a number as Decimal String, 16 characters at most (PS3.5 6.2)."""
    return format_number_as_ds(float(value))
