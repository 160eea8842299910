"""Standardised uptake value ratios of a PET image by region, and their composite."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model_zoo.physics.tracers import COMPOSITES, Tracer
from model_zoo.structures import COUNT, number

__all__ = ["RegionalSuvr", "composite_suvr", "compute_suvr", "reference_mean"]


@dataclass(frozen=True)
class RegionalSuvr:
    """Mean SUVR of each structure (COUNT,) in the order of their numbers, NaN for a missing structure.

    ``reference``: the image's own value in the reference region, by which ``suvr`` is divided (1.00 +- 0.05 in a
    correct SUVR image).
    """

    suvr: Tensor
    reference: float


def compute_suvr(image: Tensor, structure: Tensor, tracer: Tracer) -> RegionalSuvr:
    """Compute the regional SUVR of an image (k, j, i), re-normalised by its reference region.

    ``structure``: structure numbers on the same grid. Raises ValueError where the reference region is missing or empty.
    """
    reference = reference_mean(image, structure, tracer)
    index = structure.flatten().to(torch.int64)
    totals = torch.zeros(COUNT + 1).index_add_(0, index, image.flatten().to(torch.float32))
    return RegionalSuvr((totals / torch.bincount(index, minlength=COUNT + 1))[1:] / reference, reference)


def reference_mean(image: Tensor, structure: Tensor, tracer: Tracer) -> float:
    """Return the mean of the tracer's reference region. Raises ValueError unless it is positive."""
    in_reference = torch.isin(structure, torch.tensor(tracer.reference_numbers, dtype=structure.dtype))
    mean = float(image[in_reference].mean()) if bool(in_reference.any()) else 0.0
    if mean <= 0:
        raise ValueError(f"{tracer.name}: no activity in the reference region ({', '.join(tracer.reference)})")
    return mean


def composite_suvr(regional: Tensor, target: str) -> Tensor:
    """Return the mean of regional values (..., COUNT) over the target's composite regions, by their nominal shares.

    Missing regions do not count.
    """
    shares = torch.zeros(COUNT)
    for name, share in COMPOSITES[target].items():
        shares[number(name) - 1] = share
    present = torch.where(regional.isnan(), torch.zeros(()), shares)
    return (regional.nan_to_num() * present).sum(-1) / present.sum(-1)
