"""Linear resampling of arrays from one grid to another, anywhere in the patient.

A coarse voxel is the mean over its extent, a fine one the value at its centre; outside the array values are zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipelines.contract import Grid

__all__ = ["axis_aligned", "bounding_box", "iterate_slabs", "resample", "resample_labels", "subgrid"]

_SAME_VOXEL = 1e-3
"""Share of a voxel by which two grids may differ anywhere and still have the same voxels."""
_VOXELS_AT_ONCE = 1_000_000


def axis_aligned(grid: Grid, spacing_mm: float) -> Grid:
    """Return the grid of isotropic voxels along the patient's axes (LPS) that just covers the voxels of ``grid``."""
    low, high = _extent_mm(grid)
    i, j, k = np.maximum(np.ceil((high - low) / spacing_mm - 1e-3), 1).astype(int)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = low + ((high - low) - (np.array([i, j, k]) - 1) * spacing_mm) / 2
    return Grid((int(k), int(j), int(i)), affine)


def _extent_mm(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the smallest and largest LPS coordinates of the voxels, borders included."""
    k, j, i = grid.shape
    corners = np.array([[x, y, z, 1] for x in (-0.5, i - 0.5) for y in (-0.5, j - 0.5) for z in (-0.5, k - 0.5)])
    places = (corners @ grid.affine_mm.T)[:, :3]
    return places.min(axis=0), places.max(axis=0)


def subgrid(grid: Grid, start: tuple[int, int, int], shape: tuple[int, int, int]) -> Grid:
    """Return the grid of ``shape`` whose first voxel is voxel ``start`` (k, j, i) of ``grid``; it may reach outside."""
    affine = grid.affine_mm.copy()
    affine[:, 3] = grid.affine_mm @ [start[2], start[1], start[0], 1]
    return Grid(shape, affine)


def bounding_box(mask: NDArray[np.bool_], grid: Grid, onto: Grid) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return start and shape (k, j, i) of the box in ``onto`` that can touch a voxel of ``grid`` inside ``mask``.

    The shape is zero where the mask is empty or lies outside.
    """
    if not mask.any():
        return (0, 0, 0), (0, 0, 0)
    ends = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))[[0, -1]] for axis in (2, 1, 0)]
    corners = np.array(np.meshgrid(*[(low - 1, high + 1) for low, high in ends], [1], indexing="ij")).reshape(4, -1)
    indices = (np.linalg.inv(onto.affine_mm) @ grid.affine_mm @ corners)[:3][::-1]
    size = np.array(onto.shape)
    start = np.clip(np.floor(indices.min(axis=1)).astype(int), 0, size)
    stop = np.clip(np.ceil(indices.max(axis=1)).astype(int) + 1, 0, size)
    shape = stop - start if (stop > start).all() else np.zeros(3, int)
    return (int(start[0]), int(start[1]), int(start[2])), (int(shape[0]), int(shape[1]), int(shape[2]))


def iterate_slabs(shape: tuple[int, int, int]) -> Iterator[tuple[int, int]]:
    """Yield ranges of slices that hold about a million voxels each."""
    thick = max(_VOXELS_AT_ONCE // max(shape[1] * shape[2], 1), 1)
    for start in range(0, shape[0], thick):
        yield start, min(start + thick, shape[0])


def resample(x: Tensor, grid: Grid, onto: Grid) -> Tensor:
    """Resample ``x``, float (c, k, j, i) on ``grid``, to (c, k, j, i) on ``onto``, on the device of ``x``.

    Voxels of ``onto`` that are voxels of ``grid`` are copied.
    """
    if part := _find_copied_part(grid, onto):
        return x[(slice(None), *part)].clone()
    counts = [max(round(b / a), 1) for a, b in zip(_spacing_along(grid, onto), onto.spacing_mm, strict=True)]
    total = x.new_zeros((x.shape[0], *onto.shape))
    for offset in np.ndindex(*counts):
        shift = [(n + 0.5) / count - 0.5 for n, count in zip(offset, counts, strict=True)]
        total += functional.grid_sample(
            x[None], _sampling_places(grid, onto, shift, x), mode="bilinear", align_corners=True
        )[0]
    return total / float(np.prod(counts))


def resample_labels(labels: NDArray[np.uint8], grid: Grid, onto: Grid, count: int) -> NDArray[np.uint8]:
    """Return the label, from 1 to ``count``, that fills more than half of each voxel of ``onto``, or 0."""
    result = np.zeros(onto.shape, np.uint8)
    (k, j, i), shape = bounding_box(labels > 0, grid, onto)
    if 0 in shape:
        return result
    box = subgrid(onto, (k, j, i), shape)
    best = torch.full(shape, 0.5)
    labels_in_box = np.zeros(shape, np.uint8)
    for number in range(1, count + 1):
        share = resample(torch.from_numpy(labels == number).float()[None], grid, box)[0]
        labels_in_box[(share > best).numpy()] = number
        best = torch.maximum(best, share)
    result[k : k + shape[0], j : j + shape[1], i : i + shape[2]] = labels_in_box
    return result


def _find_copied_part(grid: Grid, onto: Grid) -> tuple[slice, slice, slice] | None:
    """Return the voxels (k, j, i) of ``grid`` that are those of ``onto``, or None where any of these is not one."""
    to_index = np.linalg.solve(grid.affine_mm, onto.affine_mm)[:3]
    start = np.rint(to_index[:, 3])
    if np.abs(to_index - np.column_stack([np.eye(3), start])).max() * max(onto.shape) > _SAME_VOXEL:
        return None
    first = [int(n) for n in start[::-1]]
    last = [n + size for n, size in zip(first, onto.shape, strict=True)]
    if min(first) < 0 or any(n > size for n, size in zip(last, grid.shape, strict=True)):
        return None
    k, j, i = (slice(a, b) for a, b in zip(first, last, strict=True))
    return k, j, i


def _spacing_along(grid: Grid, onto: Grid) -> list[float]:
    """Return the distance in millimetres between planes of ``grid`` along each axis (k, j, i) of ``onto``."""
    axes = onto.affine_mm[:3, :3] / np.linalg.norm(onto.affine_mm[:3, :3], axis=0)
    steps = np.linalg.solve(grid.affine_mm[:3, :3], axes)  # voxels of grid per millimetre
    return [float(1 / np.abs(steps[:, axis]).max()) for axis in (2, 1, 0)]


def _sampling_places(grid: Grid, onto: Grid, shift: list[float], like: Tensor) -> Tensor:
    """Return for grid_sample where the voxels of ``onto``, moved by ``shift`` of a voxel (k, j, i), lie in ``grid``."""
    to_index = np.linalg.solve(grid.affine_mm, onto.affine_mm)
    scale = 2 / np.maximum(np.array(grid.shape[::-1]) - 1, 1)
    matrix = torch.as_tensor(to_index[:3, :3] * scale[:, None], dtype=torch.float32, device=like.device)
    start = to_index[:3, :3] @ shift[::-1] + to_index[:3, 3]
    origin = torch.as_tensor(start * scale - 1, dtype=torch.float32, device=like.device)
    k, j, i = (torch.arange(n, dtype=torch.float32, device=like.device) for n in onto.shape)
    places = k[:, None, None, None] * matrix[:, 2] + j[:, None, None] * matrix[:, 1] + i[:, None] * matrix[:, 0]
    return (places + origin)[None]
