"""Uptake measures of PET, and the isotropic voxels on which a network sees it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines import uptake
from pipelines.isotropic import make_isotropic_transform
from tests.scanner import make_grid

GRID = make_grid("axial", (24, 40, 44), (3.0, 3.0, 3.0), (-60.0, -55.0, 12.0))


def _make_hot_spot(sd_mm: float, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> torch.Tensor:
    """Return a Gaussian in the middle of a grid."""
    k, j, i = (np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2) * np.array(spacing_mm)[
        :, None, None, None
    ]
    return torch.from_numpy(np.exp(-(k**2 + j**2 + i**2) / (2 * sd_mm**2)).astype(np.float32))


def test_the_spline_keeps_the_peak_that_linear_interpolation_takes() -> None:
    grid = make_grid("axial", (21, 25, 25), (3.3, 4.7, 4.7), (0.0, 0.0, 0.0))
    x = _make_hot_spot(3.0, grid.shape, grid.spacing_mm)
    there = make_isotropic_transform(grid, 2.5)
    cubic, linear = (there.from_isotropic(there.to_isotropic(x), linear=each) for each in (False, True))
    assert float(cubic.max() / x.max()) == pytest.approx(1, abs=0.03)
    assert float(linear.max() / x.max()) < 0.97


def test_isotropic_voxels_of_the_right_size_are_left_alone() -> None:
    x = torch.rand(GRID.shape)
    isotropic = make_isotropic_transform(GRID, 3.0)
    assert torch.equal(isotropic.to_isotropic(x), x)
    assert torch.equal(isotropic.from_isotropic(x), x)
    assert np.allclose(isotropic.grid.affine_mm, GRID.affine_mm)


def test_coarser_voxels_hold_the_mean_of_finer_ones() -> None:
    grid = make_grid("axial", (40, 40, 40), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    white = torch.randn(grid.shape, generator=torch.Generator().manual_seed(1))
    coarse = make_isotropic_transform(grid, 3.0).to_isotropic(white)
    assert float(coarse.std()) == pytest.approx(27**-0.5, rel=0.25)


@pytest.mark.parametrize("spacing_mm", [(3.0, 3.0, 3.0), (5.0, 2.7, 2.7), (1.5, 1.5, 1.5)])
def test_the_peak_is_the_mean_over_a_millilitre(spacing_mm: tuple[float, float, float]) -> None:
    ball = uptake.ball_weights(make_grid("axial", (9, 9, 9), spacing_mm, (0.0, 0.0, 0.0)), 1.0)
    ml = float(np.prod(spacing_mm)) / 1000
    assert ball.sum() == pytest.approx(1, rel=1e-5)
    assert ml / ball.max() == pytest.approx(1, rel=0.06)
    grid = make_grid("axial", (40, 40, 40), spacing_mm, (0.0, 0.0, 0.0))
    k, j, i = (np.indices(grid.shape) - 19.5) * np.array(spacing_mm)[:, None, None, None]
    hot = (k**2 + j**2 + i**2 < 14**2).astype(np.float32)
    peak = float(uptake.average_over_ball(hot, grid).max())
    assert peak == pytest.approx(1, abs=1e-3)
    assert uptake.average_over_ball(np.ones_like(hot), grid).min() == pytest.approx(1, abs=1e-3)
