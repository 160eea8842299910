"""Side of a finding in the head, measured from the plane midway between the two putamina.

The plane follows the head however it is rotated. A side is stated only for findings that lie completely on it, farther
from the plane than the plane's uncertainty; for others none is stated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_zoo.structures import number
from pipelines.contract import Code, Grid

__all__ = ["LEFT", "RIGHT", "Midplane", "find_midplane"]

LEFT = Code("7771000", "SCT", "Left")
RIGHT = Code("24028007", "SCT", "Right")  # PS3.16 CID 244

MARGIN_MM = 5.0
APART_MM = (35.0, 75.0)
"""Plausible distances between the centres of the two putamina; in adults about 50 mm."""
LARGEST_RATIO = 2.0
SMALLEST_MM3 = 500.0
STEEPEST = 0.7
"""Least component of the normal along the patient's left-right axis: heads rotated by up to 45 degrees."""

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Midplane:
    """Point on the plane and its unit normal, which points to the patient's left; LPS, millimetres."""

    point_mm: Points
    normal: Points

    def find_side(self, points_mm: Points) -> Code | None:
        """Return the side on which all points (n, 3) lie, or None."""
        distance_mm = (points_mm - self.point_mm) @ self.normal
        if distance_mm.min() > MARGIN_MM:
            return LEFT
        return RIGHT if distance_mm.max() < -MARGIN_MM else None


def find_midplane(structure: NDArray[np.uint8], grid: Grid) -> Midplane | None:
    """Return the plane of a head whose ``structure`` (k, j, i) has the numbers of ``STRUCTURES``.

    Return None where the putamina are not two parts of similar size at a putamen's distance, one to the left.
    """
    k, j, i = np.nonzero(structure == number("putamen"))
    if not len(k):
        return None
    points_mm = np.stack([i, j, k, np.ones_like(i)], axis=1) @ grid.affine_mm[:3].T
    is_left = points_mm[:, 0] > points_mm[:, 0].mean()
    left, right = points_mm[is_left], points_mm[~is_left]
    voxel_mm3 = float(abs(np.linalg.det(grid.affine_mm[:3, :3])))
    smaller, larger = sorted((len(left), len(right)))
    if smaller * voxel_mm3 < SMALLEST_MM3 or larger > LARGEST_RATIO * smaller:
        return None
    between = left.mean(axis=0) - right.mean(axis=0)
    apart_mm = float(np.linalg.norm(between))
    if not APART_MM[0] <= apart_mm <= APART_MM[1] or between[0] < STEEPEST * apart_mm:
        return None
    return Midplane((left.mean(axis=0) + right.mean(axis=0)) / 2, between / apart_mm)
