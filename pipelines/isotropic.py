"""An image on isotropic voxels along its own axes, and back: cubic splines, one matrix for each axis.

Linear interpolation would take a third of the peak of a hot spot as small as PET resolves; the cubic spline through
the samples keeps it, and where the spacing does not change both ways are the identity. Where the isotropic voxels are
coarser they hold the mean over their extent.
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
    """``grid``: isotropic voxels whose axes are the image's, in the order that is nearest to the patient's z, y, x.

    ``order``: axes (of k, j, i) of the image in that order. ``to``: matrices from them; ``fro`` and ``fro_linear``:
    those back, by cubic splines and linearly.
    """

    grid: Grid
    order: tuple[int, int, int]
    to: tuple[Tensor, Tensor, Tensor]
    fro: tuple[Tensor, Tensor, Tensor]
    fro_linear: tuple[Tensor, Tensor, Tensor]

    def there(self, x: Tensor) -> Tensor:
        """(..., k, j, i) of the image -> the same on ``grid``."""
        lead = x.dim() - 3
        return _each_axis(x.permute(*range(lead), *(lead + axis for axis in self.order)), self.to)

    def back(self, y: Tensor, *, linear: bool = False) -> Tensor:
        """(..., k, j, i) on ``grid`` -> at the voxels of the image. ``linear``: never beyond the values around."""
        found = _each_axis(y, self.fro_linear if linear else self.fro)
        lead = y.dim() - 3
        return found.permute(*range(lead), *(lead + self.order.index(axis) for axis in range(3))).contiguous()


def make_isotropic_transform(grid: Grid, spacing_mm: float) -> IsotropicTransform:
    """Voxels of ``spacing_mm`` that cover those of ``grid``, about the same centre."""
    order = _order(grid)
    counts, own_mm = [grid.shape[axis] for axis in order], [grid.spacing_mm[axis] for axis in order]
    shape = [max(int(np.ceil(n * mm / spacing_mm - 1e-3)), 1) for n, mm in zip(counts, own_mm, strict=True)]
    axes = list(zip(counts, own_mm, shape, strict=True))
    places = [_places(n, m, mm / spacing_mm) for n, mm, m in axes]
    lattice = Grid((shape[0], shape[1], shape[2]), _affine(grid, order, shape, spacing_mm))
    to = [_averaged(n, _places(m, n, spacing_mm / mm), spacing_mm / mm) for n, mm, m in axes]
    fro = [_spline(m, at, 3) for m, at in zip(shape, places, strict=True)]
    linear = [_spline(m, at, 1) for m, at in zip(shape, places, strict=True)]
    return IsotropicTransform(
        lattice, order, (to[0], to[1], to[2]), (fro[0], fro[1], fro[2]), (linear[0], linear[1], linear[2])
    )


def _order(grid: Grid) -> tuple[int, int, int]:
    """Of the axes k, j, i the one nearest to the patient's z, then y, then x."""
    directions = np.abs(grid.affine_mm[:3, :3] / np.linalg.norm(grid.affine_mm[:3, :3], axis=0))
    _, columns = linear_sum_assignment(-directions[::-1])
    k, j, i = (2 - int(column) for column in columns)
    return k, j, i


def _affine(grid: Grid, order: tuple[int, int, int], shape: list[int], spacing_mm: float) -> NDArray[np.float64]:
    """Of the isotropic lattice: columns i, j, k are the image's axes ``order`` reversed."""
    columns = [grid.affine_mm[:3, 2 - axis] for axis in reversed(order)]
    directions = np.stack([column / np.linalg.norm(column) for column in columns], axis=1)
    middle = grid.affine_mm @ [*((n - 1) / 2 for n in reversed(grid.shape)), 1]
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing_mm
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ [(n - 1) / 2 for n in reversed(shape)]
    return affine


def _places(n: int, m: int, ratio: float) -> NDArray[np.float64]:
    """Where the centres of ``n`` voxels, ``ratio`` times as large, lie among ``m`` voxels about the same centre."""
    return np.asarray((np.arange(n) - (n - 1) / 2) * ratio + (m - 1) / 2, np.float64)


def _averaged(m: int, places: NDArray[np.float64], ratio: float) -> Tensor:
    """Of voxels ``ratio`` times as large: the mean over as many places in each as voxels fit in."""
    count = max(round(ratio), 1)
    offsets = [((part + 0.5) / count - 0.5) * ratio for part in range(count)]
    return torch.stack([_spline(m, places + offset, 3) for offset in offsets]).mean(dim=0)


def _spline(m: int, places: NDArray[np.float64], degree: int) -> Tensor:
    """Matrix (places, m) of the spline through ``m`` samples; outside of them it has the value at the border."""
    degree = min(degree, m - 1)
    inside = np.clip(places, 0, m - 1)
    if degree < 1:
        return torch.ones(len(places), m)
    return torch.from_numpy(make_interp_spline(np.arange(m), np.eye(m), k=degree)(inside)).float()


def _each_axis(x: Tensor, matrices: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    k, j, i = (matrix.to(x) for matrix in matrices)
    x = x @ i.T
    x = j @ x
    found: Tensor = torch.tensordot(k, x, dims=([1], [x.dim() - 3])).movedim(0, -3).contiguous()
    return found
