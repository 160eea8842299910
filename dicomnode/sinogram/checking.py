"""Projections that no image can honestly be made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.contract import Projections, Refused

__all__ = ["check_line_integrals", "check_projections"]

_LINE_INTEGRALS = (-2.0, 40.0)
"""Possible line integrals: below is more light than without an object, above is 2 m of water."""


def check_line_integrals(values: NDArray[np.float32]) -> None:
    """Raise Refused where values are not finite, or cannot be line integrals."""
    low, high = float(values.min()), float(values.max())
    if not _LINE_INTEGRALS[0] <= low <= high <= _LINE_INTEGRALS[1]:
        raise Refused(
            f"sinogram: line integrals from {low:.3g} to {high:.3g}; {_LINE_INTEGRALS[0]:g} to {_LINE_INTEGRALS[1]:g} "
            "are possible (they have no unit: mm times 1/mm)"
        )


def check_projections(projections: Projections) -> None:
    """Raise Refused where values are no line integrals, a slice has none, or the detector is smaller than the image."""
    beam = projections.beam
    check_line_integrals(projections.line_integrals)
    for number, plane in enumerate(projections.counts):
        if not plane.any():
            raise Refused(f"sinogram: no ray of slice {number + 1} of {len(projections.counts)} detected a photon")
    reach = np.abs(beam.rays[1]).reshape(beam.views, -1)[:, [0, -1]].min()
    half_mm = max(beam.shape) * beam.pixel_mm / 2
    if reach + beam.bin_mm / 2 < half_mm * (1 - 1e-6):
        raise Refused(
            f"sinogram: the bins reach {reach:.4g} mm from the axis, the image {half_mm:.4g} mm: what lies beyond the "
            "bins would be invented; state fewer pixels"
        )
