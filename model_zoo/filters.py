"""Classical denoising of volumes: Gaussian, non-local means, and regression on the shares of an anatomy."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from model_zoo.imaging import FWHM, blur

__all__ = ["blur_by_widths", "denoise_by_non_local_means", "regress_locally"]


def blur_by_widths(x: Tensor, fwhms_mm: tuple[float, ...], spacing_mm: float) -> list[Tensor]:
    """Blur ``x`` (k, j, i) by each width; constants stay constant up to the border."""
    return [blur(x, fwhm_mm, (spacing_mm,) * 3, normalised=True) for fwhm_mm in fwhms_mm]


def denoise_by_non_local_means(
    x: Tensor, strengths: tuple[float, ...], noise_sd: Tensor, *, reach: int = 2
) -> list[Tensor]:
    """Denoise ``x`` (k, j, i) by non-local means (Buades, Coll & Morel 2005), once for each strength h:

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
        distance = _box_mean(squared)
        for total, weight, h in zip(totals, weights, strengths, strict=True):
            w = torch.exp((2 - distance).clamp(max=0) / h**2)
            total += w * moved
            weight += w
    return [total / weight for total, weight in zip(totals, weights, strict=True)]


def _box_mean(x: Tensor) -> Tensor:
    """Return means over 3^3 voxels of ``x`` (k, j, i), zero outside."""
    for axis in range(3):
        n = x.shape[axis]
        total = x.clone()
        total.narrow(axis, 1, n - 1).add_(x.narrow(axis, 0, n - 1))
        total.narrow(axis, 0, n - 1).add_(x.narrow(axis, 1, n - 1))
        x = total
    return x / 27


def regress_locally(x: Tensor, shares: Tensor, sd_voxels: float, *, ridge: float = 1e-3) -> Tensor:
    """Regress ``x`` (k, j, i) about every voxel on ``shares`` (r, k, j, i) of tissues, which sum to 1:

        x_hat(v) = sum_r a_r(v) F_r(v),    a(v) = argmin_a sum_u g(u - v) (x(u) - a . F(u))^2 + ridge t(v) |a - m(v)|^2

    g a Gaussian of ``sd_voxels``, m its mean of x and t its mean of |F|^2. Every tissue has an activity of its own that
    varies slowly; a tissue absent about v has the mean. With one share, 1 everywhere, the result is the Gaussian mean.
    """
    fwhm, unit = sd_voxels * FWHM, (1.0, 1.0, 1.0)
    mean = blur(x, fwhm, unit, normalised=True)
    r = len(shares)
    if r == 1:
        return mean
    A = x.new_empty((r, r, *x.shape))
    for p in range(r):
        A[p, p:] = blur(shares[p] * shares[p:], fwhm, unit, normalised=True)
    b = blur(shares * x, fwhm, unit, normalised=True)
    weight = ridge * sum(A[p, p] for p in range(r))
    for p in range(r):
        A[p, p] += weight
    return (_solve(A, b + weight * mean) * shares).sum(dim=0)


def _solve(A: Tensor, b: Tensor) -> Tensor:
    """Return a with A a = b for symmetric positive definite A (r, r, ...).

    Only the upper half of A is read, and overwritten. Gaussian elimination of all voxels at once: the systems are small
    and many.
    """
    r = len(b)
    for p in range(r):
        for q in range(p + 1, r):
            factor = A[p, q] / A[p, p]
            A[q, q:] -= factor * A[p, q:]
            b[q] -= factor * b[p]
    for p in reversed(range(r)):
        for q in range(p + 1, r):
            b[p] -= A[p, q] * b[q]
        b[p] /= A[p, p]
    return b
