"""Labels of simulated subjects as other images give them: by CT number, and with borders that are off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model_zoo import ct_tissues
from model_zoo.simulate.heads import smooth_field_3d
from model_zoo.simulate.pet import low_dose
from model_zoo.simulate.pet.low_dose import Object

__all__ = ["by_ct", "misplaced"]


def by_ct(found: Object, names: Sequence[str]) -> Object:
    """The object with the tissues of its attenuation map for regions, numbered from 1 as they stand in ``names``."""
    tissues = low_dose.by_attenuation(found).regions
    before = names.index(ct_tissues.NAMES[0])
    return replace(found, regions=torch.where(tissues > 0, tissues + before, tissues))


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
