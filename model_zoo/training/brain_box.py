"""Box of a fixed shape about a brain, which may leave the volume."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["crop_or_pad", "find_brain_box"]


def find_brain_box(structure: Tensor, shape: tuple[int, int, int]) -> tuple[tuple[int, int], ...]:
    """Return first and last voxel plus one along each axis, of ``shape`` about the brain's middle, maybe outside."""
    at = torch.nonzero(structure)
    middle = ((at.amin(dim=0) + at.amax(dim=0)) // 2).tolist()
    return tuple((m - n // 2, m - n // 2 + n) for m, n in zip(middle, shape, strict=True))


def crop_or_pad(x: Tensor, box: tuple[tuple[int, int], ...]) -> Tensor:
    """Return the voxels of ``box``, zero outside the volume."""
    inside = tuple(slice(max(a, 0), min(b, n)) for (a, b), n in zip(box, x.shape, strict=True))
    missing = [
        side for (a, b), n in zip(reversed(box), reversed(x.shape), strict=True) for side in (max(-a, 0), max(b - n, 0))
    ]
    return functional.pad(x[inside], missing)
