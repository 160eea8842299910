"""Posterior samples to uncertainty: mean and standard deviation, and whether the measured data agree."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from model_zoo.operators import Fourier

__all__ = ["chi_square", "mean_and_sd"]


def mean_and_sd(samples: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of samples of one shape, one pass (Welford 1962).

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


def chi_square(A: Fourier, x: Tensor, y: Tensor, sigma_y: float | Tensor) -> Tensor:
    """||y - A x||^2 / (2 m sigma_y^2) per batch element, m complex samples whose real and imaginary parts have sd
    sigma_y.

    One means that the image explains the data exactly to within their noise; above one it misses signal, below one it
    fits noise.
    """
    residual = (y - A(x)).abs().flatten(1).pow(2).sum(dim=1)
    return residual / (2 * A.measured * torch.as_tensor(sigma_y) ** 2)
