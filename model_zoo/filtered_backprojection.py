"""Filtered backprojection of parallel and fan beams (Kak & Slaney 1988, chapter 3), short scans after Parker (1982).

The ramp is the transform of its samples in space, not a ramp of samples in frequency: the latter lacks its value at
frequency 0, which biases every CT number. Rays carry weights that make each line count once.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_zoo.ct_geometry import CtGeometry

__all__ = ["Window", "filtered_backprojection", "redundancy_weights"]

Window = Literal["ramp", "hann"]
"""The filter: the ramp up to the Nyquist frequency of the bins, or that times a Hann window, which ends there in 0."""


def filtered_backprojection(geometry: CtGeometry, line_integrals: Tensor, *, window: Window = "ramp") -> Tensor:
    """Return attenuation in 1/mm, (batch, j, i), of line integrals (batch, view, bin).

    Pixels outside the circle that every view covers are 0. An arc below half a turn of parallel beams is taken as it
    is, and shows the artefacts of the missing views.

    Raises ValueError where the weights of the rays are not known (:func:`redundancy_weights`), and where the detector
    does not reach as far from the axis as the longer side of the image: filtered rays that end inside an object give
    false numbers. Pixels beyond its reach, in the corners, are 0.
    """
    g = geometry
    covered_mm = _find_covered_radius(g)
    if covered_mm < max(g.shape) / 2 * g.pixel_mm * (1 - 1e-6):
        raise ValueError(f"the detector covers {covered_mm:.0f} mm about the axis, less than the image")
    weighted = line_integrals * torch.from_numpy(redundancy_weights(g)).float()
    if g.source_mm is not None:
        weighted = weighted * torch.from_numpy(g.source_mm * np.cos(g.fan_angles)).float()
    filtered = _apply_ramp(g, weighted, window) * np.deg2rad(g.arc_deg) / g.views
    return _backproject(g, filtered, covered_mm)


def redundancy_weights(geometry: CtGeometry) -> NDArray[np.float64]:
    """Return the weight of each ray, (view, bin): weights of the rays along one line sum to 1.

    A full turn has every line twice. Half a turn or less of parallel beams has none twice. A short scan of a fan, over
    pi + 2 delta, has Parker's weights; delta is at least the largest angle in the fan.

    Raises ValueError for other arcs.
    """
    g = geometry
    if g.arc_deg == 360:
        return np.full((g.views, g.bins), 0.5)
    if g.source_mm is None:
        if g.arc_deg > 180:
            raise ValueError(f"parallel beams over {g.arc_deg:g} degrees: 360, or at most 180")
        return np.ones((g.views, g.bins))
    delta = np.deg2rad(g.arc_deg - 180) / 2
    gamma = g.fan_angles
    if delta < np.abs(gamma).max():
        least = 180 + 2 * np.rad2deg(np.abs(gamma).max())
        raise ValueError(f"a fan beam over {g.arc_deg:g} degrees: 360, or at least {least:.1f} for this detector")
    beta = (np.arange(g.views)[:, None] + 0.5) * np.deg2rad(g.arc_deg) / g.views
    first, last = np.maximum(delta - gamma, 1e-9), np.maximum(delta + gamma, 1e-9)
    rising = np.sin(np.pi / 4 * np.minimum(beta / first, 2.0)) ** 2
    falling = np.sin(np.pi / 4 * np.minimum((np.pi + 2 * delta - beta) / last, 2.0)) ** 2
    weights: NDArray[np.float64] = np.minimum(rising, falling)
    return weights


def _find_covered_radius(g: CtGeometry) -> float:
    """Return the radius in mm of the circle about the axis that the detector covers in every view."""
    edges = np.array([g.bin_places[0] - g.bin_mm / 2, g.bin_places[-1] + g.bin_mm / 2])
    if g.source_mm is not None:
        edges = g.source_mm * np.sin(edges / g.source_mm)
    return float(min(-edges[0], edges[1]))


def _apply_ramp(g: CtGeometry, values: Tensor, window: Window) -> Tensor:
    """Convolve the bins with the ramp (eq. 3.61; for a fan 3.117, without its factor of a half)."""
    n = np.arange(-(g.bins - 1), g.bins)
    step = g.bin_mm if g.source_mm is None else g.bin_mm / g.source_mm
    distance = n * step if g.source_mm is None else np.sin(n * step)
    odd = n % 2 == 1
    ramp = np.zeros(len(n))
    ramp[odd] = -1 / (np.pi * distance[odd]) ** 2
    ramp[g.bins - 1] = 1 / (4 * step**2)
    length = 2 ** int(np.ceil(np.log2(3 * g.bins)))
    kernel = torch.fft.rfft(torch.from_numpy(np.roll(np.pad(ramp, (0, length - len(n))), -(g.bins - 1))))
    if window == "hann":
        kernel = kernel * (0.5 + 0.5 * torch.cos(torch.pi * torch.linspace(0, 1, length // 2 + 1)))
    spectrum = torch.fft.rfft(values, n=length) * (kernel * step).to(torch.complex64)
    filtered: Tensor = torch.fft.irfft(spectrum, n=length)[..., : g.bins]
    return filtered


def _backproject(g: CtGeometry, filtered: Tensor, covered_mm: float) -> Tensor:
    """Sum over the views what lies along the ray through each pixel, between bins interpolated linearly."""
    y, x = ((torch.arange(n) - (n - 1) / 2) * g.pixel_mm for n in g.shape)
    x, y = torch.meshgrid(x, y, indexing="xy")
    image = torch.zeros((len(filtered), *g.shape))
    for view, beta in enumerate(g.view_angles):
        place, weight = _find_rays(g, float(beta), x, y)
        at = ((place - float(g.bin_places[0])) / g.bin_mm).clamp(0, g.bins - 1)
        low = at.floor().long().clamp_max(max(g.bins - 2, 0))
        share = at - low
        row = filtered[:, view]
        image += weight * ((1 - share) * row[:, low] + share * row[:, (low + 1).clamp_max(g.bins - 1)])
    return image * (torch.hypot(x, y) <= covered_mm)


def _find_rays(g: CtGeometry, beta: float, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | float]:
    """Return the places on the detector of the rays through pixels, in mm, and the pixels' weights in the sum."""
    across = x * np.cos(beta) + y * np.sin(beta)
    if g.source_mm is None:
        return across, 1.0
    towards = g.source_mm + x * np.sin(beta) - y * np.cos(beta)
    return g.source_mm * torch.atan2(across, towards), 1 / (across**2 + towards**2)
