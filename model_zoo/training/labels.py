"""Labels of simulated subjects as real images give them: by CT number, and with displaced borders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model_zoo import ct_tissues
from model_zoo.simulate.heads import draw_smooth_field_3d
from model_zoo.simulate.pet import low_dose
from model_zoo.simulate.pet.low_dose import ScannedObject

__all__ = ["displace_labels", "label_tissues_by_ct"]


def label_tissues_by_ct(subject: ScannedObject, names: Sequence[str]) -> ScannedObject:
    """Return the object with the tissues of its attenuation map for regions, numbered by their place in ``names``."""
    tissues = low_dose.label_by_attenuation(subject).regions
    before = names.index(ct_tissues.NAMES[0])
    return replace(subject, regions=torch.where(tissues > 0, tissues + before, tissues))


def displace_labels(labels: Tensor, sd_voxels: float, cells: int, generator: torch.Generator) -> Tensor:
    """Return ``labels`` (k, j, i) displaced by a smooth random field of ``sd_voxels`` along each axis.

    The field has ``cells``^3 knots; beyond the border the outermost labels go on.
    """
    shape = (labels.shape[0], labels.shape[1], labels.shape[2])
    flat = torch.zeros(shape, dtype=torch.int64)
    for axis, n in enumerate(shape):
        place = torch.arange(n).view([-1 if a == axis else 1 for a in range(3)])
        shift = sd_voxels * draw_smooth_field_3d(shape, cells, generator)
        flat = flat * n + (place + shift).round().clamp(0, n - 1).long()
    return labels.flatten()[flat]
