"""Noise of a reconstructed PET image without projecting: fast, scatter-free, calibrated on OSEM replicates.

    x_L = x exp(sigma g - sigma^2 / 2),    sigma^2 = ln(1 + V / x^2),    V = k x (x / x_ref)^(p - 1) / d

with g standard normal noise of a given FWHM: mean x and variance V exactly. For small noise and p = 1 this is
x + sqrt(k x / d) g. Two things that OSEM shows and this plain form lacks: its variance grows faster than x (in
proportion to x^2 where nothing is mixed, but projections mix; replicates give p = 1.5), and its values are log-normal
(Barrett, Wilson & Tsui 1994): positive, and skewed by three times the coefficient of variation, as replicates are.
The numbers are in docs/pet-simulation.md.

Events shared by two doses: the standard scan is the low one and the rest together, and reconstruction is nearly linear
in counts, x_S = d x_L + (1 - d) x_R with x_R an independent draw of the dose 1 - d. This has the variance of dose 1 and
the covariance Cov(x_L, x_S) = Var x_S that shared events give.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model_zoo.imaging import blur

__all__ = ["POWER", "draw_correlated_noise", "draw_low_and_standard", "draw_low_dose"]

POWER = 1.5
_LARGEST = 4.0
"""Of V / x^2, where the log-normal form's tail would exceed anything a filtered OSEM image shows."""


def draw_low_dose(
    x: Tensor,
    d: float,
    k: float | Tensor,
    generator: torch.Generator,
    *,
    fwhm_mm: float,
    spacing_mm: float,
    reference: float = 1.0,
    power: float = POWER,
) -> Tensor:
    """Return one image of dose fraction ``d`` whose expectation is ``x`` (k, j, i) >= 0.

    ``k``: variance over x at ``reference``, dose 1, in the units of x; a tensor (k, j, i) where it varies, as it does
    with attenuation. Raises ValueError unless 0 < d <= 1.
    """
    if not 0 < d <= 1:
        raise ValueError(f"a dose fraction in (0, 1] is asked for, not {d}")
    safe = x.clamp_min(1e-6 * reference)
    relative = (k / safe * (safe / reference) ** (power - 1) / d).clamp(max=_LARGEST)
    sigma = torch.log1p(relative).sqrt()
    g = draw_correlated_noise(x.shape, fwhm_mm, spacing_mm, generator).to(x)
    return x * torch.exp(sigma * g - 0.5 * sigma.square())


def draw_low_and_standard(
    x: Tensor,
    d: float,
    k: float | Tensor,
    generator: torch.Generator,
    *,
    fwhm_mm: float,
    spacing_mm: float,
    reference: float = 1.0,
    power: float = POWER,
    independent: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return ``(x_L, x_S)`` of dose ``d`` and of dose 1, which shares the events of x_L unless ``independent``.

    Arguments and errors as for ``draw_low_dose``; d < 1.
    """
    if not 0 < d < 1:
        raise ValueError(f"a dose fraction between 0 and 1 is asked for, not {d}")

    def draw(dose: float) -> Tensor:
        return draw_low_dose(
            x, dose, k, generator, fwhm_mm=fwhm_mm, spacing_mm=spacing_mm, reference=reference, power=power
        )

    low = draw(d)
    return low, draw(1.0) if independent else d * low + (1 - d) * draw(1 - d)


def draw_correlated_noise(
    shape: torch.Size | tuple[int, int, int], fwhm_mm: float, spacing_mm: float, generator: torch.Generator
) -> Tensor:
    """Return standard normal noise (k, j, i): white, blurred to ``fwhm_mm``, of unit variance at every voxel."""
    white = torch.randn(tuple(shape), generator=generator, device=generator.device)
    spacing = (spacing_mm,) * 3
    return blur(white, fwhm_mm, spacing) * _compute_gain(tuple(shape), fwhm_mm, spacing_mm).to(white)


def _compute_gain(shape: tuple[int, ...], fwhm_mm: float, spacing_mm: float) -> Tensor:
    """Return 1 / sd of blurred white noise, which is the product over axes of the kernels' norms: (k, j, i)."""
    gain = torch.ones(())
    for axis, n in enumerate(shape):
        eye = torch.eye(n).reshape(n, 1, 1, n)
        norm = blur(eye, fwhm_mm, (1e9, 1e9, spacing_mm)).reshape(n, n).square().sum(dim=0).sqrt()
        gain = gain * (1 / norm).reshape([n if a == axis else 1 for a in range(3)])
    return gain
