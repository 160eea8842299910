"""The zero-filled image of k-space for the report page: the scanner's image without a model. Imports torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dicomnode.report.planes import ReportPlane, sample_on_plane
from pipelines.contract import Grid, KSpace, Refused

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["reconstruct_zero_filled"]


def reconstruct_zero_filled(kspace: KSpace, grid: Grid, plane: ReportPlane) -> NDArray[np.float32] | None:
    """Reconstruct the magnitude of the slice that a plane shows, on its pixels, in the units of the reconstruction.

    Coils without calibration lines give their root sum of squares. Returns None where the slice cannot be prepared
    alone, as with coil maps of another image.
    """
    from model_zoo.operators import magnitude
    from pipelines.mri_reconstruction import interpolate

    at = slice(plane.index, plane.index + 1)
    affine = grid.affine_mm.copy()
    affine[:3, 3] += plane.index * affine[:3, 2]
    one = replace(kspace, samples=kspace.samples[at], mask=kspace.mask[at], grid=Grid((1, *grid.shape[1:]), affine))
    try:
        image = _transform(one)
    except Refused:
        return None
    values = magnitude(interpolate(image, one.encoded_fov_mm, one.grid)).numpy()
    return sample_on_plane(values, one.grid, plane)


def _transform(one: KSpace) -> Tensor:
    """Return the zero-filled image (1, a, b), or those of the coils (1, coil, a, b) where no maps can be estimated."""
    import torch

    from model_zoo import classical
    from model_zoo.operators import centred_ifft
    from pipelines.encoding import prepare_image

    if one.samples.shape[1] > 1 and one.calibration is None:
        return centred_ifft(torch.from_numpy(one.samples))
    problem = prepare_image(one)
    return problem.in_units(classical.zero_filled(problem.A, problem.y))
