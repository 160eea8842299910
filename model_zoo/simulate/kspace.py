"""Fully sampled, noisy multi-coil k-space of a label map, for tests and benchmarks: no inverse crime.

The object and the coils are rendered on a grid 1.5 times finer than the one reconstructed; the coil images are
Fourier transformed there and k-space is cropped. The reference is the band-limited object without coils and noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model_zoo.operators import centred_fft, centred_ifft
from model_zoo.physics import mr
from model_zoo.physics.tissues import TISSUES
from model_zoo.simulate import anatomy
from model_zoo.simulate.coils import compute_sensitivities
from model_zoo.simulate.slices import (
    FINER,
    crop_kspace,
    draw_smooth_field,
    draw_smooth_phase,
    draw_texture,
    gaussian_blur,
    sample_plane,
)

__all__ = ["SimulatedScan", "compute_signal", "simulate_scan"]


@dataclass(frozen=True)
class SimulatedScan:
    """``samples`` (slice, coil, a, b) with noise; ``reference`` (slice, a, b) without; ``noise`` (coil, n) pre-scan.

    ``covariance`` (coil, coil) is that of the complex noise, E[n n^H]; axes a towards posterior, b towards left.
    """

    samples: NDArray[np.complex64]
    reference: NDArray[np.complex64]
    noise: NDArray[np.complex64]
    covariance: NDArray[np.complex64]
    pixel_mm: float
    z_mm: tuple[float, ...]


def simulate_scan(
    subject: str,
    *,
    z_mm: tuple[float, ...] = (0.0,),
    shape: tuple[int, int] = (192, 160),
    pixel_mm: float = 1.25,
    thickness_mm: float = 4.0,
    coils: int = 8,
    snr: float = 25.0,
    contrast: str = "t2w",
    seed: int = 0,
    folds: int = 1,
    fat_shift: float = 0.0,
    edge_mm: float = 0.5,
    noise_spread: float = 1.0,
    noise_correlation: float = 1.0,
    tissue: torch.Tensor | None = None,
    signal: torch.Tensor | None = None,
) -> SimulatedScan:
    """Scan axial slices of ``subject`` at heights ``z_mm`` above the middle of its label map.

    ``snr``: white-matter signal over the standard deviation of one component of the noise in the fully sampled,
    coil-combined image. ``contrast``: "t1w" (MPRAGE), "t2w", "flair", "pd". Raises KeyError for another.

    ``folds``: number of fields of view along b that are simulated; what lies beyond one folds over. ``fat_shift``:
    pixels by which fat appears shifted along the readout a. Where either is used, the reference is the root sum of
    squares of the coil images without noise. ``edge_mm``: sd of the blur of the object's edges; sharp ones ring more.
    ``noise_spread``: the coils' noise sd is drawn log-uniformly between one and this factor. ``noise_correlation``
    multiplies the correlation of neighbouring coils; above 1.6 the covariance may be singular. ``tissue``: classes
    (k, j, i) in place of the subject's; ``signal``: that of each class in place of the contrast's.
    """
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    signal = compute_signal(contrast) if signal is None else signal
    tissue = anatomy.read_tissue_map(subject) if tissue is None else tissue
    head = _Head(tissue, signal, thickness_mm, edge_mm, coils, int(rng.integers(2**31)))
    wide = (shape[0], folds * shape[1])
    slices = [head.receive(wide, pixel_mm, z, fat_shift, generator) for z in z_mm]
    reference, received = (torch.stack(parts) for parts in zip(*slices, strict=True))
    if folds > 1:
        received = _fold(received, folds)
    if folds > 1 or fat_shift:
        reference = received.abs().pow(2).sum(dim=1).sqrt() + 0j
    white = float(signal[list(TISSUES).index("white matter")])
    covariance = _draw_covariance(coils, rng, noise_correlation) * 2 * (white / snr) ** 2
    if noise_spread > 1:
        sd = noise_spread ** rng.uniform(0, 1, coils)
        covariance = covariance * np.outer(sd, sd)
    colour = np.linalg.cholesky(covariance)
    clean = centred_fft(received).numpy()
    noise = np.einsum("cd,sdab->scab", colour, _draw_white_noise((len(z_mm), coils, *shape), rng))
    prescan = colour @ _draw_white_noise((coils, 4096), rng)
    return SimulatedScan(
        (clean + noise).astype(np.complex64),
        reference.numpy(),
        prescan.astype(np.complex64),
        covariance.astype(np.complex64),
        pixel_mm,
        z_mm,
    )


@dataclass(frozen=True)
class _Head:
    """Tissue map with the signal of its classes, blur of edges, and coils about it."""

    tissue: torch.Tensor
    signal: torch.Tensor
    thickness_mm: float
    edge_mm: float
    coils: int
    maps_seed: int

    def receive(
        self, shape: tuple[int, int], pixel_mm: float, z_mm: float, fat_shift: float, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the band-limited object (a, b) and the images of the coils (coil, a, b), fat shifted along a."""
        fine = (round(shape[0] * FINER), round(shape[1] * FINER))
        fine_mm = (pixel_mm * shape[0] / fine[0], pixel_mm * shape[1] / fine[1])
        plane = _make_axial_plane(fine, fine_mm, z_mm)
        texture = draw_texture(fine, fine_mm, generator)
        bias = torch.exp(0.2 * draw_smooth_field(fine, 4, generator))
        points = np.moveaxis(plane.numpy().astype(np.float64)[::-1], 0, -1) - 128.0  # (z, y, x) -> (x, y, z)
        maps = torch.from_numpy(compute_sensitivities(points, self.coils, np.random.default_rng(self.maps_seed)))
        phase = draw_smooth_phase(fine, generator)
        x = torch.polar(self._render(plane, self.signal, texture, fine_mm) * bias, phase)
        received = crop_kspace(maps * x, shape)
        if fat_shift:
            only_fat = self.signal * (torch.arange(len(self.signal)) == list(TISSUES).index("fat"))
            fat = torch.polar(self._render(plane, only_fat, texture, fine_mm) * bias, phase)
            there = crop_kspace(maps * fat, shape)
            received = received - there + _shift(there, fat_shift)
        return crop_kspace(x, shape), received

    def _render(
        self, plane: torch.Tensor, signal: torch.Tensor, texture: torch.Tensor, fine_mm: tuple[float, float]
    ) -> torch.Tensor:
        x = sample_plane(self.tissue, plane, signal, self.thickness_mm, slabs=5) * texture
        return gaussian_blur(x, (self.edge_mm / fine_mm[0], self.edge_mm / fine_mm[1]))


