"""Separable linear operators on volumes, one small matrix per axis: blur, slice profile, interpolation, smooth fields.

A matrix product along an axis costs n multiplications a voxel but runs at the full speed of the machine's matrix
product, on any device: a blur of 160 x 192 x 160 voxels takes some 50 ms on one core.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

__all__ = [
    "apply_along",
    "blur",
    "draw_smooth_noise",
    "gaussian_matrix",
    "interpolation_matrix",
    "slice_matrix",
    "spline_matrix",
]


def apply_along(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Apply ``matrix`` (m, n) along ``axis`` (0, 1 or 2) of ``x`` (k, j, i), whose length there is n.

    In the precision of ``x`` even where the caller trains or validates under autocast.
    """
    with torch.autocast(x.device.type, enabled=False):
        if axis == 2:
            return x @ matrix.T
        if axis == 1:
            return matrix @ x
        return (matrix @ x.reshape(x.shape[0], -1)).reshape(-1, *x.shape[1:])


@lru_cache(maxsize=64)
def gaussian_matrix(n: int, sigma: float) -> Tensor:
    """Return the Gaussian blur of ``sigma`` samples as an (n, n) matrix; rows sum to one, so a constant stays at the
    borders.
    """
    d = torch.arange(n)[:, None] - torch.arange(n)[None, :]
    matrix = torch.exp(-0.5 * (d / max(sigma, 1e-3)) ** 2)
    return matrix / matrix.sum(1, keepdim=True)


def blur(x: Tensor, sigma: tuple[float, float, float]) -> Tensor:
    """Blur ``x`` (k, j, i) by a Gaussian of ``sigma`` voxels along each axis; axes under 0.1 voxel are left.

    Not ``model_zoo.imaging.blur``, which integrates over voxels: the simulated data would change.
    """
    for axis, s in enumerate(sigma):
        if s >= 0.1:
            x = apply_along(x, gaussian_matrix(x.shape[axis], round(s, 2)).to(x), axis)
    return x


def slice_matrix(n: int, step: float, thickness: float, shift: float) -> Tensor:
    """Return the slices of a volume of ``n`` samples as an (m, n) matrix: one every ``step`` samples from ``shift``,
    Gaussian profiles with a full width at half maximum of ``thickness`` (at least one sample is kept whole).
    """
    centres = torch.arange(max(2, math.floor((n - 1 - shift) / step) + 1)) * step + shift
    sigma = max(math.sqrt(max(thickness**2 - 1.0, 0.0)) / 2.355, 0.3)
    matrix = torch.exp(-0.5 * ((torch.arange(n)[None, :] - centres[:, None]) / sigma) ** 2)
    return matrix / matrix.sum(1, keepdim=True).clamp(min=1e-9)


def interpolation_matrix(n: int, count: int, step: float, shift: float) -> Tensor:
    """Return the linear interpolation from ``count`` samples at ``shift + step * a`` to 0 .. n - 1, held at the ends:
    (n, m).
    """
    position = ((torch.arange(n) - shift) / step).clamp(0, count - 1)
    return (1 - (position[:, None] - torch.arange(count)[None, :]).abs()).clamp(min=0)


def spline_matrix(n: int, knots: int) -> Tensor:
    """Return the cubic B-spline basis on ``knots`` (at least 4) equidistant knots over ``n`` samples: (n, knots), rows
    sum 1.
    """
    position = torch.linspace(1, knots - 2, n)[:, None]
    d = (position - torch.arange(knots)[None, :]).abs()
    inner, outer = 2 / 3 - d**2 + d**3 / 2, (2 - d).clamp(min=0) ** 3 / 6
    basis = torch.where(d < 1, inner, outer)
    return basis / basis.sum(1, keepdim=True)


def draw_smooth_noise(shape: tuple[int, int, int], knots: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Return a smooth random field (k, j, i) of mean 0 and variance near 1: white noise on B-spline knots.

    Its correlation length is about 1.2 knot distances. Drawn and returned on the generator's device.
    """
    x = torch.randn(knots, generator=generator, device=generator.device)
    for axis, (n, m) in enumerate(zip(shape, knots, strict=True)):
        basis = spline_matrix(n, m).to(x)
        x = apply_along(x, basis / basis.square().sum(1).mean().sqrt(), axis)
    return x
