"""Similarity of an image to its reference, and uptake measures of PET. Volumes are (k, j, i)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from model_zoo import similarity

__all__ = ["bias_percent", "nrmse", "psnr_db", "ssim", "suv_peak"]


def psnr_db(x: Tensor, reference: Tensor, inside: Tensor) -> float:
    """Return ``similarity.psnr`` over the voxels ``inside``, the reference's maximum as data range."""
    return similarity.psnr(x, reference, float(reference.max()), inside)


def nrmse(x: Tensor, reference: Tensor, inside: Tensor) -> float:
    """Return the RMSE over the mean of the reference, both over the voxels ``inside``."""
    return float((x - reference)[inside].square().mean().sqrt() / reference[inside].mean())


def ssim(x: Tensor, reference: Tensor, inside: Tensor) -> float:
    """Return ``similarity.ssim`` over the voxels ``inside``, the reference's maximum as data range."""
    return similarity.ssim(x, reference, float(reference.max()), inside)


def bias_percent(x: Tensor, reference: Tensor, inside: Tensor) -> float:
    """Return 100 (mean of x / mean of the reference - 1) over the voxels ``inside``."""
    return 100 * (float(x[inside].mean() / reference[inside].mean()) - 1)


def suv_peak(x: Tensor, inside: Tensor, spacing_mm: float) -> float:
    """Return the highest mean over a ball of 1 ml whose centre is ``inside`` (PERCIST: Wahl et al. 2009)."""
    radius = (3 / (4 * math.pi) * 1000) ** (1 / 3) / spacing_mm
    n = math.ceil(radius)
    offset = torch.arange(-n, n + 1)
    k, j, i = torch.meshgrid(offset, offset, offset, indexing="ij")
    ball = (k**2 + j**2 + i**2 <= radius**2).to(x)
    means = functional.conv3d(x[None, None], ball[None, None] / ball.sum(), padding=n)[0, 0]
    return float(means[inside].max())
