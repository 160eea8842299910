"""MR volumes of simulated heads: known sequences with known tissue, and any contrast at any resolution.

A known sequence: T1, T2 and PD of every voxel (by tissue, subject and region, with texture), the signed signal by its
equation, partial volume by a blur of the signal, magnitude, then what the scan does to it (``acquisition``).

The contrast-agnostic images follow SynthSeg (Billot et al., Med. Image Anal. 86, 2023): random intensities per tissue,
random bias, resolution and noise. Two thirds of the contrasts follow the signal equations with random tissue
parameters and protocols (``contrasts.draw_contrast``), the others are free random values, so that no sequence is
outside the training data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model_zoo.imaging import scale_between_quantiles
from model_zoo.physics.mr import TissueParameters, look_up
from model_zoo.physics.sequences import Dir, Flair, Sequence
from model_zoo.physics.tissues import TISSUES
from model_zoo.simulate import axes
from model_zoo.simulate.acquisition import (
    draw_bias_field,
    draw_texture,
    log_uniform,
    reduce_resolution,
    simulate_motion,
    truncate_kspace,
    uniform,
)
from model_zoo.simulate.contrasts import draw_contrast
from model_zoo.structures import COUNT

if TYPE_CHECKING:
    from model_zoo.simulate.heads import Head

__all__ = ["Scan", "draw_scan", "draw_tissue_maps", "render_contrast_agnostic", "render_signal", "simulate_scan"]

CLASSES = COUNT + 1
RESIDUAL_FAT = 0.15
"""Share of the fat's signal that fat saturation leaves in FLAIR and DIR."""


@dataclass(frozen=True)
class Scan:
    """Acquisition of a volume.

    ``spacing_mm``: voxel (k, j, i); ``noise_sd``: of each component, in units of the brain's mean signal; ``bias``:
    strength of the receive field's logarithm; ``motion_mm``: sd of the head's shifts between ``poses`` bands of
    k-space; ``keep``: central share of k-space along each axis.
    """

    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    noise_sd: float = 0.02
    bias: float = 0.1
    motion_mm: float = 0.0
    poses: int = 4
    keep: tuple[float, float, float] = (1.0, 1.0, 1.0)


def draw_scan(generator: torch.Generator, *, thick: float = 0.3, motion: float = 0.15) -> Scan:
    """Return a clinical acquisition; ``thick`` and ``motion`` are the shares with slices of 2 to 6 mm and a moving
    head.
    """
    spacing_mm = [uniform(generator, 0.8, 1.2)] * 3
    if uniform(generator, 0, 1) < thick:
        spacing_mm[int(uniform(generator, 0, 3))] = uniform(generator, 2.0, 6.0)
    share = uniform(generator, 0.7, 1.0) if uniform(generator, 0, 1) < 0.3 else 1.0
    moving = uniform(generator, 0, 1) < motion
    return Scan(
        (spacing_mm[0], spacing_mm[1], spacing_mm[2]),
        noise_sd=log_uniform(generator, 0.005, 0.05),
        bias=log_uniform(generator, 0.02, 0.3),
        motion_mm=uniform(generator, 0.2, 1.0) if moving else 0.0,
        keep=(1.0, share, 1.0),
    )


def draw_tissue_maps(
    head: Head, p: TissueParameters, generator: torch.Generator, *, texture_sd: float = 0.04
) -> TissueParameters:
    """Return the maps (k, j, i) of T1, T2 and PD: those of ``p`` (classes, structures) with texture correlated over 2
    to 4 mm.

    The texture is exp(texture_sd n), n of variance 1, of its own for T1, T2 and (half as strong) PD; fluid has none.
    """
    maps = p.at(head.tissue.to(generator.device), head.structure.to(generator.device))
    shape = (head.tissue.shape[0], head.tissue.shape[1], head.tissue.shape[2])
    solid = (head.tissue != list(TISSUES).index("csf")).to(generator.device)

    def textured(values: Tensor, sd: float) -> Tensor:
        return values * torch.exp(sd * solid * draw_texture(shape, head.spacing_mm, generator))

    return TissueParameters(
        textured(maps.t1_ms, texture_sd), textured(maps.t2_ms, texture_sd), textured(maps.pd, 0.5 * texture_sd)
    )


