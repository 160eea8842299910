"""Boxes about a brain: of a fixed shape, which may leave the volume, or with a margin inside it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["crop_or_pad", "find_box_with_margin", "find_brain_box"]


def find_brain_box(structure: Tensor, shape: tuple[int, int, int]) -> tuple[tuple[int, int], ...]:
    """Return first and last voxel plus one along each axis, of ``shape`` about the brain's middle, maybe outside."""
    at = torch.nonzero(structure)
    middle = ((at.amin(dim=0) + at.amax(dim=0)) // 2).tolist()
    return tuple((m - n // 2, m - n // 2 + n) for m, n in zip(middle, shape, strict=True))


def find_box_with_margin(structure: Tensor, margin: int, least: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    """Return the brain's box with ``margin`` voxels on each side inside the volume, at least of the shape ``least``."""
    box = []
    for axis, (n, size) in enumerate(zip(structure.shape, least, strict=True)):
        others = tuple(a for a in range(3) if a != axis)
        inside = torch.nonzero((structure > 0).any(dim=others[1]).any(dim=others[0]))
        first, last = int(inside.min()) - margin, int(inside.max()) + margin + 1
        first = max(0, min(first, (first + last - size) // 2))
        box.append(slice(first, min(n, max(last, first + size))))
    k, j, i = box
    return k, j, i


def crop_or_pad(x: Tensor, box: tuple[tuple[int, int], ...]) -> Tensor:
    """Return the voxels of ``box``, zero outside the volume."""
    inside = tuple(slice(max(a, 0), min(b, n)) for (a, b), n in zip(box, x.shape, strict=True))
    missing = [
        side for (a, b), n in zip(reversed(box), reversed(x.shape), strict=True) for side in (max(-a, 0), max(b - n, 0))
    ]
    return functional.pad(x[inside], missing)
