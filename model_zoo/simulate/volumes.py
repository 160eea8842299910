"""MR volumes of simulated heads: known sequences with known tissue, and any contrast at any resolution.

The contrast-agnostic images follow SynthSeg (Billot et al., Med. Image Anal. 86, 2023): random intensities per tissue,
random bias, resolution and noise. Half of the contrasts follow the signal equations with random tissue parameters and
protocols (``mr.random_contrast``), half are free random values, so that no sequence is outside what was seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model_zoo.simulate import axes
from model_zoo.simulate.acquisition import at_resolution, bias, log_uniform, texture, uniform
from model_zoo.simulate.anatomy import TISSUES
from model_zoo.simulate.mr import look_up, random_contrast
from model_zoo.structures import STRUCTURES

if TYPE_CHECKING:
    from model_zoo.simulate.heads import Head

__all__ = ["contrast_agnostic", "normalised"]

CLASSES = len(STRUCTURES) + 1


def contrast_agnostic(head: Head, generator: torch.Generator, *, thick_slices: bool = True) -> Tensor:
    """A random MR-like image of ``head``: float (k, j, i) in [0, 1] on the head's own grid.

    ``thick_slices``: of four images one has slices of up to 6 mm along a random axis, one is low-field-like (up to
    2 x 2 x 5 mm and strongly noisy); both are interpolated back linearly. Sharp ones have at most 1.5 mm.
    Three in ten are skull-stripped. Drawn on the generator's device, to which the labels are moved.
    """
    tissue, structure = head.tissue.to(generator.device), head.structure.to(generator.device)
    shape = (tissue.shape[0], tissue.shape[1], tissue.shape[2])
    x = look_up(_intensities(generator), tissue, structure)
    if uniform(generator, 0, 1) < 0.3:
        x = x * (structure > 0)
    x = x * (1 + uniform(generator, 0.0, 0.06) * texture(shape, head.spacing_mm, generator))
    x = axes.blur(x, (uniform(generator, 0.3, 0.9) / head.spacing_mm,) * 3)
    x = x * bias(shape, log_uniform(generator, 0.02, 0.6), generator)
    spacing_mm, noise_sd = _any_protocol(generator, thick_slices)
    level = float(x[structure > 0].mean()) if bool(structure.any()) else 1.0
    x = at_resolution(x, tuple(s / head.spacing_mm for s in spacing_mm), noise_sd * level, generator)
    return normalised(x) ** log_uniform(generator, 0.7, 1.4)


def normalised(x: Tensor, low: float = 0.005, high: float = 0.995) -> Tensor:
    """``x`` from its ``low`` to its ``high`` quantile scaled to [0, 1] and clipped; every 31st voxel is asked."""
    sample = x.flatten()[::31].sort().values
    floor, ceiling = sample[int(low * (len(sample) - 1))], sample[int(high * (len(sample) - 1))]
    return ((x - floor) / (ceiling - floor).clamp(min=1e-6)).clamp(0, 1)


def _intensities(generator: torch.Generator) -> Tensor:
    """Mean intensity per tissue and structure (classes, structures) in [0, 1]; air is dark."""
    device = generator.device
    if uniform(generator, 0, 1) < 0.5:
        seed = int(torch.randint(2**62, (1,), generator=generator, device=device))
        means = random_contrast(torch.Generator().manual_seed(seed)).to(device)
        spread = uniform(generator, 0.0, 0.05)
    else:
        means = torch.rand(len(TISSUES), generator=generator, device=device)
        spread = uniform(generator, 0.0, 0.10)
    means[list(TISSUES).index("air")] = max(0.0, uniform(generator, -0.8, 0.2))
    return means[:, None] * torch.exp(spread * torch.randn((len(means), CLASSES), generator=generator, device=device))


def _any_protocol(generator: torch.Generator, thick_slices: bool) -> tuple[list[float], float]:
    """Voxel size in mm along each axis and the noise's standard deviation in units of the brain's mean."""
    kind = uniform(generator, 0, 1) if thick_slices else 0.0
    through = int(torch.randint(3, (1,), generator=generator, device=generator.device))
    if kind < 0.5:
        return [uniform(generator, 0.8, 1.5)] * 3, log_uniform(generator, 0.003, 0.08)
    low_field = kind > 0.75
    spacing_mm = [uniform(generator, 1.2, 2.0) if low_field else uniform(generator, 0.7, 1.2)] * 3
    spacing_mm[through] = uniform(generator, 3.0, 5.0) if low_field else uniform(generator, 2.0, 6.0)
    return spacing_mm, log_uniform(generator, 0.03, 0.15) if low_field else log_uniform(generator, 0.005, 0.06)
