"""PSNR of estimates in few evaluations against the 25 steps of version 0.2.0, on the cases on which they were chosen.

    python -m benchmarks.reconstruction_steps [--row "9 steps from 0.3, momentum 0.65" ...]

The last line is the rank correlation of a voxel's error with the root mean square of the errors around it, inside the
object. Simulated: label maps 09 and 16, one slice per case. Real: one slice of 0.055 T, patients 6A, 7A, R = 2 and 4.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.reconstruction_scans import real_scans, undersample
from model_zoo import registry
from model_zoo.data_kit import data_root
from model_zoo.simulate.kspace import simulate_scan
from pipelines import inversion
from pipelines.contract import KSpace
from pipelines.encoding import Problem, prepare_image

REFERENCE = "25 steps from 0.5"
ROWS = {
    REFERENCE: (25, 0.5, 0.0),
    "12 steps from 0.5": (12, 0.5, 0.0),
    "12 steps from 0.2": (12, 0.2, 0.0),
    "8 steps from 0.3": (8, 0.3, 0.0),
    "7 steps from 0.3, momentum 0.7": (7, 0.3, 0.7),
    "8 steps from 0.3, momentum 0.65": (8, 0.3, 0.65),
    "9 steps from 0.3, momentum 0.65": (9, 0.3, 0.65),
    "10 steps from 0.3, momentum 0.6": (10, 0.3, 0.6),
}
"""Steps, first sigma and momentum."""
KNOWN = (
    ("09", "t1w", 4.0, 0.0),
    ("16", "t2w", 4.0, 25.0),
    ("09", "flair", 4.0, -20.0),
    ("16", "t1w", 8.0, 0.0),
    ("09", "t2w", 8.0, 25.0),
)
"""Label map, contrast, R and height in mm: 8 coils, known noise; lines at R = 4, 2D Poisson at R = 8."""
UNKNOWN = (
    ("09", 4, 96, 7.0, "t1w"),
    ("16", 16, 96, 4.0, "t1w"),
    ("09", 8, 192, 7.0, "t2w"),
    ("16", 4, 192, 7.0, "t1w"),
)
"""Label map, coils, rows, R and contrast: unequal, correlated noise, no pre-scan."""

Case = tuple[KSpace, NDArray[np.float32]]


def simulated_cases() -> Iterator[Case]:
    for subject, contrast, R, z_mm in KNOWN:
        scan = simulate_scan(subject, z_mm=(z_mm,), shape=(192, 158), pixel_mm=240 / 192, contrast=contrast, seed=1)
        yield undersample(scan.samples, R, 24, scan.noise, 4, lines=R < 6), np.abs(scan.reference)
    for subject, coils, n, R, contrast in UNKNOWN:
        scan = simulate_scan(
            subject, shape=(n, round(0.83 * n) // 2 * 2), pixel_mm=240 / n, contrast=contrast, coils=coils, seed=5,
            snr=60.0, noise_spread=3.0, noise_correlation=1.5,
        )  # fmt: skip
        yield undersample(scan.samples, R, 24, None, 8, lines=False), np.abs(scan.reference)


def real_cases() -> Iterator[Case]:
    for scan in real_scans(data_root(), ["6A", "7A"], 3, [2.0, 4.0]):
        yield scan.kspace, scan.reference


def prepare(cases: Iterator[Case]) -> list[tuple[Problem, Tensor]]:
    """Return the problem and the reference of the last slice of each case."""
    found = [(prepare_image(k), torch.from_numpy(reference)) for k, reference in cases]
    return [(p.slices(len(p.y) - 1, len(p.y)), reference[-1:]) for p, reference in found]


def measure_psnr(problem: Problem, x: Tensor, reference: Tensor) -> float:
    error = (problem.in_units(x).abs() - reference).square().mean()
    return float(-10 * torch.log10(error / reference.max() ** 2))


def rank_by_neighbours(problem: Problem, x: Tensor, reference: Tensor) -> float:
    """Return the rank correlation of errors with those around them: Gaussian of 1 pixel without the voxel itself."""
    error = (problem.in_units(x).abs() - reference).abs()[0].numpy()
    impulse = np.zeros((21, 21))
    impulse[10, 10] = 1
    own = gaussian_filter(impulse, 1.0)[10, 10]
    around = gaussian_filter(error.astype(np.float64) ** 2, 1.0) - own * error**2
    inside = reference[0].numpy() > 0.05 * float(reference.max())
    return float(spearmanr(around[inside], error[inside]).statistic)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--row", action="append", choices=list(ROWS))
    rows = [REFERENCE, *(name for name in parser.parse_args().row or ROWS if name != REFERENCE)]
    torch.set_num_threads(1)
    model = registry.load("mri_prior", bf16=True)
    sets = [prepare(simulated_cases()), prepare(real_cases())]
    before: list[NDArray[np.float64]] = []
    print("| estimate | evaluations | simulated: mean dB (worst case) | real: mean dB (worst case) |")
    print("| --- | ---: | ---: | ---: |")
    for name in rows:
        steps, top, momentum = ROWS[name]
        options = inversion.Options(mean_steps=steps, mean_sigma_max=top, momentum=momentum)
        images = [[inversion.estimate_slices(p, model, options) for p, _ in cases] for cases in sets]
        done = [[(p, x, truth) for (p, truth), x in zip(*pair, strict=True)] for pair in zip(sets, images, strict=True)]
        found = [np.array([measure_psnr(*each) for each in cases]) for cases in done]
        before = before or found
        gains = [new - old for new, old in zip(found, before, strict=True)]
        print(
            f"| {name} | {steps} | " + " | ".join(f"{g.mean():+.2f} ({g.min():+.2f})" for g in gains) + " |", flush=True
        )
    medians = [np.median([rank_by_neighbours(*each) for each in cases]) for cases in done]
    print(f"\nMedian rank correlation with the errors around: simulated {medians[0]:.2f}, real {medians[1]:.2f}")


if __name__ == "__main__":
    main()
