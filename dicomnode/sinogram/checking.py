"""Projections that no image can honestly be made of, and scans that do not fit into memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_zoo.ct_geometry import CtGeometry
from pipelines.contract import Projections, Refused

__all__ = ["check_line_integrals", "check_projections", "find_reach"]

_LINE_INTEGRALS = (-2.0, 40.0)
"""Possible line integrals: below is more light than without an object, above is 2 m of water."""
_FEWEST_VIEWS = 8
_VOXELS_PER_RAY = 64
"""Largest number of voxels per measured ray: 512 x 512 pixels of 8 views of 512 bins have 64."""
_MATRIX_BYTES = 8e9
"""Largest matrix of rays, 8 bytes an entry: 1000 views of 900 bins over 512 x 512 pixels have 7.4 GB."""


def check_line_integrals(values: NDArray[np.float32]) -> None:
    """Raise Refused where values are not finite, or cannot be line integrals."""
    low, high = float(values.min()), float(values.max())
    if not _LINE_INTEGRALS[0] <= low <= high <= _LINE_INTEGRALS[1]:
        raise Refused(
            f"sinogram: line integrals from {low:.3g} to {high:.3g}; {_LINE_INTEGRALS[0]:g} to {_LINE_INTEGRALS[1]:g} "
            "are possible (they have no unit: mm times 1/mm)"
        )


def check_projections(projections: Projections) -> None:
    """Raise Refused where values are no line integrals, a view detected nothing, the detector does not cover the image
    on both sides of the axis, and where the scan is too large.
    """
    beam = projections.beam
    check_line_integrals(projections.line_integrals)
    _check_views(projections)
    half_mm = max(beam.shape) * beam.pixel_mm / 2
    reach_mm = find_reach(beam)
    if reach_mm < half_mm * (1 - 1e-6):
        raise Refused(
            f"sinogram: the bins reach {reach_mm:.4g} mm from the axis, on the side where they reach less, and the "
            f"image {half_mm:.4g} mm: what lies beyond the bins would be invented; if the object lies within them, "
            "state fewer or smaller pixels"
        )
    _check_size(projections)


def find_reach(beam: CtGeometry) -> float:
    """Return the distance in mm from the axis to the edge of the detector, on the side where it is less.

    It is negative where the whole detector lies on one side of the axis.
    """
    t = beam.rays[1][0]
    return float(min(-t[0], t[-1]) + beam.bin_mm / 2)


def _check_views(projections: Projections) -> None:
    """Refuse a scan of few views, and a view without a photon, which was not measured."""
    if projections.beam.views < _FEWEST_VIEWS:
        raise Refused(f"sinogram: {projections.beam.views} views; at least {_FEWEST_VIEWS} are needed")
    is_dark = ~projections.counts.any(axis=-1)
    if is_dark.any():
        slice_number, view = (int(each[0]) + 1 for each in np.nonzero(is_dark))
        raise Refused(
            f"sinogram: no ray of view {view} of slice {slice_number} detected a photon, as in {int(is_dark.sum())} "
            "views: an angle that was not measured has to be left out of the array and of the arc"
        )


def _check_size(projections: Projections) -> None:
    """Refuse an image far larger than its data, and a matrix of rays that does not fit into memory."""
    beam, rays = projections.beam, projections.line_integrals.size
    voxels = len(projections.line_integrals) * beam.shape[0] * beam.shape[1]
    if voxels > _VOXELS_PER_RAY * rays:
        raise Refused(f"sinogram: an image of {voxels} voxels of {rays} rays: at most {_VOXELS_PER_RAY} per ray")
    size = 16.0 * beam.views * beam.bins * max(beam.shape)
    if size > _MATRIX_BYTES:
        raise Refused(
            f"sinogram: the matrix of {beam.views} views of {beam.bins} bins over {max(beam.shape)} pixels has "
            f"{size / 1e9:.3g} GB, above {_MATRIX_BYTES / 1e9:g}: state fewer pixels, or join bins or views"
        )
