"""Two grids match where every voxel of the one lies where the other has it."""

from __future__ import annotations

import numpy as np
import pytest

from model_zoo.grid import Grid

AFFINE = np.array([[0.0, 2.0, 0.0, -9], [0, 0, 3, -8], [1.5, 0, 0, 5], [0, 0, 0, 1]])
GRID = Grid((10, 20, 200), AFFINE)


def test_spacing_is_in_the_order_of_the_axes_of_an_array() -> None:
    assert GRID.spacing_mm == pytest.approx((3.0, 2.0, 1.5))


@pytest.mark.parametrize(("change_mm", "expected"), [(0.0, True), (4e-4, True), (6e-4, False)])
def test_the_corners_decide_so_a_small_error_of_the_spacing_counts_by_the_voxels(
    change_mm: float, expected: bool
) -> None:
    other = AFFINE.copy()
    other[2, 0] += change_mm  # 199 steps along i
    assert GRID.matches(Grid(GRID.shape, other)) is expected


@pytest.mark.parametrize(("shift_mm", "expected"), [(0.09, True), (0.11, False), (np.nan, False)])
def test_a_shift_of_the_origin(shift_mm: float, expected: bool) -> None:
    other = AFFINE.copy()
    other[:3, 3] += (shift_mm, 0, 0)
    assert GRID.matches(Grid(GRID.shape, other)) is expected


def test_another_shape_is_another_grid() -> None:
    assert not GRID.matches(Grid((10, 20, 199), AFFINE))
