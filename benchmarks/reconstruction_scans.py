"""Acquisitions that the reconstruction is measured on: real, simulated, and simulated with the faults of real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import loadmat

from model_zoo import masks
from model_zoo.operators import centred_ifft
from model_zoo.simulate.kspace import simulate_scan
from pipelines.contract import Grid, KSpace

__all__ = [
    "FAULTS", "PATIENTS", "PATTERNS", "Scan", "fault_scans", "pattern_scans", "real_scans", "simulated_scans",
    "undersample",
]  # fmt: skip

PATIENTS = ("6A", "6B", "7A", "S6A")
SEQUENCES = ("GRE", "FSE", "FLAIR")
CONTRASTS = ("t1w", "t2w", "flair")
HEIGHTS_MM = (0.0, 25.0, -20.0, 40.0)


@dataclass(frozen=True)
class Fault:
    """One faulty acquisition of a head, 240 mm over ``n`` rows; ``lines``: 1D sampling, else 2D Poisson.

    ``width``: columns over rows. ``folds``, ``fat_shift``, ``edge_mm``: as in ``simulate_scan``.
    """

    coils: int
    n: int
    R: float
    contrast: str
    lines: bool = False
    width: float = 0.83
    folds: int = 1
    fat_shift: float = 0.0
    edge_mm: float = 0.5


FAULTS = {
    "4 coils, 96": Fault(4, 96, 7.0, "t1w"),
    "16 coils, 96": Fault(16, 96, 4.0, "t1w"),
    "4 coils, 192": Fault(4, 192, 7.0, "t1w"),
    "8 coils, 192": Fault(8, 192, 7.0, "t2w"),
    "8 coils, 192, lines": Fault(8, 192, 4.0, "t1w", lines=True),
    "16 coils, 192, lines, fat shift 3 px": Fault(16, 192, 4.0, "t2w", lines=True, fat_shift=3.0),
    "8 coils, 192, sharp edges": Fault(8, 192, 7.0, "flair", edge_mm=0.1),
    "8 coils, 192, folded": Fault(8, 192, 5.0, "t1w", width=0.5, folds=2),
    "16 coils, 192, folded, lines": Fault(16, 192, 2.5, "t2w", lines=True, width=0.5, folds=2),
    "32 coils, 320, lines": Fault(32, 320, 4.0, "t2w", lines=True),
}

Draw = Callable[[tuple[int, int], float, int, np.random.Generator], NDArray[np.bool_]]
PATTERNS: dict[str, tuple[Draw, bool]] = {
    "1D Gaussian": (masks.gaussian_1d, True),
    "1D equispaced": (masks.uniform_1d, True),
    "2D Gaussian": (masks.gaussian_2d, False),
    "2D Poisson": (masks.poisson_2d, False),
}
"""Mask of a pattern of sampling, and whether it samples whole lines."""


@dataclass(frozen=True)
class Scan:
    """One volume at one acceleration; ``sigma`` says whether the noise level is known."""

    set: str
    name: str
    acceleration: float
    kspace: KSpace
    reference: NDArray[np.float32]
    noise_known: bool

    @property
    def key(self) -> str:
        return f"{self.set}/{self.name}/R{self.acceleration:g}"


def real_scans(root: Path, patients: list[str], slices: int, accelerations: list[float]) -> Iterator[Scan]:
    for patient in patients:
        for number, sequence in enumerate(SEQUENCES):
            file = root / "kspace" / "ulf-0p055t-paired-3t" / f"patient-{patient}" / f"0.055T_{sequence}_kspace.mat"
            full = np.moveaxis(loadmat(file)["kspace"], 2, 0)[:slices, None].astype(np.complex64)
            reference = centred_ifft(torch.from_numpy(full))[:, 0].abs().numpy()
            for R in accelerations:
                seed = 100 * PATIENTS.index(patient) + 10 * number + int(R)
                calibration = max(round((0.08 if R <= 3 else 0.06) * full.shape[-1]), 8)
                k = undersample(full, R, calibration, None, seed, lines=True)
                yield Scan("real", f"{patient}-{sequence}", R, k, reference, noise_known=False)


def simulated_scans(subjects: list[str], slices: int, accelerations: list[float]) -> Iterator[Scan]:
    for subject in subjects:
        for number, contrast in enumerate(CONTRASTS):
            heights = HEIGHTS_MM[:slices]
            scan = simulate_scan(subject, z_mm=heights, contrast=contrast, seed=17 + number)
            for R in accelerations:
                k = undersample(scan.samples, R, 24, scan.noise, 31 * number + int(R), lines=R < 6)
                yield Scan("simulated", f"{subject}-{contrast}", R, k, np.abs(scan.reference), noise_known=True)


def fault_scans(subjects: list[str], slices: int, cases: list[str]) -> Iterator[Scan]:
    """Yield the ``cases`` of FAULTS, with noise of the coils of 1 to 3 and correlations up to 0.45."""
    for subject in subjects:
        for name in cases:
            f = FAULTS[name]
            scan = simulate_scan(
                subject, z_mm=HEIGHTS_MM[:slices], shape=(f.n, round(f.width * f.n) // 2 * 2), pixel_mm=240 / f.n,
                coils=f.coils, contrast=f.contrast, snr=60.0, folds=f.folds, fat_shift=f.fat_shift, edge_mm=f.edge_mm,
                noise_spread=3.0, noise_correlation=1.5, seed=5,
            )  # fmt: skip
            k = undersample(scan.samples, f.R, 24, None, 7, lines=f.lines)
            yield Scan(name, subject, f.R, k, np.abs(scan.reference), noise_known=False)


def pattern_scans(subjects: list[str], slices: int, accelerations: list[float]) -> Iterator[Scan]:
    """Yield T2w scans of 8 coils with a noise pre-scan under each of PATTERNS; 16 calibration lines, or 24 x 24."""
    for subject in subjects:
        scan = simulate_scan(subject, z_mm=HEIGHTS_MM[:slices], contrast="t2w", seed=18)
        for name, (draw, lines) in PATTERNS.items():
            for R in accelerations:
                calibration = 16 if lines else 24
                k = undersample(scan.samples, R, calibration, scan.noise, 40 + int(R), lines=lines, draw=draw)
                yield Scan(name, subject, R, k, np.abs(scan.reference), noise_known=True)


def undersample(
    full: NDArray[np.complex64],
    R: float,
    calibration: int,
    noise: NDArray[np.complex64] | None,
    seed: int,
    *,
    lines: bool,
    draw: Draw | None = None,
) -> KSpace:
    """Undersample by ``draw``; None: lines of variable density, or 2D Poisson where R is too large for such lines."""
    slices, _, na, nb = full.shape
    rng = np.random.default_rng(seed)
    draw = draw or (masks.gaussian_1d if lines else masks.poisson_2d)
    mask = np.broadcast_to(draw((na, nb), R, calibration, rng), (slices, na, nb)).copy()
    b0 = nb // 2 - calibration // 2
    a0 = 0 if lines else na // 2 - calibration // 2
    block = (a0, na - a0 if lines else a0 + calibration), (b0, b0 + calibration)
    grid = Grid((slices, na, nb), np.diag([1.0, 1.0, 5.0, 1.0]))
    samples = (full * mask[:, None]).astype(np.complex64)
    return KSpace(samples, mask, (float(na), float(nb)), grid, 5.0, block, noise)
