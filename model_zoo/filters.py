"""Classical denoising of volumes, the baselines of the standard-dose model: Gaussian and non-local means."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from model_zoo.simulate.pet.projector import blur

__all__ = ["gaussians", "non_local_means"]


def gaussians(x: Tensor, fwhms_mm: tuple[float, ...], spacing_mm: float) -> list[Tensor]:
    """``x`` (k, j, i) blurred by each width, constants kept at the border."""
    return [blur(x, fwhm_mm, (spacing_mm,) * 3, normalised=True) for fwhm_mm in fwhms_mm]


def non_local_means(x: Tensor, strengths: tuple[float, ...], noise_sd: Tensor, *, reach: int = 2) -> list[Tensor]:
    """Non-local means (Buades, Coll & Morel 2005) of ``x`` (k, j, i), once for each strength h:

        sum_d w_d x(. + d) / sum_d w_d,    w_d = exp(-max(D_d - 2, 0) / h^2),

    D_d the mean over 3^3 patches of (x - x(. + d))^2 / noise_sd^2, d over a cube of half width ``reach``. ``noise_sd``
    (k, j, i): the noise's standard deviation, as it varies with activity.
    """
    totals = [x.clone() for _ in strengths]
    weights = [torch.ones_like(x) for _ in strengths]
    padded = functional.pad(x[None, None], [reach] * 6, mode="replicate")[0, 0]
    for d in product(range(2 * reach + 1), repeat=3):
        if d == (reach, reach, reach):
            continue
        moved = padded[d[0] : d[0] + x.shape[0], d[1] : d[1] + x.shape[1], d[2] : d[2] + x.shape[2]]
        squared = ((x - moved) / noise_sd) ** 2
        distance = functional.avg_pool3d(squared[None], 3, stride=1, padding=1)[0]
        for total, weight, h in zip(totals, weights, strengths, strict=True):
            w = torch.exp((2 - distance).clamp(max=0) / h**2)
            total += w * moved
            weight += w
    return [total / weight for total, weight in zip(totals, weights, strict=True)]
