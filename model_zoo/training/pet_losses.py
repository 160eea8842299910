"""Losses of a restored PET image over regions and between blocks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["region_bias", "structural_consistency"]


def region_bias(mean: Tensor, target: Tensor, regions: Tensor) -> Tensor:
    """Return the mean over items and regions present (the rest of the body is one) of |mean error| / mean of target."""
    biases = []
    for m, t, r in zip(mean[:, 0], target[:, 0], regions.long(), strict=True):
        outside = int(r.max()) + 1
        index, size = torch.where(t > 0.25 * t.mean(), r, outside).flatten(), outside + 1
        error, total = (torch.zeros(size, device=t.device).index_add(0, index, x.flatten()) for x in (m - t, t))
        is_present = torch.bincount(index, minlength=size)[:-1] >= 8
        biases.append((error[:-1].abs() / total[:-1].clamp_min(1e-6))[is_present].mean())
    return torch.stack(biases).nan_to_num().mean()


def structural_consistency(
    mean: Tensor, target: Tensor, *, vertex_weight: float = 0.0, line_weight: float = 1.0
) -> Tensor:
    """Return the error of blocks and of the relations between blocks, of images or features (b, c, k, j, i).

        v mean over i of |f_i - f'_i|^2 per voxel  +  l mean over pairs i < j of (1 - cos(f_i - f_j, f'_i - f'_j))

    f_i are the voxels of a block: the middle one and its six neighbours, a quarter of the patch wide and apart. That is
    eq. 11.7 of Jiang et al. with the relations that their text describes. Their equation compares f_i - f'_i with f_j -
    f'_j, so that blocks with one error in common count as alike. It sums where this takes means, and takes its blocks
    98 voxels apart, of which in their images hardly two neighbours exist.
    """
    f, g = _cut_blocks(mean), _cut_blocks(target)
    vertex_term = vertex_weight * (f - g).square().mean() if vertex_weight else f.new_zeros(())
    first, second = torch.triu_indices(f.shape[1], f.shape[1], offset=1, device=f.device)
    f, g = (x[:, first] - x[:, second] for x in (f, g))
    return vertex_term + line_weight * (1 - functional.cosine_similarity(f, g, dim=-1, eps=1e-6)).mean()


def _cut_blocks(x: Tensor) -> Tensor:
    """Cut out the blocks: (b, c, k, j, i) -> (b, 7, voxels of a block)."""
    size = x.shape[-1] // 4
    middle = [(n - size) // 2 for n in x.shape[2:]]
    moves = [(0, 0, 0), *(tuple(s * size * (a == b) for b in range(3)) for a in range(3) for s in (-1, 1))]
    places = [[m + d for m, d in zip(middle, move, strict=True)] for move in moves]
    return torch.stack([x[:, :, k : k + size, j : j + size, i : i + size] for k, j, i in places], dim=1).flatten(2)
