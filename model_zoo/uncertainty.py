"""Uncertainty from posterior samples: mean and standard deviation, and agreement with measured and held-out data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from model_zoo.operators import LinearOperator
from model_zoo.samplers import enforce_consistency

__all__ = [
    "HeldOut",
    "apply_discrepancy_principle",
    "calibrate_sd",
    "chi_square",
    "compare_held_out",
    "mean_and_sd",
    "pool_sd",
    "spread_factor",
]

BEYOND = 1.3
"""Error over that which explains held-out samples: what was never acquired lies farther out in k-space, and errors of
the coils' maps are in no sample. Chosen on validation label maps."""
USUAL_RATIO = 2.0
"""Squared error over the samples' variance on validation label maps, in held-out samples."""
NOISE_DOUBT = 0.1
"""Relative error of the variance of the noise that is allowed for."""
USUAL_SHARE = 0.9
"""Share of the estimate in the image where nothing was held out. Chosen on validation label maps."""


@dataclass(frozen=True)
class HeldOut:
    """Sums over held-out samples y of k-space, which an estimate e and posterior samples s of mean m are compared with.

    ``residual`` ||y - A m||^2, ``cross`` Re <A (e - m), y - A m>, ``distance`` ||A (e - m)||^2, ``noise`` the part of
    the residual that the noise of y gives, ``variance`` E||A (s - E s)||^2. Sums of several slices add up.
    """

    residual: float = 0.0
    cross: float = 0.0
    distance: float = 0.0
    noise: float = 0.0
    variance: float = 0.0

    def __add__(self, other: HeldOut) -> HeldOut:
        return HeldOut(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def share(self) -> float:
        """Share w of the estimate, 0 to 1, for which w e + (1 - w) m is nearest to the held-out samples."""
        return min(max(self.cross / self.distance, 0.0), 1.0) if self.distance > 0 else USUAL_SHARE

    def factor(self, share: float) -> float:
        """Return :func:`spread_factor` for the image w e + (1 - w) m, w being ``share``."""
        residual = self.residual - 2 * share * self.cross + share**2 * self.distance
        return spread_factor(residual, self.noise, self.variance)

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, astuple(self)))


def mean_and_sd(samples: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased standard deviation of samples of one shape, in one pass (Welford 1962).

    For complex samples the deviation is that of the complex number: sqrt(E|x - mean|^2). One sample has sd 0.
    """
    count = 0
    mean = m2 = torch.zeros(())
    for x in samples:
        count += 1
        delta = x - mean
        mean = mean + delta / count
        m2 = m2 + (delta.conj() * (x - mean)).real
    if count == 0:
        raise ValueError("no samples")
    return mean, torch.sqrt(m2.clamp_min(0.0) / max(count - 1, 1))


def pool_sd(sd: NDArray[np.float32], width_px: tuple[float, float]) -> NDArray[np.float32]:
    """Average the variances of ``sd`` (slice, j, i) over a Gaussian neighbourhood in each slice.

    ``width_px``: sd of the Gaussian along (j, i). The sd of four samples is itself uncertain by 40 %; neighbours
    estimate nearly the same quantity.
    """
    variance = gaussian_filter(sd.astype(np.float64) ** 2, (0.0, *width_px))
    sd_pooled: NDArray[np.float32] = np.sqrt(variance).astype(np.float32)
    return sd_pooled


def spread_factor(residual: float, noise: float, variance: float) -> float:
    """Return what the sd of posterior samples is multiplied by, from samples of k-space that were held out.

    ``residual`` ||y - A x||^2 with x the image, A and y the held-out samples, ``noise`` the part of it that their noise
    gives, ``variance`` E||A (s - E s)||^2 of posterior samples s. The factor is BEYOND sqrt(a), with a = (residual -
    noise) / variance the squared error over the variance. Doubt about the noise, d = NOISE_DOUBT noise, draws a to its
    usual value: a = (residual - noise + d USUAL_RATIO) / (variance + d), at least one. Nothing held out gives the usual
    a.
    """
    doubt = NOISE_DOUBT * noise
    if variance + doubt <= 0:
        return BEYOND * math.sqrt(USUAL_RATIO)
    ratio = (residual - noise + doubt * USUAL_RATIO) / (variance + doubt)
    return BEYOND * math.sqrt(max(ratio, 1.0))


def compare_held_out(y: Tensor, estimate: Tensor, mean: Tensor, sd: Tensor, noise: float) -> HeldOut:
    """Return the sums of :class:`HeldOut`, of held-out samples ``y`` and what A makes of estimate and samples."""
    missing, ahead = y - mean, estimate - mean
    return HeldOut(
        residual=float(missing.abs().square().sum()),
        cross=float((ahead.conj() * missing).real.sum()),
        distance=float(ahead.abs().square().sum()),
        noise=noise,
        variance=float(sd.square().sum()),
    )


def calibrate_sd(sd: NDArray[np.float32], image: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Return factor sqrt(sd L) per slice, L the root mean square of ``sd`` inside the object; (slice, j, i) all.

    The geometric mean halves, on a logarithmic scale, how much the sd varies: errors vary less from place to place than
    the spread of samples. The order of voxels in a slice stays. Inside is where ``image`` exceeds a tenth of its 99th
    percentile in the slice; a slice without an object has an L of zero.
    """
    inside = image > 0.1 * np.quantile(image, 0.99, axis=(1, 2), keepdims=True)
    square = np.sum(sd.astype(np.float64) ** 2, axis=(1, 2), where=inside, keepdims=True)
    mean_square = square / np.maximum(inside.sum(axis=(1, 2), keepdims=True), 1)
    calibrated: NDArray[np.float32] = (factor * np.sqrt(sd * np.sqrt(mean_square))).astype(np.float32)
    return calibrated


def chi_square(A: LinearOperator, x: Tensor, y: Tensor, sigma_y: float | Tensor) -> Tensor:
    """Return ||y - A x||^2 / (2 m sigma_y^2) per batch element; without the 2 where y is real.

    The m complex samples have real and imaginary parts of noise sd sigma_y each. One means that the image explains the
    data exactly to within their noise; above one it misses signal, below one it fits noise.
    """
    residual = (y - A(x)).abs().flatten(1).pow(2).sum(dim=1)
    parts = 2 if y.is_complex() else 1
    return residual / (parts * A.measured * torch.as_tensor(sigma_y) ** 2)


def apply_discrepancy_principle(
    A: LinearOperator, y: Tensor, x0_hat: Tensor, sigma_y: Tensor, *, limit: Tensor
) -> Tensor:
    """Apply the least consistency that brings chi-square down to one, per batch element.

    This is the discrepancy principle (Morozov 1966). It solves (I + gamma A^H A) x = x0_hat + gamma A^H y with gamma
    raised from 1/8 by 1.3 until it does, or gamma reaches ``limit``: errors of the maps can make one unreachable. An
    estimate that explains its data already is left alone.
    """
    AHy = A.H(y)
    gamma = torch.zeros_like(sigma_y)
    x = x0_hat
    while True:
        poor = (chi_square(A, x, y, sigma_y) > 1) & (gamma < limit)
        if not bool(poor.any()):
            return x
        gamma = torch.where(poor, torch.minimum((1.3 * gamma).clamp_min(0.125), limit), gamma)
        x = enforce_consistency(A, AHy, x0_hat, gamma)
