"""Labels as a registration and a segmentation of another image give them: their borders are off."""

from __future__ import annotations

import torch
from torch import Tensor

from model_zoo.simulate.heads import smooth_field_3d

__all__ = ["misplaced"]


def misplaced(labels: Tensor, sd_voxels: float, cells: int, generator: torch.Generator) -> Tensor:
    """``labels`` (k, j, i), each taken from a place that is off by a smooth field of ``sd_voxels`` along each axis.

    The field has ``cells``^3 knots; beyond the border the outermost labels go on.
    """
    shape = (labels.shape[0], labels.shape[1], labels.shape[2])
    flat = torch.zeros(shape, dtype=torch.int64)
    for axis, n in enumerate(shape):
        place = torch.arange(n).view([-1 if a == axis else 1 for a in range(3)])
        off = sd_voxels * smooth_field_3d(shape, cells, generator)
        flat = flat * n + (place + off).round().clamp(0, n - 1).long()
    return labels.flatten()[flat]
