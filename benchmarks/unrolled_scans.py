"""Undersampled scans with their answer, on which the unrolled network is trained.

The images are those of recipe ``mri-prior``: random planes through the training label maps with random contrast. Coils,
noise and sampling are drawn here. Scans are prepared as the node prepares them, from complete k-space, and one scan
serves several steps with another sampling each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_zoo import masks
from model_zoo.operators import Fourier, centred_fft
from model_zoo.simulate.coils import compute_sensitivities
from model_zoo.training.mri_prior import draw_complex_slice
from model_zoo.training.recipe import Source, seeded
from pipelines.contract import Grid, KSpace, Refused
from pipelines.encoding import Problem, prepare_image

__all__ = ["SCANS", "USES", "draw_problem"]

SCANS = 32
"""Number of scans kept: steps take them in turn, each ``USES`` times, before the next are drawn."""
USES = 6
COILS = (1, 2, 4, 6, 8, 8, 12, 16)
CALIBRATION = 24
MOST_PIXELS = 16_000
FOV_MM = 240.0


@dataclass(frozen=True)
class _FullScan:
    """Prepared complete k-space of one slice, its noise-free magnitude (1, a, b), and a Poisson mask or none."""

    problem: Problem
    reference: Tensor
    poisson: NDArray[np.bool_] | None


def draw_problem(source: Source, seed: int, step: int, generator: torch.Generator) -> tuple[Problem, Tensor]:
    """Return the problem of a training step, undersampled, and its reference (1, a, b) in the units of the samples."""
    number = step // (SCANS * USES) * SCANS + step % SCANS
    scan = _draw_scan(source, seed, number)
    rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    return _undersample(scan.problem, _draw_mask(scan, rng), math.exp(0.05 * rng.standard_normal())), scan.reference


@lru_cache(maxsize=SCANS)
def _draw_scan(source: Source, seed: int, number: int) -> _FullScan:
    """Draw slices until one can be prepared."""
    generator = seeded(seed, 10**8 + number)
    while True:
        x = draw_complex_slice(source, generator)
        if x.numel() > MOST_PIXELS or float((x.abs() > 0.05).float().mean()) < 0.15:
            continue
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        try:
            problem = prepare_image(_acquire(x, rng))
        except Refused:
            continue
        shape = (x.shape[0], x.shape[1])
        poisson = masks.poisson_2d(shape, rng.uniform(3, 9), CALIBRATION, rng) if number % 2 else None
        return _FullScan(problem, x.abs()[None], poisson)


def _acquire(x: Tensor, rng: np.random.Generator) -> KSpace:
    """Return complete k-space of an image (a, b): random coils about it, and noise of unequal, correlated coils."""
    coils, shape = int(rng.choice(COILS)), (x.shape[0], x.shape[1])
    received = _draw_maps(shape, coils, rng) * x
    sd = math.sqrt(2) / math.exp(rng.uniform(math.log(8), math.log(120)))
    mixing = np.eye(coils) + rng.uniform(0, 0.3) * _draw_noise((coils, coils), rng)
    colour = sd * rng.uniform(1, 3) ** rng.uniform(0, 1, coils)[:, None] * mixing
    noise = np.einsum("cd,dab->cab", colour, _draw_noise((coils, *shape), rng))
    samples = (centred_fft(received).numpy() + noise)[None].astype(np.complex64)
    prescan = (colour @ _draw_noise((coils, 4096), rng)).astype(np.complex64) if rng.random() < 0.5 else None
    a0, b0 = (n // 2 - CALIBRATION // 2 for n in shape)
    block = (a0, a0 + CALIBRATION), (b0, b0 + CALIBRATION)
    grid = Grid((1, *shape), np.diag([1.0, 1.0, 5.0, 1.0]))
    return KSpace(samples, np.ones((1, *shape), bool), (FOV_MM, FOV_MM), grid, 5.0, block, prescan)


def _draw_maps(shape: tuple[int, int], coils: int, rng: np.random.Generator) -> Tensor:
    """Return sensitivities (coil, a, b) over a field of view of 200 to 260 mm around the middle of the coils."""
    sides = [np.linspace(-0.5, 0.5, n) * rng.uniform(200, 260) for n in shape]
    y, x = np.meshgrid(*sides, indexing="ij")
    points = np.stack([x, y, np.full(shape, rng.uniform(-40, 40))], axis=-1)
    return torch.from_numpy(compute_sensitivities(points, coils, rng))


def _draw_noise(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.complex128]:
    """Return complex noise of variance 1."""
    return np.asarray((rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / math.sqrt(2))


def _draw_mask(scan: _FullScan, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return the scan's Poisson mask, mirrored at random, or draw lines (R 2 to 8) or points (R 3 to 9)."""
    if scan.poisson is not None:
        axes = tuple(axis for axis in (0, 1) if rng.random() < 0.5)
        return np.roll(np.flip(scan.poisson, axes), [1 - scan.poisson.shape[a] % 2 for a in axes], axes)
    shape = (scan.reference.shape[1], scan.reference.shape[2])
    if rng.random() < 0.3:
        return masks.gaussian_2d(shape, rng.uniform(3, 9), CALIBRATION, rng)
    R = rng.uniform(2, 8)
    draw = (masks.gaussian_1d, masks.gaussian_1d, masks.uniform_1d, masks.random_1d)[rng.integers(4)]
    return draw(shape, R, min(CALIBRATION, int(0.6 * shape[1] / R)), rng)


def _undersample(p: Problem, mask: NDArray[np.bool_], scale: float) -> Problem:
    """Return the problem with the samples of ``mask`` only, scaled, since aliasing changes the level that is found."""
    P = torch.from_numpy(mask)[None]
    A, y = Fourier(p.A.maps, P), scale * p.y * P[:, None]
    return Problem(A, y, scale * p.sigma_y, p.gain / scale, p.noise_sd, p.maps_from, p.noise_from)
