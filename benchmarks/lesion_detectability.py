"""Lesions in undersampled simulated heads: is one still there, and does one appear where none is?

    python -m benchmarks.lesion_detectability [--slice "20, 15 mm" ...]

FLAIR slices of test label maps with and without lesions: spheres of known diameter, 30 % brighter than white matter, in
white matter. 128 rows of 1.7 mm, 8 coils, noise pre-scan, 2D Gaussian sampling with 24 x 24 calibration samples. The
observer knows place and size: mean of the disc less the mean of a ring around it.

- contrast kept: the observer's difference between with and without lesions, over that of the image without noise;
- AUC: how often the observer's number at a lesion exceeds the one at such a place without a lesion;
- false spots, in the slices without lesions: places in white matter where the observer's number for 4.5 mm exceeds half
  of a lesion's, and less than a quarter in the image without noise.

Total variation has the best of its weights, tuned on the answer. Numbers are kept in a JSON file as they come.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.reconstruction_scans import undersample
from model_zoo import classical, masks, registry
from model_zoo.bundle import Model
from model_zoo.operators import magnitude
from model_zoo.physics.tissues import TISSUES
from model_zoo.simulate import anatomy
from model_zoo.simulate.kspace import compute_signal, simulate_scan
from pipelines import inversion
from pipelines.encoding import Problem, prepare_image
from pipelines.spread import measure_spread, mix_images

Array = NDArray[np.float32]

SLICES = {"13, -5 mm": ("13", -5), "13, 10 mm": ("13", 10), "20, 5 mm": ("20", 5), "20, 15 mm": ("20", 15)}
"""Label map, and height above its middle in mm."""
SIZES_MM = (3.0, 4.5, 6.0)
MIDDLE_MM = SIZES_MM[1]
EACH = 7
"""Largest number of lesions of each size in a slice."""
CONTRAST = 0.3
ACCELERATIONS = (2.0, 4.0, 6.0, 8.0)
SHAPE, PIXEL_MM = (128, 108), 1.7
SNR = 25.0
"""White matter over the sd of a component of the noise in the complete, combined image."""
LOUDER = 1000.0
"""The simulated noise is this factor quieter, so that each slice can be given noise of its own."""
THICKNESS_MM = 4.0
RING_MM = (1.0, 3.5)
"""Inner and outer radius of the ring less the radius of the lesion."""
EDGE_MM = 1.0
"""Least distance of lesion and ring from the edge of the white matter."""
APART_MM = 9.0
WEIGHTS = (0.002, 0.004, 0.008, 0.016)
MIDDLE = 128
"""Voxel of a label map at the centre of the field of view, in each axis."""
WHITE, LESION = (list(TISSUES).index(name) for name in ("white matter", "lesion"))


@dataclass(frozen=True)
class Place:
    """A lesion in the plane: row and column of the label map, in mm, and its diameter."""

    row_mm: int
    column_mm: int
    size_mm: float


@dataclass(frozen=True)
class Pair:
    """Complete k-space and noise-free magnitude of one slice, without and with lesions at ``places``."""

    samples: tuple[NDArray[np.complex64], NDArray[np.complex64]]
    noise: NDArray[np.complex64]
    references: tuple[Array, Array]
    places: list[Place]
    depth_mm: Array


def make_pair(subject: str, z_mm: int) -> Pair:
    """Simulate the slice twice, with the same object and coils and with different noise."""
    tissue = anatomy.read_tissue_map(subject).clone()
    tissue[tissue == LESION] = WHITE
    half = int(THICKNESS_MM // 2)
    slab = tissue[MIDDLE + z_mm - half : MIDDLE + z_mm + half + 1] == WHITE
    depth = ndimage.distance_transform_edt(slab.all(dim=0).numpy()).astype(np.float32)
    places = choose_places(depth, np.random.default_rng(100 + z_mm))
    signal = compute_signal("flair")
    signal[LESION] = (1 + CONTRAST) * signal[WHITE]
    quiet = [
        simulate_scan(
            subject, z_mm=(float(z_mm),), shape=SHAPE, pixel_mm=PIXEL_MM, thickness_mm=THICKNESS_MM, seed=100 + z_mm,
            snr=SNR * LOUDER, tissue=painted, signal=signal,
        )
        for painted in (tissue, paint(tissue, places, z_mm))
    ]  # fmt: skip
    rng = np.random.default_rng(1000 + z_mm)
    samples = [add_noise(scan.samples, LOUDER**2 * scan.covariance, rng) for scan in quiet]
    references = [np.abs(scan.reference[0]) for scan in quiet]
    return Pair((samples[0], samples[1]), LOUDER * quiet[0].noise, (references[0], references[1]), places, depth)


def add_noise(
    samples: NDArray[np.complex64], covariance: NDArray[np.complex64], rng: np.random.Generator
) -> NDArray[np.complex64]:
    """Add complex noise of ``covariance`` (coil, coil) to samples (slice, coil, a, b)."""
    white = (rng.standard_normal(samples.shape) + 1j * rng.standard_normal(samples.shape)) / np.sqrt(2)
    noise = np.einsum("cd,sdab->scab", np.linalg.cholesky(covariance), white)
    noisy: NDArray[np.complex64] = (samples + noise).astype(np.complex64)
    return noisy


def choose_places(depth_mm: Array, rng: np.random.Generator) -> list[Place]:
    """Draw up to EACH places of each size, the largest first, with the whole lesion in white matter."""
    places: list[Place] = []
    for size in sorted(SIZES_MM, reverse=True):
        candidates = np.argwhere(depth_mm >= size / 2 + EDGE_MM)
        for row, column in rng.permutation(candidates):
            is_free = all(np.hypot(row - p.row_mm, column - p.column_mm) >= APART_MM for p in places)
            if is_free and sum(p.size_mm == size for p in places) < EACH:
                places.append(Place(int(row), int(column), size))
    return places


def paint(tissue: torch.Tensor, places: list[Place], z_mm: int) -> torch.Tensor:
    """Return the tissue map with a sphere at each place."""
    painted = tissue.clone()
    reach = torch.arange(-4, 5)
    z, y, x = torch.meshgrid(reach, reach, reach, indexing="ij")
    for p in places:
        ball = (z**2 + y**2 + x**2) <= (p.size_mm / 2) ** 2
        box = tuple(slice(at - 4, at + 5) for at in (MIDDLE + z_mm, p.row_mm, p.column_mm))
        painted[box][ball] = LESION
    return painted


def observe(image: Array, places: list[Place], depth_mm: Array) -> list[float]:
    """Return the mean of the disc less that of the white matter in the ring at each place."""
    rows, columns = (MIDDLE + (np.arange(n) - n // 2) * PIXEL_MM for n in SHAPE)
    is_white = depth_mm[np.ix_(*(np.round(at).astype(int).clip(0, 255) for at in (rows, columns)))] >= EDGE_MM
    found = []
    for p in places:
        r = np.hypot(rows[:, None] - p.row_mm, columns[None, :] - p.column_mm)
        disc = r <= max(p.size_mm / 2, float(r.min()))
        ring = (r > p.size_mm / 2 + RING_MM[0]) & (r <= p.size_mm / 2 + RING_MM[1]) & is_white
        found.append(float(image[disc].mean() - image[ring].mean()))
    return found


def count_false_spots(image: Array, pair: Pair) -> int:
    """Count the places that look like a lesion of the middle size and are none; ``image`` is one without lesions."""
    rows, columns = np.nonzero(pair.depth_mm >= MIDDLE_MM / 2 + EDGE_MM)
    near = [Place(int(r), int(c), MIDDLE_MM) for r, c in zip(rows[::3], columns[::3], strict=True)]
    lesions = [p for p in pair.places if p.size_mm == MIDDLE_MM]
    typical = float(np.median(observe(pair.references[1], lesions, pair.depth_mm)))
    is_false = (np.array(observe(image, near, pair.depth_mm)) > 0.5 * typical) & (
        np.array(observe(pair.references[0], near, pair.depth_mm)) < 0.25 * typical
    )
    spots = np.zeros(pair.depth_mm.shape, np.bool_)
    for p in (p for p, wrong in zip(near, is_false, strict=True) if wrong):
        spots[p.row_mm, p.column_mm] = True
    return int(ndimage.label(ndimage.binary_dilation(spots, iterations=2))[1])


def in_units(p: Problem, x: torch.Tensor) -> Array:
    image: Array = magnitude(p.in_units(x))[0].numpy()
    return image


def psnr(x: Array, truth: Array) -> float:
    return float(-10 * np.log10(np.mean((x - truth) ** 2) / truth.max() ** 2))


def reconstruct(p: Problem, truth: Array, model: Model) -> dict[str, Array]:
    """Return the image of each method."""
    options = inversion.Options()
    smooth = [in_units(p, classical.total_variation(p.A, p.y, w)) for w in WEIGHTS]
    estimate = inversion.estimate_slices(p, model, options)
    samples = [inversion.draw_samples(p, model, options, [n + 1], estimate) for n in range(options.samples)]
    share = measure_spread(p, model, model, options, 1).share
    return {
        "zero-filled": in_units(p, classical.zero_filled(p.A, p.y)),
        "total variation": max(smooth, key=lambda x: psnr(x, truth)),
        "estimate alone": in_units(p, estimate),
        "one sample": in_units(p, samples[0]),
        "delivered": in_units(p, mix_images(estimate, torch.stack(samples).mean(dim=0), share)),
    }


def measure(pair: Pair, R: float, model: Model) -> dict[str, Any]:
    """Return the observer's numbers by method: without and with lesions, false spots and PSNR."""
    problems = [
        prepare_image(undersample(y, R, 24, pair.noise, 4, lines=False, draw=masks.gaussian_2d)) for y in pair.samples
    ]
    without, with_lesions = (reconstruct(p, truth, model) for p, truth in zip(problems, pair.references, strict=True))
    return {
        name: {
            "without": observe(without[name], pair.places, pair.depth_mm),
            "with": observe(with_lesions[name], pair.places, pair.depth_mm),
            "false": count_false_spots(without[name], pair),
            "psnr": psnr(with_lesions[name], pair.references[1]),
        }
        for name in without
    }


