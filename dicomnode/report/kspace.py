"""The zero-filled image of k-space for the report page: the scanner's image without a model. Imports torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dicomnode.report.planes import ReportPlane, sample_on_plane
from pipelines.contract import Grid, KSpace, Refused

__all__ = ["reconstruct_zero_filled"]


def reconstruct_zero_filled(kspace: KSpace, grid: Grid, plane: ReportPlane) -> NDArray[np.float32] | None:
    """Reconstruct the magnitude of the slice that a plane shows, on its pixels, in the units of the reconstruction.

    Returns None where the slice cannot be prepared alone, as with coil maps of another image.
    """
    from model_zoo import classical
    from model_zoo.operators import magnitude
    from pipelines.encoding import prepare_image
    from pipelines.mri_reconstruction import interpolate

    at = slice(plane.index, plane.index + 1)
    affine = grid.affine_mm.copy()
    affine[:3, 3] += plane.index * affine[:3, 2]
    one = replace(kspace, samples=kspace.samples[at], mask=kspace.mask[at], grid=Grid((1, *grid.shape[1:]), affine))
    try:
        problem = prepare_image(one)
    except Refused:
        return None
    image = problem.in_units(classical.zero_filled(problem.A, problem.y))
    values = magnitude(interpolate(image, one.encoded_fov_mm, one.grid)).numpy()
    return sample_on_plane(values, one.grid, plane)
