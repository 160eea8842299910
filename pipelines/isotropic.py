"""Resampling of an image to isotropic voxels along its own axes and back: cubic splines, one matrix for each axis.

Linear interpolation would take a third of the peak of a hot spot as small as PET resolves; the cubic spline through
the samples keeps it, and where the spacing does not change both directions are the identity. Isotropic voxels that are
coarser hold the mean over their extent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pipelines.contract import Grid

__all__ = ["IsotropicTransform", "make_isotropic_transform"]


@dataclass(frozen=True)
class IsotropicTransform:
    """Resampling between the voxels of an image and an isotropic grid.

    ``grid``: isotropic voxels whose axes are the image's, in the order that is nearest to the patient's z, y, x.
    ``order``: axes (of k, j, i) of the image in that order. ``forward``: matrices from the image to ``grid``;
    ``inverse`` and ``inverse_linear``: matrices back, by cubic splines and linearly.
    """

    grid: Grid
    order: tuple[int, int, int]
    forward: tuple[Tensor, Tensor, Tensor]
    inverse: tuple[Tensor, Tensor, Tensor]
    inverse_linear: tuple[Tensor, Tensor, Tensor]

    def to_isotropic(self, x: Tensor) -> Tensor:
        """Resample (..., k, j, i) of the image to ``grid``."""
        lead = x.dim() - 3
        return _apply_to_each_axis(x.permute(*range(lead), *(lead + axis for axis in self.order)), self.forward)

    def from_isotropic(self, y: Tensor, *, linear: bool = False) -> Tensor:
        """Resample (..., k, j, i) on ``grid`` to the image's voxels; ``linear`` never exceeds neighbouring values."""
        result = _apply_to_each_axis(y, self.inverse_linear if linear else self.inverse)
        lead = y.dim() - 3
        return result.permute(*range(lead), *(lead + self.order.index(axis) for axis in range(3))).contiguous()


def make_isotropic_transform(grid: Grid, spacing_mm: float) -> IsotropicTransform:
    """Return the transform to voxels of ``spacing_mm`` that cover those of ``grid``, about the same centre."""
    order = _order_axes(grid)
    counts, own_mm = [grid.shape[axis] for axis in order], [grid.spacing_mm[axis] for axis in order]
    shape = [max(int(np.ceil(n * mm / spacing_mm - 1e-3)), 1) for n, mm in zip(counts, own_mm, strict=True)]
    axes = list(zip(counts, own_mm, shape, strict=True))
    places = [_centres(n, m, mm / spacing_mm) for n, mm, m in axes]
    isotropic_grid = Grid((shape[0], shape[1], shape[2]), _affine(grid, order, shape, spacing_mm))
    forward = [_averaging_matrix(n, _centres(m, n, spacing_mm / mm), spacing_mm / mm) for n, mm, m in axes]
    inverse = [_spline_matrix(m, at, 3) for m, at in zip(shape, places, strict=True)]
    inverse_linear = [_spline_matrix(m, at, 1) for m, at in zip(shape, places, strict=True)]
    return IsotropicTransform(
        isotropic_grid,
        order,
        (forward[0], forward[1], forward[2]),
        (inverse[0], inverse[1], inverse[2]),
        (inverse_linear[0], inverse_linear[1], inverse_linear[2]),
    )


def _order_axes(grid: Grid) -> tuple[int, int, int]:
    """Return the axes (of k, j, i) in the order that is nearest to the patient's z, y, x."""
    directions = np.abs(grid.affine_mm[:3, :3] / np.linalg.norm(grid.affine_mm[:3, :3], axis=0))
    _, columns = linear_sum_assignment(-directions[::-1])
    k, j, i = (2 - int(column) for column in columns)
    return k, j, i


def _affine(grid: Grid, order: tuple[int, int, int], shape: list[int], spacing_mm: float) -> NDArray[np.float64]:
    """Return the affine of the isotropic grid; its columns i, j, k are the image's axes ``order`` reversed."""
    columns = [grid.affine_mm[:3, 2 - axis] for axis in reversed(order)]
    directions = np.stack([column / np.linalg.norm(column) for column in columns], axis=1)
    middle = grid.affine_mm @ [*((n - 1) / 2 for n in reversed(grid.shape)), 1]
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing_mm
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ [(n - 1) / 2 for n in reversed(shape)]
    return affine


def _centres(n: int, m: int, ratio: float) -> NDArray[np.float64]:
    """Return the places of ``n`` voxel centres, ``ratio`` times as large, among ``m`` voxels about the same centre."""
    return np.asarray((np.arange(n) - (n - 1) / 2) * ratio + (m - 1) / 2, np.float64)


def _averaging_matrix(m: int, places: NDArray[np.float64], ratio: float) -> Tensor:
    """Return the matrix of means over voxels ``ratio`` times as large, of as many places in each as voxels fit in."""
    count = max(round(ratio), 1)
    offsets = [((part + 0.5) / count - 0.5) * ratio for part in range(count)]
    return torch.stack([_spline_matrix(m, places + offset, 3) for offset in offsets]).mean(dim=0)


def _spline_matrix(m: int, places: NDArray[np.float64], degree: int) -> Tensor:
    """Return the matrix (places, m) of the spline through ``m`` samples; outside them the border's value holds."""
    degree = min(degree, m - 1)
    inside = np.clip(places, 0, m - 1)
    if degree < 1:
        return torch.ones(len(places), m)
    return torch.from_numpy(make_interp_spline(np.arange(m), np.eye(m), k=degree)(inside)).float()


def _apply_to_each_axis(x: Tensor, matrices: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    k, j, i = (matrix.to(x) for matrix in matrices)
    x = x @ i.T
    x = j @ x
    result: Tensor = torch.tensordot(k, x, dims=([1], [x.dim() - 3])).movedim(0, -3).contiguous()
    return result
