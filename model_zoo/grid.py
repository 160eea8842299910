"""A voxel grid in the patient, which training, pipelines and the node share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Grid"]

TOLERANCE_MM = 0.1


@dataclass(frozen=True)
class Grid:
    """A voxel grid: ``shape`` is (k, j, i); ``affine_mm`` maps (i, j, k, 1) to LPS mm at voxel centres."""

    shape: tuple[int, int, int]
    affine_mm: NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along (k, j, i)."""
        i, j, k = np.linalg.norm(self.affine_mm[:3, :3], axis=0)
        return float(k), float(j), float(i)

    def matches(self, other: Grid) -> bool:
        """Return whether both have the same shape and no voxel centres further apart than 0.1 mm.

        The distance is an affine function of the voxel index, so the corners bound it.
        """
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*([0, n - 1] for n in self.shape[::-1]), [1], indexing="ij")).reshape(4, -1)
        apart_mm = np.linalg.norm(((self.affine_mm - other.affine_mm) @ corners)[:3], axis=0)
        return bool(apart_mm.max() < TOLERANCE_MM)
