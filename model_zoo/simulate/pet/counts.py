"""Counts of a PET scan: expected prompts, their Poisson draw, and thinning to a lower dose.

    ybar = c n a P(h * x) + r + s,    y ~ Poisson(ybar),    y_L ~ Binomial(y, d)

with the resolution h, attenuation factors a = exp(-P mu), detector efficiencies n, randoms r, scatter s, and a scale c
that sets the number of counts. Sinograms are (angle, bin, k). Thinning scales r and s by d as well: it is a shorter
scan, not less activity, for which randoms would fall with d^2.

Scatter is broad and smooth: the trues blurred by ``SCATTER_FWHM_MM`` across the bins, half of it along the axis, to
the asked fraction of trues plus scatter (NEMA NU 2: .31 for clinical scanners). Randoms follow the efficiencies alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model_zoo.imaging import blur
from model_zoo.simulate.pet.projector import Geometry, make_projector

__all__ = ["SCATTER_FWHM_MM", "Scan", "draw_counts", "simulate_prompts", "thin_counts"]

SCATTER_FWHM_MM = 250.0


@dataclass(frozen=True)
class Scan:
    """Factors and background of a scan, and its expected prompts; all sinograms (angle, bin, k).

    ``factors`` is c n a, ``background`` r + s, ``expected`` ybar. ``slice_mm`` is the distance of slices and
    ``psf_fwhm_mm`` the resolution the data were made with.
    """

    geometry: Geometry
    slice_mm: float
    factors: Tensor
    background: Tensor
    expected: Tensor
    psf_fwhm_mm: float

    def at_dose(self, d: float) -> Scan:
        """Return the same scan for the fraction ``d`` of its counts."""
        return replace(self, factors=d * self.factors, background=d * self.background, expected=d * self.expected)


def simulate_prompts(
    activity: Tensor,
    mu_per_cm: Tensor,
    geometry: Geometry,
    generator: torch.Generator,
    *,
    slice_mm: float,
    counts: float,
    finer: int = 1,
    psf_fwhm_mm: float = 4.5,
    scatter_fraction: float = 0.32,
    randoms_fraction: float = 0.2,
    efficiency_sd: float = 0.08,
) -> Scan:
    """Return the scan of ``activity`` (k, j, i) behind ``mu_per_cm`` with ``counts`` prompts in all.

    ``finer``: activity and mu have that many more voxels along each axis than the image that ``geometry`` and
    ``slice_mm`` describe, so that data and reconstruction do not share a grid. ``scatter_fraction`` is s / (t + s),
    ``randoms_fraction`` r / (t + s + r). Raises ValueError when the shapes do not fit.
    """
    fine = geometry.finer(finer)
    if activity.shape != mu_per_cm.shape or activity.shape[1:] != fine.shape or len(activity) % finer:
        raise ValueError(f"activity {tuple(activity.shape)}, mu {tuple(mu_per_cm.shape)}, slices of {fine.shape}")
    P = make_projector(fine, device=activity.device)
    spacing = (slice_mm / finer, fine.pixel_mm, fine.pixel_mm)
    a = torch.exp(-P(_average_slices(mu_per_cm, finer)) / 10)
    n = torch.exp(efficiency_sd * torch.randn(a.shape, generator=generator, device=generator.device)).to(a)
    trues = n * a * P(_average_slices(blur(activity, psf_fwhm_mm, spacing), finer))
    scatter = _scatter(trues / n, geometry, slice_mm) * n
    scatter = scatter * (scatter_fraction / (1 - scatter_fraction) * trues.sum() / scatter.sum())
    randoms = n * (randoms_fraction / (1 - randoms_fraction) * (trues.sum() + scatter.sum()) / n.sum())
    c = counts / (trues + scatter + randoms).sum()
    background = c * (scatter + randoms)
    return Scan(geometry, slice_mm, c * n * a, background, c * trues + background, psf_fwhm_mm)


def _average_slices(x: Tensor, finer: int) -> Tensor:
    """Return the means of ``finer`` neighbouring slices: exact before an in-plane projection, and cheaper than after
    it.
    """
    return x.reshape(-1, finer, *x.shape[1:]).mean(dim=1)


def _scatter(trues: Tensor, g: Geometry, slice_mm: float) -> Tensor:
    return blur(trues.movedim(-1, 1), SCATTER_FWHM_MM, (1e6, 2 * slice_mm, g.bin_mm)).movedim(1, -1)


def draw_counts(expected: Tensor, generator: torch.Generator) -> Tensor:
    """Draw Poisson counts with mean ``expected``, in its dtype."""
    return torch.poisson(expected, generator=generator)


def thin_counts(y: Tensor, d: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return ``(low, rest)``: each event of ``y`` goes to ``low`` with probability ``d``, else to ``rest``; low + rest
    = y.

    Of Poisson data both are Poisson, with means d ybar and (1 - d) ybar, and independent (Raikov): ``low`` shares
    events with ``y`` and none with ``rest``. Raises ValueError unless 0 < d < 1.
    """
    if not 0 < d < 1:
        raise ValueError(f"a dose fraction between 0 and 1 is asked for, not {d}")
    low = torch.binomial(y, torch.full_like(y, d), generator=generator)
    return low, y - low
