"""Images as the networks of translation see them: on isotropic voxels, without their bias field, scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model_zoo import bias_field
from model_zoo.translation.scales import AIR, Level

if TYPE_CHECKING:
    from model_zoo.translation.plan import Plan, PlannedSource, PlannedTarget

__all__ = ["find_inside", "scale_series"]


def scale_series(
    series: PlannedSource | PlannedTarget,
    image: Tensor,
    structure: Tensor | None,
    spacing_mm: float,
    *,
    is_ideal: bool = False,
) -> tuple[Tensor, Level]:
    """Return the scaled image (k, j, i), and its level. Raises ValueError where the image has no such level.

    ``structure``: numbers of ``model_zoo.structures`` on the same isotropic voxels, or None. With a tissue scale an MR
    image loses its bias field, which an ideal one does not have, and everything outside the structures is 0.
    """
    scale = series.parsed_scale
    if scale.kind == "tissue" and structure is not None:
        image = torch.where(structure > 0, image, 0.0)
        if series.modality == "MR" and not is_ideal:
            image = image / bias_field.estimate_bias_field(image, structure, spacing_mm)
    try:
        level = scale.measure(image, structure)
    except ValueError as error:
        raise ValueError(f"{series.name}: {error}") from None
    return level.apply(image), level


def find_inside(plan: Plan, volumes: dict[str, Tensor], structure: Tensor | None) -> Tensor:
    """Return the mask (k, j, i) of the voxels that the result is about: the structures, or what is no air in any."""
    if plan.labels == "structures" and structure is not None:
        return structure > 0
    return torch.stack([x > AIR for x in volumes.values()]).any(dim=0)
