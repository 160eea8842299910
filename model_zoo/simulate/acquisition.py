"""Effects of a scan on a perfect volume: bias field, resolution, slice profile, k-space edge, motion, Rician noise.

Every function takes a volume (k, j, i) and an explicit generator and works on the generator's device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model_zoo.simulate import axes

__all__ = [
    "add_rician_noise",
    "draw_bias_field",
    "draw_texture",
    "log_uniform",
    "reduce_resolution",
    "simulate_motion",
    "truncate_kspace",
    "uniform",
]

Shape = tuple[int, int, int]


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """Return one number, uniform in [low, high)."""
    return float(torch.empty(1, device=generator.device).uniform_(low, high, generator=generator))


def log_uniform(generator: torch.Generator, low: float, high: float) -> float:
    """Return one number whose logarithm is uniform between those of ``low`` and ``high``."""
    return float(low * (high / low) ** uniform(generator, 0.0, 1.0))


def draw_texture(shape: Shape, spacing_mm: float, generator: torch.Generator) -> Tensor:
    """Return a tissue texture of mean 0 and variance 1, correlated over 2 to 4 mm."""
    length_mm = uniform(generator, 2.0, 4.0)
    k, j, i = (max(4, round(n * spacing_mm / length_mm)) for n in shape)
    return axes.draw_smooth_noise(shape, (k, j, i), generator)


def draw_bias_field(shape: Shape, strength: float, generator: torch.Generator) -> Tensor:
    """Return a multiplicative receive bias exp(strength b), b a B-spline field of unit variance on 4 to 6 knots an
    axis.
    """
    knots = int(uniform(generator, 4, 7))
    return torch.exp(strength * axes.draw_smooth_noise(shape, (knots, knots, knots), generator))


def add_rician_noise(x: Tensor, noise_sd: float, generator: torch.Generator) -> Tensor:
    """Return |x + n|, n complex Gaussian with standard deviation ``noise_sd`` in each component: any shape."""
    noise = torch.randn((2, *x.shape), generator=generator, device=x.device).mul_(noise_sd)
    return torch.hypot(x + noise[0], noise[1])


def reduce_resolution(x: Tensor, step: tuple[float, ...], noise_sd: float, generator: torch.Generator) -> Tensor:
    """Return ``x`` sampled every ``step`` voxels with Gaussian slice profiles of that width, Rician noise of
    ``noise_sd`` added there, interpolated linearly back to its own grid. Axes of a step up to 1.05 keep their samples.
    """
    back: list[Tensor | None] = []
    for axis, s in enumerate(step):
        if s <= 1.05:
            back.append(None)
            continue
        shift, n = uniform(generator, 0.0, s - 1.0), x.shape[axis]
        profile = axes.slice_matrix(n, s, s, shift).to(x)
        back.append(axes.interpolation_matrix(n, len(profile), s, shift).to(x))
        x = axes.apply_along(x, profile, axis)
    x = add_rician_noise(x, noise_sd, generator)
    for axis, matrix in enumerate(back):
        if matrix is not None:
            x = axes.apply_along(x, matrix, axis)
    return x


def truncate_kspace(x: Tensor, keep: tuple[float, float, float]) -> Tensor:
    """Return ``x`` with only the central ``keep`` (0 to 1] of k-space along each axis: ringing at edges, magnitude."""
    kspace = torch.fft.fftn(x)
    for axis, share in enumerate(keep):
        if share < 1:
            f = torch.fft.fftfreq(x.shape[axis], device=x.device).abs() < 0.5 * share
            kspace = kspace * f.reshape([-1 if a == axis else 1 for a in range(3)])
    magnitude: Tensor = torch.fft.ifftn(kspace).abs()
    return magnitude


def simulate_motion(x: Tensor, poses: int, strength_mm: float, axis: int, generator: torch.Generator) -> Tensor:
    """Return ``x`` acquired while the head moves: consecutive bands of k-space lines along ``axis`` see different
    poses.

    The cheap version: each pose is a translation of N(0, strength_mm) voxels along every axis, applied as the phase
    ramp exp(-2 pi i f . t) to its band, which ghosts and blurs as real motion does; rotations are left out. The band
    that holds the centre of k-space stays still, so that the image keeps its place.
    """
    kspace = torch.fft.fftn(x)
    frequencies = [torch.fft.fftfreq(n, device=x.device) for n in x.shape]
    band = ((frequencies[axis] + 0.5) * poses).long().clamp(max=poses - 1)
    shifts = strength_mm * torch.randn((poses, 3), generator=generator, device=x.device)
    shifts[poses // 2] = 0.0
    for a, f in enumerate(frequencies):
        t = shifts[band, a].reshape([-1 if b == axis else 1 for b in range(3)])
        angle = -2 * math.pi * t * f.reshape([-1 if b == a else 1 for b in range(3)])
        kspace = kspace * torch.polar(torch.ones_like(angle), angle)
    magnitude: Tensor = torch.fft.ifftn(kspace).abs()
    return magnitude
