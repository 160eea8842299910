"""Operations on image volumes that the networks and the simulators share: Gaussian blur and intensity scaling."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["FWHM", "blur", "scale_between_quantiles"]

FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))
"""Full width at half maximum of a Gaussian over its standard deviation."""


def blur(x: Tensor, fwhm_mm: float, spacing_mm: tuple[float, float, float], *, normalised: bool = False) -> Tensor:
    """Convolve ``x`` with a separable Gaussian of ``fwhm_mm`` over the last three axes, zero outside: self-adjoint.

    ``normalised`` divides by the kernel's weight inside the volume: constants stay constant up to the border, but the
    operator is not symmetric any more. It is for post-filters, not for the resolution model.
    """
    if fwhm_mm <= 0:
        return x
    for axis, spacing in zip((-3, -2, -1), spacing_mm, strict=True):
        G = _gaussian(x.shape[axis], fwhm_mm / FWHM / spacing, normalised).to(x)
        x = torch.movedim(torch.movedim(x, axis, -1) @ G.T, -1, axis)
    return x.contiguous()


@lru_cache(maxsize=256)
def _gaussian(n: int, sigma: float, normalised: bool) -> Tensor:
    """Return the Toeplitz matrix (n, n) of a Gaussian integrated over the samples' widths."""
    d = torch.arange(n, dtype=torch.float64)
    edges = (d[:, None] - d[None, :]) / (sigma * math.sqrt(2))
    half = 0.5 / (sigma * math.sqrt(2))
    G = 0.5 * (torch.erf(edges + half) - torch.erf(edges - half))
    return G / G.sum(dim=1, keepdim=True) if normalised else G


def scale_between_quantiles(x: Tensor, low: float = 0.005, high: float = 0.995) -> Tensor:
    """Scale ``x`` linearly from its ``low`` and ``high`` quantiles (of every 31st voxel) to [0, 1], and clip it."""
    sample = x.flatten()[::31].sort().values
    floor, ceiling = sample[int(low * (len(sample) - 1))], sample[int(high * (len(sample) - 1))]
    return ((x - floor) / (ceiling - floor).clamp(min=1e-6)).clamp(0, 1)
