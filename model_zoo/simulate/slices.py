"""Complex MR slices of random heads: oblique planes through label maps, random contrast, texture, bias, phase, blur.

A slice is rendered on a grid 1.5 times finer than it is delivered, then cropped in k-space, so that its edges carry
the point-spread function of a real acquisition (sinc, sometimes apodised) and not the staircase of a label map.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from model_zoo.operators import centred_fft, centred_ifft
from model_zoo.simulate.contrasts import draw_contrast

__all__ = [
    "FINER",
    "Plane",
    "crop_kspace",
    "draw_slice",
    "draw_smooth_field",
    "draw_smooth_phase",
    "draw_texture",
    "gaussian_blur",
    "sample_plane",
]

FINER = 1.5
Plane = Tensor
"""Voxel coordinates (z, y, x) of every pixel of a plane: float (3, ny, nx)."""


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return float(torch.empty(1).uniform_(low, high, generator=generator))


def draw_smooth_field(shape: tuple[int, int], cells: int, generator: torch.Generator) -> Tensor:
    """Return a random smooth field (ny, nx), about N(0, 1) at its knots: white noise on a coarse grid, upsampled."""
    coarse = torch.randn((1, 1, cells, cells), generator=generator)
    return functional.interpolate(coarse, size=shape, mode="bicubic", align_corners=True)[0, 0]


def draw_plane(shape: tuple[int, int], pixel_mm: tuple[float, float], generator: torch.Generator) -> Plane:
    """Return a random plane of a (256, 256, 256) head at 1 mm: axial, sagittal or coronal, tilted, warped, zoomed."""
    axis = int(torch.randint(4, (1,), generator=generator)) % 3  # axial twice as often
    ny, nx = shape
    v, u = torch.meshgrid(
        (torch.arange(ny) - ny // 2) * pixel_mm[0], (torch.arange(nx) - nx // 2) * pixel_mm[1], indexing="ij"
    )
    angle = (
        _uniform(generator, -math.pi, math.pi) if _uniform(generator, 0, 1) < 0.3 else _uniform(generator, -0.25, 0.25)
    )
    zoom_v, zoom_u = _uniform(generator, 0.85, 1.15), _uniform(generator, 0.85, 1.15)
    v, u = zoom_v * (v * math.cos(angle) - u * math.sin(angle)), zoom_u * (v * math.sin(angle) + u * math.cos(angle))
    v = v + 3.0 * draw_smooth_field(shape, 6, generator)
    u = u + 3.0 * draw_smooth_field(shape, 6, generator)
    depth = _uniform(generator, -60, 55) + _uniform(generator, -0.2, 0.2) * v + _uniform(generator, -0.2, 0.2) * u
    axes = {0: (depth, v, u), 1: (v, depth, u), 2: (v, u, depth)}[axis]
    return torch.stack([a + 128.0 for a in axes])


def sample_plane(tissue: Tensor, plane: Plane, signal: Tensor, thickness_mm: float, slabs: int = 3) -> Tensor:
    """Return the mean over ``slabs`` parallel planes within ``thickness_mm`` of the nearest label's signal: float (ny,
    nx).

    The signal is linear in tissue fractions, so averaging and blurring the signal equals rendering partial volumes.
    """
    normal = torch.linalg.cross(plane[:, 0, 1] - plane[:, 0, 0], plane[:, 1, 0] - plane[:, 0, 0])
    normal = normal / normal.norm().clamp(min=1e-6)
    offsets = [(s + 0.5) / slabs - 0.5 for s in range(slabs)]
    total = torch.zeros(plane.shape[1:])
    for offset in offsets:
        z, y, x = (
            (plane + (offset * thickness_mm) * normal[:, None, None])
            .round()
            .long()
            .clamp(min=0)
            .minimum(torch.tensor(tissue.shape)[:, None, None] - 1)
        )
        total = total + signal[tissue[z, y, x].long()]
    return total / slabs


def gaussian_blur(image: Tensor, sigma_px: tuple[float, float]) -> Tensor:
    """Blur by the transfer function exp(-2 (pi f sigma)^2); real (ny, nx).

    Periodic, other than ``model_zoo.imaging.blur``, with which the simulated data would change.
    """
    fy, fx = (torch.fft.fftfreq(n) for n in image.shape)
    transfer = torch.exp(-2 * math.pi**2 * ((fy[:, None] * sigma_px[0]) ** 2 + (fx[None, :] * sigma_px[1]) ** 2))
    blurred: Tensor = torch.fft.ifft2(torch.fft.fft2(image) * transfer)
    return blurred.real


def crop_kspace(image: Tensor, shape: tuple[int, int], window: Tensor | None = None) -> Tensor:
    """Band-limit complex (..., ny, nx) to ``shape`` about the centre of k-space; the object's amplitude is kept."""
    kspace = centred_fft(image)
    ny, nx = kspace.shape[-2:]
    y0, x0 = ny // 2 - shape[0] // 2, nx // 2 - shape[1] // 2
    kspace = kspace[..., y0 : y0 + shape[0], x0 : x0 + shape[1]]
    if window is not None:
        kspace = kspace * window
    return centred_ifft(kspace) * math.sqrt(shape[0] * shape[1] / (ny * nx))


