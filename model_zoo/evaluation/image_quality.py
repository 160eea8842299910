"""How close an image is to its reference, and the numbers that PET is read by. Volumes are (k, j, i)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from model_zoo.simulate.pet.projector import FWHM, blur

__all__ = ["bias_percent", "nrmse", "psnr_db", "ssim", "suv_peak"]


def psnr_db(x: Tensor, reference: Tensor, inside: Tensor) -> float:
    """20 log10(peak / RMSE) with the reference's maximum as peak and the error over the voxels ``inside``."""
    rmse = float((x - reference)[inside].square().mean().sqrt())
    return 20 * math.log10(float(reference.max()) / max(rmse, 1e-12))


def nrmse(x: Tensor, reference: Tensor, inside: Tensor) -> float:
    """RMSE over the mean of the reference, both over the voxels ``inside``."""
    return float((x - reference)[inside].square().mean().sqrt() / reference[inside].mean())


def ssim(x: Tensor, reference: Tensor, inside: Tensor) -> float:
    """Structural similarity (Wang et al. 2004), Gaussian window of 1.5 voxels, data range: the reference's maximum.

    Mean over the voxels ``inside``.
    """

    def mean(v: Tensor) -> Tensor:
        return blur(v, 1.5 * FWHM, (1.0, 1.0, 1.0), normalised=True)

    c1, c2 = ((k * float(reference.max())) ** 2 for k in (0.01, 0.03))
    m, n = mean(x), mean(reference)
    covariance = mean(x * reference) - m * n
    variances = mean(x * x) - m * m + mean(reference * reference) - n * n
    index = (2 * m * n + c1) * (2 * covariance + c2) / ((m * m + n * n + c1) * (variances + c2))
    return float(index[inside].mean())


def bias_percent(x: Tensor, reference: Tensor, inside: Tensor) -> float:
    """100 (mean of x / mean of the reference - 1) over the voxels ``inside``."""
    return 100 * (float(x[inside].mean() / reference[inside].mean()) - 1)


def suv_peak(x: Tensor, inside: Tensor, spacing_mm: float) -> float:
    """Highest mean over a ball of 1 ml whose centre is ``inside`` (PERCIST: Wahl et al. 2009)."""
    radius = (3 / (4 * math.pi) * 1000) ** (1 / 3) / spacing_mm
    n = math.ceil(radius)
    offset = torch.arange(-n, n + 1)
    k, j, i = torch.meshgrid(offset, offset, offset, indexing="ij")
    ball = (k**2 + j**2 + i**2 <= radius**2).to(x)
    means = functional.conv3d(x[None, None], ball[None, None] / ball.sum(), padding=n)[0, 0]
    return float(means[inside].max())
