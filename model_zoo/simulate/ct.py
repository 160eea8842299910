"""Torsos and heads in HU on a fine grid, and their scans with photon noise.

The grid is finer than the one that reconstructs, and each bin of the detector averages the intensity of several rays:
neither the projection nor its model of an edge is that of the reconstruction. One energy, no scatter, no electronic
noise. CT numbers are plausible defaults (soft tissue without contrast agent at 120 kV), not measurements.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model_zoo.physics.tissues import TISSUES
from model_zoo.radon import CtGeometry, build_matrix, to_attenuation
from model_zoo.simulate import anatomy
from model_zoo.simulate.pet.torso import ORGANS, draw_torso

__all__ = ["average_pixels", "draw_torso_slice", "make_head_slice", "simulate_counts"]

AIR_HU = -1000.0
_TORSO_HU = {
    "outside": (AIR_HU, AIR_HU),
    "muscle": (45.0, 65.0),
    "fat": (-115.0, -85.0),
    "lungs": (-870.0, -760.0),
    "heart": (35.0, 50.0),
    "liver": (50.0, 65.0),
    "spleen": (40.0, 55.0),
    "stomach": (5.0, 40.0),
    "kidneys": (25.0, 40.0),
    "spine": (150.0, 300.0),
    "bone": (300.0, 800.0),
    "bladder": (0.0, 12.0),
    "bowel": (-20.0, 45.0),
}
_LESION_HU = {"lungs": (20.0, 45.0), "liver": (15.0, 35.0), "spine": (300.0, 600.0), "bone": (50.0, 150.0)}
"""CT numbers of lesions by the organ they lie in; elsewhere they are those of muscle."""
_TEXTURE_HU = {"outside": 0.0, "lungs": 40.0, "spine": 40.0, "bone": 60.0}
_SOFT_TEXTURE_HU = 5.0
_TEXTURE_MM = 4.0
"""Standard deviation of the texture by organ, and the distance of its nodes."""
_HEAD_HU = {
    "air": AIR_HU, "white matter": 28.0, "cortex": 38.0, "cerebellar cortex": 38.0, "thalamus": 36.0, "caudate": 36.0,
    "putamen": 36.0, "pallidum": 38.0, "hippocampus": 37.0, "csf": 8.0, "lesion": 22.0, "brain stem": 30.0,
    "bone": 1000.0, "fat": -80.0, "muscle": 55.0, "marrow": 250.0, "eye": 15.0, "vessel": 50.0,
}  # fmt: skip
_VIEWS_AT_ONCE = 30
"""Views whose matrix is in memory at a time."""


def draw_torso_slice(generator: torch.Generator, *, size: int, pixel_mm: float, height_mm: float) -> Tensor:
    """Return a random torso in HU, float32 (size, size), at a height from 0, the pelvic floor, to 600, the neck."""
    torso = draw_torso(generator, shape=(1, size, size), spacing_mm=pixel_mm, middle_mm=(0.0, 0.0, height_mm))
    organ, lesion = torso.organ[0].long(), torso.lesion[0] > 0
    hu = _draw_values(_TORSO_HU, generator)[organ]
    in_lesion = _draw_values({name: _LESION_HU.get(name, _TORSO_HU["muscle"]) for name in ORGANS}, generator)[organ]
    hu = torch.where(lesion, in_lesion, hu)
    sd = torch.tensor([_TEXTURE_HU.get(name, _SOFT_TEXTURE_HU) for name in ORGANS])[organ]
    return hu + sd * _draw_texture(size, pixel_mm, generator)


def make_head_slice(subject: str, *, row_mm: int, size: int, pixel_mm: float, root: Path | None = None) -> Tensor:
    """Return an axial slice of a label map in HU, float32 (size, size), the nearest label in each pixel.

    ``row_mm``: voxel of the map along the body's axis. Tissues are even. Raises FileNotFoundError where the data kit
    does not have the map.
    """
    values = torch.tensor([_HEAD_HU[name] for name in TISSUES])
    hu = functional.pad(values[anatomy.read_tissue_map(subject, root)[row_mm].long()], (1, 1, 1, 1), value=AIR_HU)
    offsets = (torch.arange(size) - (size - 1) / 2) * pixel_mm
    j, i = ((n / 2 - 0.5 + offsets).round().long().clamp(0, n - 1) for n in hu.shape)
    image: Tensor = hu[j[:, None], i]
    return image


def average_pixels(image: Tensor, factor: int) -> Tensor:
    """Return the mean of each ``factor`` times ``factor`` pixels: (batch, j, i) on the coarser grid."""
    return functional.avg_pool2d(image[:, None], factor)[:, 0]


def simulate_counts(
    hu: Tensor, geometry: CtGeometry, photons: float, generator: torch.Generator, *, factor: int = 2
) -> Tensor:
    """Return photons detected, (batch, view, bin), of images in HU (batch, j, i), ``factor`` times finer than geometry.

    Each count is Poisson with mean ``photons`` times the mean of exp(-p) over ``factor`` rays within the bin.

    Raises ValueError where the images do not have the finer grid.
    """
    fine = geometry.finer(factor)
    if tuple(hu.shape[1:]) != fine.shape:
        raise ValueError(f"images of {tuple(hu.shape[1:])} pixels, where the scan has {fine.shape}")
    pixels = np.ascontiguousarray(to_attenuation(hu).flatten(1).numpy().T)
    step_deg = geometry.arc_deg / geometry.views
    parts = []
    for first in range(0, geometry.views, _VIEWS_AT_ONCE):
        views = min(_VIEWS_AT_ONCE, geometry.views - first)
        start_deg = geometry.first_deg + first * step_deg
        matrix = build_matrix(replace(fine, views=views, arc_deg=views * step_deg, first_deg=start_deg))
        passed = np.exp(-(matrix @ pixels)).reshape(views, geometry.bins, factor, len(hu)).mean(axis=2)
        parts.append(torch.from_numpy(passed))
    mean = photons * torch.cat(parts).movedim(-1, 0).contiguous()
    return torch.poisson(mean, generator=generator)


def _draw_values(ranges: dict[str, tuple[float, float]], generator: torch.Generator) -> Tensor:
    """Draw a CT number for each organ of ORGANS, even in its range."""
    low, high = torch.tensor([ranges[name] for name in ORGANS]).T
    values: Tensor = low + (high - low) * torch.rand(len(ORGANS), generator=generator)
    return values


def _draw_texture(size: int, pixel_mm: float, generator: torch.Generator) -> Tensor:
    """Return standard normal values every few millimetres, with splines between, (size, size)."""
    nodes = max(2, round(size * pixel_mm / _TEXTURE_MM))
    values = torch.randn((1, 1, nodes, nodes), generator=generator)
    return functional.interpolate(values, size=(size, size), mode="bicubic", align_corners=True)[0, 0]