def fill(store: Path, names: list[str], model: Model) -> dict[str, Any]:
    """Measure the slices that the store lacks, and return all that it holds."""
    done: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {}
    for name in names:
        if name in done:
            continue
        pair = make_pair(*SLICES[name])
        truth = [observe(x, pair.places, pair.depth_mm) for x in pair.references]
        measured = {f"{R:g}": measure(pair, R, model) for R in ACCELERATIONS}
        done[name] = {"sizes": [p.size_mm for p in pair.places], "truth": truth, "measured": measured}
        store.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps(done))
    return done


def auc(without: NDArray[np.float64], present: NDArray[np.float64]) -> float:
    """Return the share of pairs in which the number at a lesion is the larger one; ties count half."""
    difference = present[:, None] - without[None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def rows(done: dict[str, Any]) -> Iterator[str]:
    """Yield the table, over all slices together."""
    sizes = np.concatenate([each["sizes"] for each in done.values()])
    truth = np.concatenate([np.subtract(each["truth"][1], each["truth"][0]) for each in done.values()])
    counts = ", ".join(str(int((sizes == s).sum())) for s in SIZES_MM)
    yield f"{counts} lesions of {', '.join(f'{s:g}' for s in SIZES_MM)} mm in {len(done)} slices\n"
    yield "| R | image | PSNR dB | contrast kept, % | AUC | false spots |\n| ---: | --- | ---: | --- | --- | ---: |"
    for R in (f"{R:g}" for R in ACCELERATIONS):
        for name in next(iter(done.values()))["measured"][R]:
            found = [each["measured"][R][name] for each in done.values()]
            without, present = (np.concatenate([f[key] for f in found]) for key in ("without", "with"))
            kept = [100 * (present - without)[sizes == s].sum() / truth[sizes == s].sum() for s in SIZES_MM]
            areas = [auc(without[sizes == s], present[sizes == s]) for s in SIZES_MM]
            yield (
                f"| {R} | {name} | {np.mean([f['psnr'] for f in found]):.1f} | "
                f"{', '.join(f'{v:.0f}' for v in kept)} | {', '.join(f'{v:.2f}' for v in areas)} | "
                f"{sum(f['false'] for f in found)} |"
            )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slice", action="append", choices=list(SLICES))
    parser.add_argument("--store", type=Path, default=Path("build/benchmarks/lesion_detectability.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done = fill(arguments.store, arguments.slice or list(SLICES), registry.load("mri_prior", bf16=True))
    print("\n".join(rows(done)))


if __name__ == "__main__":
    main()
