"""Parallel-beam PET projector, all slices at once (2.5-D).

Volumes are (k, j, i); sinograms are (angle, bin, k). P rotates and sums: bin t of angle theta holds

    (P x)(theta, t) = step sum_u x(t cos(theta) - u sin(theta), t sin(theta) + u cos(theta))

over equidistant depths u, x interpolated bilinearly between pixel centres and zero outside: a line integral in units
of x times millimetre. The four weights of every sample are collected once in a sparse matrix that all slices share:
P^T is the exact transpose, and a projection is one sparse product. In-plane geometry only: no oblique planes, no time
of flight.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

__all__ = ["Geometry", "Projector", "make_projector"]


@dataclass(frozen=True)
class Geometry:
    """Plane geometry: ``shape`` (j, i) pixels of ``pixel_mm``, ``angles`` over half a turn, ``bins`` of ``bin_mm``.

    ``rays`` > 1 averages that many equidistant rays within each bin, for images finer than the bins.
    """

    shape: tuple[int, int]
    pixel_mm: float
    bins: int
    bin_mm: float
    angles: int = 96
    rays: int = 1

    def finer(self, factor: int) -> Geometry:
        """Return the same bins over an image of ``factor`` times as many pixels along each axis."""
        shape = (self.shape[0] * factor, self.shape[1] * factor)
        return Geometry(shape, self.pixel_mm / factor, self.bins, self.bin_mm, self.angles, self.rays * factor)


@dataclass(frozen=True)
class Projector:
    """P for the angles ``subset::subsets`` of ``geometry``; pure, linear, with exact transpose ``T``."""

    geometry: Geometry
    matrix: Tensor
    transposed: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return P x: (k, j, i) -> (angle, bin, k)."""
        y: Tensor = self.matrix @ x.reshape(len(x), -1).T.contiguous()
        return y.reshape(-1, self.geometry.bins, len(x))

    def T(self, y: Tensor) -> Tensor:
        """Return P^T y: (angle, bin, k) -> (k, j, i)."""
        x: Tensor = self.transposed @ y.reshape(-1, y.shape[-1])
        return x.T.reshape(-1, *self.geometry.shape).contiguous()


@lru_cache(maxsize=96)
def make_projector(
    geometry: Geometry,
    *,
    subset: int = 0,
    subsets: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Projector:
    """Return the cached projector of every ``subsets``-th angle from ``subset`` on; building costs more than using it.

    Raises ValueError when ``subset`` is not one of ``subsets``.
    """
    if not 0 <= subset < subsets <= geometry.angles:
        raise ValueError(f"subset {subset} of {subsets} with {geometry.angles} angles")
    matrix = _make_matrix(geometry, np.arange(subset, geometry.angles, subsets) * np.pi / geometry.angles)
    return Projector(geometry, _torch_csr(matrix, dtype, device), _torch_csr(csr_array(matrix.T), dtype, device))


def _make_matrix(g: Geometry, theta: np.ndarray[tuple[int], np.dtype[np.float64]]) -> csr_array:
    """Return the matrix (angles * bins, pixels) of rotate-and-sum with bilinear weights."""
    rays = (np.arange(g.bins * g.rays) - (g.bins * g.rays - 1) / 2) * g.bin_mm / g.rays
    depth = math.ceil(math.hypot(*g.shape))
    u = (np.arange(depth) - (depth - 1) / 2) * g.pixel_mm
    c, s = np.cos(theta)[:, None, None], np.sin(theta)[:, None, None]
    i = (rays[:, None] * c - u * s) / g.pixel_mm + (g.shape[1] - 1) / 2
    j = (rays[:, None] * s + u * c) / g.pixel_mm + (g.shape[0] - 1) / 2
    row = np.arange(len(theta) * g.bins).repeat(g.rays * depth).reshape(i.shape)
    rows, columns, weights = [], [], []
    for dj in (0, 1):
        for di in (0, 1):
            jj, ii = np.floor(j) + dj, np.floor(i) + di
            weight = (1 - np.abs(j - jj)) * (1 - np.abs(i - ii))
            inside = (jj >= 0) & (jj < g.shape[0]) & (ii >= 0) & (ii < g.shape[1]) & (weight > 0)
            rows.append(row[inside])
            columns.append((jj * g.shape[1] + ii)[inside].astype(np.int64))
            weights.append(weight[inside] * (g.pixel_mm / g.rays))
    entries = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    return csr_array(entries, shape=(len(theta) * g.bins, g.shape[0] * g.shape[1]))


def _torch_csr(matrix: csr_array, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls its CSR tensors beta, once per process
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data).to(dtype),
            size=matrix.shape,
            device=device,
            check_invariants=False,
        )
