"""Ordered-subsets expectation maximisation (Hudson & Larkin 1994) with attenuation, background and resolution.

    x <- x / (A_s^T 1) * A_s^T [ y_s / (A_s x + b_s) ],    A_s = f_s P_s h

for the subsets s of the angles in turn, f = c n a and b = r + s of the scan, h optional.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model_zoo.imaging import blur
from model_zoo.simulate.pet.counts import Scan
from model_zoo.simulate.pet.projector import make_projector

__all__ = ["osem"]

_GOLDEN = 0.6180339887498949


def osem(
    y: Tensor,
    scan: Scan,
    *,
    iterations: int = 4,
    subsets: int = 12,
    psf_fwhm_mm: float = 0.0,
    post_fwhm_mm: float = 0.0,
) -> Tensor:
    """Return the activity (k, j, i) on the image of ``scan.geometry`` from counts ``y`` (angle, bin, k), in the scan's
    units.

    ``scan`` holds the factors and background of these counts: ``scan.at_dose(d)`` for thinned ones.
    ``psf_fwhm_mm`` > 0 models the resolution, which recovers edges and overshoots there (Gibbs).
    ``post_fwhm_mm``: Gaussian post-filter. Pixels no ray meets are zero.
    Raises ValueError when there are more subsets than angles.
    """
    g = scan.geometry
    spacing = (scan.slice_mm, g.pixel_mm, g.pixel_mm)
    tiny = torch.finfo(y.dtype).tiny
    operators = [make_projector(g, subset=s, subsets=subsets, dtype=y.dtype, device=y.device) for s in range(subsets)]
    sensitivity = [blur(P.T(scan.factors[s::subsets]), psf_fwhm_mm, spacing) for s, P in enumerate(operators)]
    is_seen = torch.stack(sensitivity).amin(dim=0) > 0
    x = is_seen * ((y - scan.background).sum().clamp_min(1.0) / (torch.stack(sensitivity).sum(dim=0) * is_seen).sum())
    for _ in range(iterations):
        for s in sorted(range(subsets), key=lambda s: s * _GOLDEN % 1):
            P, f, b = operators[s], scan.factors[s::subsets], scan.background[s::subsets]
            ybar = f * P(blur(x, psf_fwhm_mm, spacing)) + b
            ratio = f * (y[s::subsets] / ybar.clamp_min(tiny))
            x = x * is_seen * blur(P.T(ratio), psf_fwhm_mm, spacing) / sensitivity[s].clamp_min(tiny)
    return blur(x, post_fwhm_mm, spacing, normalised=True)