def draw_smooth_phase(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return an object phase in radians (ny, nx): a random polynomial of third order and a smooth random field."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, shape[0]), torch.linspace(-1, 1, shape[1]), indexing="ij")
    phase = torch.full(shape, _uniform(generator, -math.pi, math.pi))
    strength = _uniform(generator, 0.0, 1.0) * math.pi
    for a in range(4):
        for b in range(4 - a):
            if a + b > 0:
                phase = phase + strength * 0.5 * _uniform(generator, -1, 1) * y**a * x**b
    return phase + _uniform(generator, 0, 0.4) * draw_smooth_field(shape, 8, generator)


def draw_texture(shape: tuple[int, int], pixel_mm: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Return a multiplicative tissue texture exp(amplitude * noise correlated over 0.8 to 4 mm)."""
    length_mm = _uniform(generator, 0.8, 4.0)
    noise = gaussian_blur(torch.randn(shape, generator=generator), (length_mm / pixel_mm[0], length_mm / pixel_mm[1]))
    return torch.exp(_uniform(generator, 0.0, 0.08) * noise / noise.std())


def _draw_focal_changes(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return random ellipses brighter or darker than their surroundings: pathology that no label map holds."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, shape[0]), torch.linspace(-1, 1, shape[1]), indexing="ij")
    change = torch.zeros(shape)
    for _ in range(int(torch.randint(0, 6, (1,), generator=generator))):
        cy, cx = _uniform(generator, -0.6, 0.6), _uniform(generator, -0.6, 0.6)
        ry, rx = math.exp(_uniform(generator, -4.4, -1.8)), math.exp(_uniform(generator, -4.4, -1.8))
        edge = _uniform(generator, 0.05, 0.6)
        inside = torch.sigmoid((1 - torch.sqrt(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2)) / edge)
        change = change + _uniform(generator, -0.9, 0.9) * inside
    return torch.exp(change)


def draw_slice(tissue: Tensor, generator: torch.Generator, signal: Tensor | None = None) -> Tensor:
    """Return one complex slice (ny, nx) of a head, 99th percentile of the magnitude near 1, no noise.

    ``tissue``: uint8 (256, 256, 256) of ``anatomy.read_tissue_map``. Field of view 180 to 280 mm, pixels 0.9 to 2.2 mm.
    ``signal``: magnitude per tissue class (classes,); None for a random contrast.
    """
    pixel = _uniform(generator, 0.9, 2.0)
    pixel_mm = (pixel, pixel * _uniform(generator, 0.75, 1.4))
    fov_mm = (_uniform(generator, 190, 270), _uniform(generator, 190, 270))
    shape = (max(96, round(fov_mm[0] / pixel_mm[0])), max(96, round(fov_mm[1] / pixel_mm[1])))
    fine = (round(shape[0] * FINER), round(shape[1] * FINER))
    fine_mm = (pixel_mm[0] * shape[0] / fine[0], pixel_mm[1] * shape[1] / fine[1])
    plane = draw_plane(fine, fine_mm, generator)
    contrast = draw_contrast(generator) if signal is None else signal
    image = sample_plane(tissue, plane, contrast, _uniform(generator, 1.0, 6.0))
    image = image * draw_texture(fine, fine_mm, generator) * _draw_focal_changes(fine, generator)
    blur_mm = _uniform(generator, 0.5, 0.9)
    image = gaussian_blur(image, (blur_mm / fine_mm[0], blur_mm / fine_mm[1]))
    image = image * torch.exp(_uniform(generator, 0, 0.5) * draw_smooth_field(fine, 4, generator))
    x = crop_kspace(torch.polar(image, draw_smooth_phase(fine, generator)), shape, _draw_window(shape, generator))
    level = torch.quantile(x.abs().flatten(), 0.99).clamp(min=1e-6)
    return x / level * math.exp(0.15 * float(torch.randn(1, generator=generator)))


def _draw_window(shape: tuple[int, int], generator: torch.Generator) -> Tensor | None:
    """Return None (sharp k-space edge) half of the time, else a Tukey window as scanners apply it."""
    if _uniform(generator, 0, 1) < 0.5:
        return None
    roll = _uniform(generator, 0.1, 0.6)

    def tukey(n: int) -> Tensor:
        r = (torch.arange(n) - n // 2).abs() / (n / 2)
        ramp = ((r - (1 - roll)) / roll).clamp(0, 1)
        return 0.5 * (1 + torch.cos(math.pi * ramp)) * 0.9 + 0.1

    return tukey(shape[0])[:, None] * tukey(shape[1])[None, :]
