"""Coils without maps against zero-filling, total variation and maps, by simulation on test label maps.

    python -m benchmarks.calibration_free [--case "13, t2w, R4" ...]

One slice of 128 rows of 1.875 mm, 8 coils, noise pre-scan, 2D Gaussian sampling. Without maps the complete centre has
4 x 4 samples, in which the node finds no calibration block; with maps it has 24 x 24, at the same number of samples.
Total variation has the best of its weights, tuned on the answer. Reference: the object without coils and noise.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.reconstruction_scans import undersample
from dicomnode.mrd.calibration import find_calibration_block
from model_zoo import classical, masks, registry
from model_zoo.bundle import Model
from model_zoo.operators import centred_ifft
from model_zoo.simulate.kspace import SimulatedScan, simulate_scan
from pipelines.contract import Case, Image, KSpace, Measurement, ParametricMap
from pipelines.inversion import Options
from pipelines.mri_reconstruction import run
from pipelines.separate_coils import prepare_separate_coils

CASES = {
    "13, t2w, R4": ("13", "t2w", 4.0, 0.0),
    "20, t1w, R4": ("20", "t1w", 4.0, 25.0),
    "13, flair, R6": ("13", "flair", 6.0, 25.0),
}
"""Label map, contrast, R and height in mm."""
WEIGHTS = (0.016, 0.032, 0.064, 0.128)
HEADER = (
    "| case | zero-filled | total variation | without maps | with maps | "
    "sd/error | < 2 sd, % | evaluations | processor s |"
)


@dataclass(frozen=True)
class Result:
    """Delivered image and standard deviation (j, i), evaluations of the denoiser and processor seconds."""

    image: NDArray[np.float32]
    sd: NDArray[np.float32]
    evaluations: float
    seconds: float


def acquire(scan: SimulatedScan, R: float, centre: int) -> KSpace:
    """Undersample; the calibration block is the one that the node finds."""
    k = undersample(scan.samples, R, centre, scan.noise, 4, lines=False, draw=masks.gaussian_2d)
    return replace(k, calibration=find_calibration_block(k.samples, k.mask))


def reconstruct(k: KSpace, model: Model, options: Options) -> Result:
    """Reconstruct by the pipeline, as the node does."""
    began = time.process_time()
    found = run(Case({"kspace": k}), model, options, 1, lambda done, step: None)
    (image,) = (f.volume.data[0] for f in found if isinstance(f, Image))
    (sd,) = (f.volume.data[0] for f in found if isinstance(f, ParametricMap))
    (calls,) = (f.value for f in found if isinstance(f, Measurement) and f.name == "denoiser evaluations")
    return Result(image, sd, calls, time.process_time() - began)


def reconstruct_by_total_variation(k: KSpace, weight: float) -> NDArray[np.float32]:
    p = prepare_separate_coils(k)
    x = p.in_units(classical.total_variation(p.A, p.y, weight))
    image: NDArray[np.float32] = x.abs().square().sum(dim=0).sqrt().numpy()
    return image


def psnr(x: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    return float(-10 * np.log10(np.mean((x - truth) ** 2) / truth.max() ** 2))


def measure(name: str, model: Model) -> str:
    """Return the row of one case."""
    subject, contrast, R, z_mm = CASES[name]
    scan = simulate_scan(subject, z_mm=(z_mm,), shape=(128, 106), pixel_mm=240 / 128, contrast=contrast, seed=1)
    truth = np.abs(scan.reference[0])
    k, calibrated = acquire(scan, R, 4), acquire(scan, R, 24)
    zero_filled = centred_ifft(torch.from_numpy(k.samples[0])).abs().square().sum(dim=0).sqrt().numpy()
    tuned = max(psnr(reconstruct_by_total_variation(k, w), truth) for w in WEIGHTS)
    ours = reconstruct(k, model, Options(coils="auto"))
    maps = reconstruct(calibrated, model, Options())
    inside = truth > 0.05 * truth.max()
    error = np.abs(ours.image - truth)[inside]
    ratio = np.sqrt((ours.sd[inside] ** 2).mean() / (error**2).mean())
    return (
        f"| {name} | {psnr(zero_filled, truth):.2f} | {tuned:.2f} | {psnr(ours.image, truth):.2f} | "
        f"{psnr(maps.image, truth):.2f} | {ratio:.2f} | {100 * (error < 2 * ours.sd[inside]).mean():.0f} | "
        f"{ours.evaluations:.0f}, {maps.evaluations:.0f} | {ours.seconds:.0f}, {maps.seconds:.0f} |"
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", action="append", choices=list(CASES))
    torch.set_num_threads(1)
    model = registry.load("mri_prior")
    print(HEADER + "\n" + "| --- " * HEADER.count("|", 1) + "|")
    for name in parser.parse_args().case or CASES:
        print(measure(name, model), flush=True)


if __name__ == "__main__":
    main()
