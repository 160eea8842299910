"""Standardised uptake value ratios of a PET image by region, and the one number of a scan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model_zoo.physics.tracers import COMPOSITES, Tracer
from model_zoo.structures import COUNT, number

__all__ = ["Regional", "composite_suvr", "reference_mean", "suvr"]


@dataclass(frozen=True)
class Regional:
    """Mean SUVR of each structure (COUNT,) in the order of their numbers, NaN where there is none, after division by

    ``reference``: what the image's own reference region had (1.00 +- 0.05 in an SUVR image that is in order).
    """

    suvr: Tensor
    reference: float


def suvr(image: Tensor, structure: Tensor, tracer: Tracer) -> Regional:
    """Regional SUVR of an image (k, j, i) with structure numbers on the same lattice, re-normalised by its reference.

    Raises ValueError where the reference region is missing or holds nothing.
    """
    reference = reference_mean(image, structure, tracer)
    index = structure.flatten().to(torch.int64)
    totals = torch.zeros(COUNT + 1).index_add_(0, index, image.flatten().to(torch.float32))
    return Regional((totals / torch.bincount(index, minlength=COUNT + 1))[1:] / reference, reference)


def reference_mean(image: Tensor, structure: Tensor, tracer: Tracer) -> float:
    chosen = torch.isin(structure, torch.tensor(tracer.reference_numbers, dtype=structure.dtype))
    mean = float(image[chosen].mean()) if bool(chosen.any()) else 0.0
    if mean <= 0:
        raise ValueError(f"{tracer.name}: no activity in the reference region ({', '.join(tracer.reference)})")
    return mean


def composite_suvr(regional: Tensor, target: str) -> Tensor:
    """The one number of a scan from regional values (..., COUNT): the mean over the target's composite regions that are
    there, by their nominal shares."""
    shares = torch.zeros(COUNT)
    for name, share in COMPOSITES[target].items():
        shares[number(name) - 1] = share
    there = torch.where(regional.isnan(), torch.zeros(()), shares)
    return (regional.nan_to_num() * there).sum(-1) / there.sum(-1)