def render_signal(
    p: TissueParameters, sequence: Sequence, head: Head, *, blur_mm: float = 0.5, fat_left: float = RESIDUAL_FAT
) -> Tensor:
    """Return the magnitude (k, j, i) of a sequence on maps ``p`` of ``head``, partial volume by a Gaussian of
    ``blur_mm``.

    FLAIR and DIR are fat-saturated: ``fat_left`` of the signal of fat and marrow remains.
    """
    signal = sequence.signal(p)
    if isinstance(sequence, Flair | Dir):
        left = torch.ones(len(TISSUES))
        left[[list(TISSUES).index("fat"), list(TISSUES).index("marrow")]] = fat_left
        signal = signal * left.to(signal)[head.tissue.to(signal.device, torch.int32)]
    return axes.blur(signal, (blur_mm / head.spacing_mm,) * 3).abs()


def simulate_scan(x: Tensor, head: Head, scan: Scan, generator: torch.Generator) -> Tensor:
    """Return the magnitude image ``x`` (k, j, i) of ``head`` as ``scan`` acquires it, on the head's own grid."""
    brain = head.structure.to(x.device) > 0
    level = float(x[brain].mean()) if bool(brain.any()) else float(x.mean())
    x = x * draw_bias_field((x.shape[0], x.shape[1], x.shape[2]), scan.bias, generator)
    if scan.motion_mm > 0:
        x = simulate_motion(x, scan.poses, scan.motion_mm / head.spacing_mm, 1, generator)
    if min(scan.keep) < 1:
        x = truncate_kspace(x, scan.keep)
    step = tuple(s / head.spacing_mm for s in scan.spacing_mm)
    return reduce_resolution(x, step, scan.noise_sd * level, generator)


def render_contrast_agnostic(head: Head, generator: torch.Generator, *, thick_slices: bool = True) -> Tensor:
    """Return a random MR-like image of ``head``: float (k, j, i) in [0, 1] on the head's own grid.

    ``thick_slices``: two images in ten have slices of up to 6 mm along a random axis, two are low-field-like (up to
    2 x 2 x 5 mm and strongly noisy); both are interpolated back linearly. Sharp ones have at most 1.5 mm.
    Three in ten are skull-stripped. Drawn on the generator's device, to which the labels are moved.
    """
    tissue, structure = head.tissue.to(generator.device), head.structure.to(generator.device)
    shape = (tissue.shape[0], tissue.shape[1], tissue.shape[2])
    x = look_up(_draw_intensities(generator), tissue, structure)
    if uniform(generator, 0, 1) < 0.3:
        x = x * (structure > 0)
    x = x * (1 + uniform(generator, 0.0, 0.06) * draw_texture(shape, head.spacing_mm, generator))
    x = axes.blur(x, (uniform(generator, 0.3, 0.9) / head.spacing_mm,) * 3)
    x = x * draw_bias_field(shape, log_uniform(generator, 0.02, 0.6), generator)
    spacing_mm, noise_sd = _draw_protocol(generator, thick_slices)
    level = float(x[structure > 0].mean()) if bool(structure.any()) else 1.0
    x = reduce_resolution(x, tuple(s / head.spacing_mm for s in spacing_mm), noise_sd * level, generator)
    return scale_between_quantiles(x) ** log_uniform(generator, 0.7, 1.4)


def _draw_intensities(generator: torch.Generator) -> Tensor:
    """Return the mean intensity per tissue and structure (classes, structures) in [0, 1]; air is dark."""
    device = generator.device
    if uniform(generator, 0, 1) < 0.65:
        seed = int(torch.randint(2**62, (1,), generator=generator, device=device))
        means = draw_contrast(torch.Generator().manual_seed(seed)).to(device)
        spread = uniform(generator, 0.0, 0.05)
    else:
        means = torch.rand(len(TISSUES), generator=generator, device=device)
        spread = uniform(generator, 0.0, 0.10)
    means[list(TISSUES).index("air")] = max(0.0, uniform(generator, -0.8, 0.2))
    return means[:, None] * torch.exp(spread * torch.randn((len(means), CLASSES), generator=generator, device=device))


def _draw_protocol(generator: torch.Generator, thick_slices: bool) -> tuple[list[float], float]:
    """Return the voxel size in mm along each axis and the noise's standard deviation in units of the brain's mean."""
    kind = uniform(generator, 0, 1) if thick_slices else 0.0
    through = int(torch.randint(3, (1,), generator=generator, device=generator.device))
    if kind < 0.6:
        return [uniform(generator, 0.8, 1.5)] * 3, log_uniform(generator, 0.003, 0.08)
    low_field = kind > 0.82
    spacing_mm = [uniform(generator, 1.2, 2.0) if low_field else uniform(generator, 0.7, 1.2)] * 3
    spacing_mm[through] = uniform(generator, 3.0, 5.0) if low_field else uniform(generator, 2.0, 6.0)
    return spacing_mm, log_uniform(generator, 0.03, 0.15) if low_field else log_uniform(generator, 0.005, 0.06)
