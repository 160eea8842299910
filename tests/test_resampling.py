"""Resampling from one grid to another: against scipy, and over the extent of thick slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from pipelines import resampling
from pipelines.contract import Grid
from tests.bundles import centred_grid, phantom_grid
from tests.scanner import ORIENTATIONS, make_grid


def test_a_thick_slice_gets_what_fills_most_of_it() -> None:
    fine = Grid((12, 8, 8), np.diag([1.0, 1.0, 1.0, 1.0]))
    thick_affine = np.diag([1.0, 1.0, 6.0, 1.0])
    thick_affine[2, 3] = 2.5  # slices cover k 0..5 and 6..11
    p = torch.zeros(2, 12, 8, 8)
    p[1, 2:4] = 1  # a third of the first slice, at its very centre
    p[1, 7:12] = 1  # most of the second
    p[0] = 1 - p[1]
    found = resampling.resample(p, fine, Grid((2, 8, 8), thick_affine))
    assert torch.allclose(found[1, 0], torch.tensor(1 / 3), atol=1e-6)
    assert torch.allclose(found[1, 1], torch.tensor(5 / 6), atol=1e-6)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_sampling_agrees_with_scipy(orientation: str) -> None:
    grid = make_grid(orientation, (9, 11, 13), (1.1, 0.9, 1.3), (-4, 2, 7))
    onto = resampling.axis_aligned(grid, 1.0)
    data = torch.rand(2, *grid.shape, generator=torch.Generator().manual_seed(3))
    to_index = np.linalg.solve(grid.affine_mm, onto.affine_mm)
    k, j, i = np.indices(onto.shape).reshape(3, -1)
    at = (to_index @ np.stack([i, j, k, np.ones_like(i)]))[2::-1]
    expected = [ndimage.map_coordinates(each, at, order=1, mode="grid-constant").reshape(onto.shape) for each in data]
    assert np.abs(resampling.resample(data, grid, onto).numpy() - np.stack(expected)).max() < 1e-4


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_voxels_of_the_same_grid_are_copied(orientation: str) -> None:
    grid = make_grid(orientation, (9, 11, 13), (1.1, 0.9, 1.3), (-4, 2, 7))
    data = torch.rand(2, *grid.shape, generator=torch.Generator().manual_seed(3))
    found = resampling.resample(data, grid, resampling.subgrid(grid, (2, 0, 3), (5, 11, 9)))
    assert torch.equal(found, data[:, 2:7, :, 3:12])
    found[:] = -1
    assert data.min() >= 0


def test_voxels_that_lie_half_outside_of_the_grid_are_interpolated() -> None:
    grid = make_grid("axial", (8, 9, 10), (1.1, 0.9, 1.3), (-4, 2, 7))
    beyond = resampling.subgrid(grid, (6, 0, 0), (4, 9, 10))
    moved = Grid(grid.shape, grid.affine_mm @ np.array([[1, 0, 0, 0.4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    data = torch.arange(10.0).expand(1, 8, 9, 10)
    assert torch.equal(resampling.resample(data, grid, beyond)[:, 2:], torch.zeros(1, 2, 9, 10))
    assert torch.allclose(resampling.resample(data, grid, moved)[..., 3], torch.tensor(3.4), atol=1e-5)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_upright_grid_covers_every_voxel_and_little_more(orientation: str) -> None:
    grid = make_grid(orientation, (9, 11, 13), (2.1, 0.9, 1.3), (-4, 2, 7))
    onto = resampling.axis_aligned(grid, 1.0)
    ones = torch.ones(1, *onto.shape)
    assert resampling.resample(ones, onto, grid).min() > 0.5
    assert np.allclose(onto.affine_mm[:3, :3], np.eye(3))
    i, j, k, _ = (np.linalg.solve(onto.affine_mm, grid.affine_mm) @ [[0, 12], [0, 10], [0, 8], [1, 1]]).round()
    assert min(i.min(), j.min(), k.min()) >= 0


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_box_holds_every_voxel_that_the_mask_touches(orientation: str) -> None:
    grid, onto = phantom_grid(), centred_grid(orientation, (3.0, 4.0, 5.0))
    mask = np.zeros(grid.shape, bool)
    mask[20:25, 15:22, 30:33] = True
    start, shape = resampling.bounding_box(mask, grid, onto)
    touched = resampling.resample(torch.from_numpy(mask[None]).float(), grid, onto)[0].numpy() > 0
    inside = np.zeros(onto.shape, bool)
    inside[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))] = True
    assert touched.any()
    assert not (touched & ~inside).any()
    assert inside.sum() < 0.05 * inside.size
    assert resampling.bounding_box(np.zeros(grid.shape, bool), grid, onto)[1] == (0, 0, 0)