def _shift(x: torch.Tensor, pixels: float) -> torch.Tensor:
    """Return images (..., a, b) moved by ``pixels`` along a, by the phase of k-space."""
    n = x.shape[-2]
    ramp = torch.exp(-2j * torch.pi * pixels * (torch.arange(n) - n // 2) / n)
    return centred_ifft(ramp[:, None] * centred_fft(x))


def compute_signal(contrast: str) -> torch.Tensor:
    """Return the magnitude of each class of tissue for "t1w", "t2w", "flair" or "pd"; real (classes,)."""
    p = mr.TissueParameters.table()
    signal = {
        "t1w": lambda: 10 * mr.mprage(p, 2300, 900, 0.157, 7.1, 176),
        "t2w": lambda: mr.spin_echo(p, 5000, 90),
        "flair": lambda: 3 * mr.flair(p, 9000, 2410, 120),
        "pd": lambda: mr.spin_echo(p, 3000, 15),
    }[contrast]()
    return signal.abs()


def _make_axial_plane(shape: tuple[int, int], pixel_mm: tuple[float, float], z_mm: float) -> torch.Tensor:
    y = 128.0 + (torch.arange(shape[0]) - shape[0] // 2) * pixel_mm[0]
    x = 128.0 + (torch.arange(shape[1]) - shape[1] // 2) * pixel_mm[1]
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([torch.full(shape, 128.0 + z_mm), grid_y, grid_x])


def _draw_white_noise(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.complex128]:
    """Return complex noise of variance 1."""
    return np.asarray((rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2))


def _fold(x: torch.Tensor, folds: int) -> torch.Tensor:
    """Return images (..., a, folds b) as a field of view of b pixels shows them: every ``folds``-th sample along k_b.

    Pixels b apart add up, and the centre stays the centre.
    """
    n = x.shape[-1]
    b = n // folds
    k = centred_fft(x)[..., n // 2 - folds * (b // 2) :: folds]
    folded: torch.Tensor = centred_ifft(k) * folds**0.5
    return folded


def _draw_covariance(coils: int, rng: np.random.Generator, correlation: float) -> NDArray[np.complex128]:
    """Return a Hermitian positive definite matrix of unit diagonal, neighbours correlated by 0.1 to 0.3 times
    ``correlation`` with random phase.
    """
    covariance = np.eye(coils, dtype=np.complex128)
    for c in range(coils if coils > 2 else 0):
        d = (c + 1) % coils
        covariance[c, d] = correlation * rng.uniform(0.1, 0.3) * np.exp(1j * rng.uniform(-np.pi, np.pi))
        covariance[d, c] = np.conj(covariance[c, d])
    return covariance
