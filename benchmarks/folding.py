"""Heads larger than the field of view: one set of coil maps against two, by simulation on validation label maps.

    python -m benchmarks.folding

192 rows of 1.25 mm; a field of view of ``columns`` pixels across the head, which is 140 to 160 mm wide; noise levels of
the coils of 1 to 3, no pre-scan; 2D Poisson R = 5, calibration 24 x 24. The reference is the root sum of squares of the
complete coil images without noise. Prints the PSNR of the estimate and the 99th percentile of the share of the coils'
local energy that the maps do not explain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.reconstruction_scans import undersample
from model_zoo import coils, registry
from model_zoo.bundle import Model
from model_zoo.operators import Fourier, magnitude
from model_zoo.simulate.kspace import simulate_scan
from pipelines import coil_maps, inversion
from pipelines.contract import KSpace, Refused
from pipelines.encoding import Problem, prepare_image

PIXEL_MM = 1.25


@dataclass(frozen=True)
class Subject:
    """A head at one height, with its coils, contrast and SNR."""

    name: str
    coils: int
    contrast: str
    snr: float
    z_mm: float


SUBJECTS = (
    Subject("16", 8, "t1w", 60.0, 0.0),
    Subject("09", 16, "t2w", 30.0, 25.0),
    Subject("16", 4, "t2w", 30.0, 30.0),
)
WIDTHS = ((160, 1), (128, 2), (96, 2), (64, 2), (48, 3))
"""Columns of the field of view, and how many fields of view are simulated."""
HEADER = "| case | folded share | one set, dB | two sets, dB | unexplained, one set | unexplained, two sets |"


def acquire(subject: Subject, columns: int, folds: int) -> tuple[KSpace, NDArray[np.float32]]:
    scan = simulate_scan(
        subject.name, z_mm=(subject.z_mm,), shape=(192, columns), pixel_mm=PIXEL_MM, coils=subject.coils,
        snr=subject.snr, contrast=subject.contrast, folds=folds, noise_spread=3.0, noise_correlation=1.5, seed=5,
    )  # fmt: skip
    return undersample(scan.samples, 5.0, 24, None, 7, lines=False), np.abs(scan.reference)


def take_first_set(problem: Problem) -> Problem:
    """Return the problem with the first set of maps alone."""
    gain = problem.gain[:, 0].abs().pow(2).sum(dim=1).sqrt()
    return replace(problem, A=Fourier(problem.A.maps[:, 0], problem.A.mask), gain=gain)


def score(problem: Problem, k: KSpace, truth: NDArray[np.float32], model: Model) -> tuple[float, float]:
    """Return the PSNR of the estimate in dB, and the share of energy that the maps do not explain."""
    x = magnitude(problem.in_units(inversion.estimate_slices(problem, model, inversion.Options()))).numpy()
    shape, block = (k.mask.shape[1], k.mask.shape[2]), coil_maps.find_block(k)
    images = coils.make_low_pass_images(coil_maps.crop_to_calibration(k, problem.y), shape, block)
    variance = coils.low_pass_variance(shape, block) * float(problem.sigma_y) ** 2
    unexplained = float(coils.measure_unexplained(problem.A.maps, images, variance))
    return float(-10 * np.log10(np.mean((x - truth) ** 2) / truth.max() ** 2)), unexplained


def rows(model: Model) -> Iterator[str]:
    for subject in SUBJECTS:
        for columns, folds in WIDTHS:
            case = f"{subject.coils} coils, {subject.contrast}, {columns * PIXEL_MM:g} mm"
            yield f"| {case} | {compare_sets(*acquire(subject, columns, folds), model)} |"


def compare_sets(k: KSpace, truth: NDArray[np.float32], model: Model) -> str:
    """Return the cells of one case."""
    try:
        two = prepare_image(k)
    except Refused:
        return "refused |  |  |  | "
    one = take_first_set(two) if two.A.sets > 1 else two
    (psnr, share), (psnr_two, share_two) = (score(each, k, truth, model) for each in (one, two))
    return f"{two.folded_share:.3f} | {psnr:.1f} | {psnr_two:.1f} | {share:.3f} | {share_two:.3f}"


def main() -> None:
    torch.set_num_threads(1)
    print(HEADER + "\n" + "| --- " * 6 + "|")
    with torch.no_grad():
        for row in rows(registry.load("mri_prior")):
            print(row, flush=True)


if __name__ == "__main__":
    main()
