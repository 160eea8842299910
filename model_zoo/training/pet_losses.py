"""Losses of a restored PET image over regions and between blocks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model_zoo.simulate.pet.low_dose import REGIONS

__all__ = ["region_bias", "structural_consistency"]


def region_bias(mean: Tensor, target: Tensor, regions: Tensor) -> Tensor:
    """Mean over items and the regions present (the rest of the body is one) of |mean error| / mean of the target."""
    found = []
    for m, t, r in zip(mean[:, 0], target[:, 0], regions.long(), strict=True):
        index = torch.where(t > 0.25 * t.mean(), r, len(REGIONS) + 1).flatten()
        size = len(REGIONS) + 2
        error, total = (torch.zeros(size, device=t.device).index_add(0, index, x.flatten()) for x in (m - t, t))
        there = torch.bincount(index, minlength=size)[:-1] >= 8
        found.append((error[:-1].abs() / total[:-1].clamp_min(1e-6))[there].mean())
    return torch.stack(found).nan_to_num().mean()


def structural_consistency(mean: Tensor, target: Tensor) -> Tensor:
    """1 - cos of the differences between blocks, over all pairs of the middle block and its six neighbours."""
    size = mean.shape[-1] // 4
    middle = [(n - size) // 2 for n in mean.shape[2:]]
    moves = [(0, 0, 0), *(tuple(s * size * (a == b) for b in range(3)) for a in range(3) for s in (-1, 1))]

    def blocks(x: Tensor) -> Tensor:
        places = [[m + d for m, d in zip(middle, move, strict=True)] for move in moves]
        cut = [x[:, 0, k : k + size, j : j + size, i : i + size] for k, j, i in places]
        return torch.stack(cut, dim=1).flatten(2)

    first, second = torch.triu_indices(len(moves), len(moves), offset=1, device=mean.device)
    f, g = (x[:, first] - x[:, second] for x in (blocks(mean), blocks(target)))
    return (1 - functional.cosine_similarity(f, g, dim=-1, eps=1e-6)).mean()
