"""The numbers and pictures of docs/pet-simulation.md: OSEM replicates against the surrogate, recovery, times.

    python -m benchmarks.pet_physics [--out docs]

Needs no data kit: the object is the procedural torso. About a minute on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from model_zoo.imaging import blur
from model_zoo.simulate.pet.counts import Scan, draw_counts, thin_counts
from model_zoo.simulate.pet.low_dose import Reconstruction, ScannedObject, make_torso, simulate_scan
from model_zoo.simulate.pet.projector import make_projector
from model_zoo.simulate.pet.surrogate import POWER, draw_low_dose
from model_zoo.simulate.pet.torso import ORGANS, draw_torso
from model_zoo.training.recipe import seeded

REPLICATES = 16
COUNTS = 5e7
DOSES = (1.0, 0.25, 0.1, 0.02)
RECONSTRUCT = Reconstruction(iterations=3, subsets=8, post_fwhm_mm=5.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    out: Path = parser.parse_args().out
    body = draw_torso(seeded(11), shape=(96, 160, 216), spacing_mm=2.0, middle_mm=(0, 0, 310), lesions=6)
    found = make_torso(body, 2)
    scan = simulate_scan(found, COUNTS, seeded(12), psf_fwhm_mm=4.5)
    _times(found, scan)
    _recovery(found, scan, body.organ[1::2, 1::2, 1::2])
    for dose in (1.0, 0.1, 0.02):
        _noise(found, scan, dose)
    _pictures(found, scan, out)


def _times(found: ScannedObject, scan: Scan) -> None:
    y = draw_counts(scan.expected, seeded(1))
    RECONSTRUCT(y, scan)
    P = make_projector(scan.geometry)
    x = found.activity[::2, ::2, ::2].contiguous()
    timed: dict[str, Callable[[], Tensor]] = {
        "P x": lambda: P(x),
        "P^T y": lambda: P.T(y),
        "OSEM": lambda: RECONSTRUCT(y, scan),
    }
    for name, work in timed.items():
        work()
        began = time.perf_counter()
        work()
        print(f"time of {name}: {time.perf_counter() - began:.3f} s, image {tuple(x.shape)}, sinogram {tuple(y.shape)}")


def _recovery(found: ScannedObject, scan: Scan, organ: Tensor) -> None:
    """Print converged OSEM over the true activity, both at the same resolution, in the middle of large organs."""
    x = Reconstruction(iterations=16, subsets=8, post_fwhm_mm=5.0)(draw_counts(scan.expected, seeded(2)), scan)
    truth = functional.avg_pool3d(found.activity[None], 2)[0]
    spacing = (found.spacing_mm,) * 3
    truth = blur(blur(truth, scan.psf_fwhm_mm, spacing), 5.0, spacing, normalised=True)
    for name in ("liver", "lungs", "muscle"):
        mask = (organ == ORGANS.index(name)).float()[None, None]
        inner = -functional.max_pool3d(-mask, 5, stride=1, padding=2)[0, 0] > 0
        inner[:4], inner[-4:] = False, False
        inner &= found.lesion == 0
        print(
            f"recovery in {name}: {float(x[inner].mean() / truth[inner].mean()):.4f} of the truth, "
            f"{int(inner.sum())} voxels"
        )


def _replicates(scan: Scan, dose: float) -> Tensor:
    at = scan.at_dose(dose)
    return torch.stack([RECONSTRUCT(draw_counts(at.expected, seeded(3, n)), at) for n in range(REPLICATES)])[:, 4:-4]


def _noise(found: ScannedObject, scan: Scan, dose: float) -> None:
    """Return the variance law, correlation and skewness of OSEM replicates, and of the surrogate with the constants
    found.
    """
    replicates = _replicates(scan, dose)
    x = RECONSTRUCT(scan.expected, scan)
    inside = (functional.avg_pool3d(found.mu_per_cm[None], 2)[0] > 0.02)[4:-4] & (x[4:-4] > 0.1)
    k, power = _law(replicates, x[4:-4], inside)
    print(f"dose {dose:g}: variance = {k:.5f} x^{power:.2f} (SUV)")
    surrogates = torch.stack(
        [
            draw_low_dose(x, dose, k * dose, seeded(4, n), fwhm_mm=6.0, spacing_mm=found.spacing_mm)
            for n in range(REPLICATES)
        ]
    )[:, 4:-4]
    for name, images in (("OSEM", replicates), ("surrogate", surrogates)):
        sd = images.std(dim=0)
        bins = [(0.2, 0.6), (0.6, 1.5), (1.5, 3.0), (3.0, 10.0)]
        cells = [float((sd / x[4:-4])[inside & (x[4:-4] > a) & (x[4:-4] <= b)].mean()) for a, b in bins]
        e = (images - images.mean(dim=0)) / sd * inside
        neighbours = [
            float((e.narrow(a, 1, e.shape[a] - 1) * e.narrow(a, 0, e.shape[a] - 1)).sum() / e.square().sum())
            for a in (1, 2, 3)
        ]
        skew = float((((images - images.mean(dim=0)) / sd) ** 3).mean(dim=0)[inside].mean())
        print(
            f"  {name}: sd/x at SUV .2-.6/.6-1.5/1.5-3/3-10 = {'/'.join(f'{c:.3f}' for c in cells)}; "
            f"neighbours k/j/i {'/'.join(f'{n:.2f}' for n in neighbours)}; skewness {skew:.2f}"
        )


def _law(replicates: Tensor, x: Tensor, inside: Tensor) -> tuple[float, float]:
    """Return ``(k, p)`` of variance = k x^p by least squares of logarithms; k for the surrogate's own p."""
    variance, mean = replicates.var(dim=0)[inside].log().double(), x[inside].log().double()
    design = torch.stack([torch.ones_like(mean), mean], dim=1)
    power = float(torch.linalg.lstsq(design, variance[:, None]).solution[1, 0])
    return float((variance - POWER * mean).mean().exp()), power


def _pictures(found: ScannedObject, scan: Scan, out: Path) -> None:
    from matplotlib.figure import Figure

    y = draw_counts(scan.expected, seeded(5))
    x = RECONSTRUCT(scan.expected, scan)
    inside = x[4:-4] > 0.1
    k, _ = _law(_replicates(scan, 0.1), x[4:-4], inside)
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(3, len(DOSES))
    middle = len(x) // 2
    _show(axes[0, 0], functional.avg_pool3d(found.activity[None], 2)[0][:, x.shape[1] // 2].flip(0), "activity", 6)
    _show(axes[0, 1], found.mu_per_cm[::2, x.shape[1], ::2].flip(0), "attenuation", 0.15)
    _show(axes[0, 2], y[:, :, middle], "prompts, one slice", float(y[:, :, middle].quantile(0.99)))
    _show(axes[0, 3], scan.background[:, :, middle], "scatter + randoms", float(y[:, :, middle].quantile(0.99)))
    for column, dose in enumerate(DOSES):
        low = y if dose == 1 else thin_counts(y, dose, seeded(6, column))[0]
        _show(
            axes[1, column], RECONSTRUCT(low, scan.at_dose(dose))[:, x.shape[1] // 2].flip(0), f"OSEM, dose {dose:g}", 6
        )
        image = draw_low_dose(x, dose, 0.1 * k, seeded(7, column), fwhm_mm=6.0, spacing_mm=found.spacing_mm)
        _show(axes[2, column], image[:, x.shape[1] // 2].flip(0), f"surrogate, dose {dose:g}", 6)
    figure.savefig(out / "pet-simulation.png", dpi=80)


def _show(axis: Any, image: Tensor, title: str, top: float) -> None:
    axis.imshow(
        image.numpy(), cmap="gray_r", vmin=0, vmax=top, aspect="auto" if "slice" in title or "+" in title else 1
    )
    axis.set_title(title, fontsize=9)
    axis.axis("off")


if __name__ == "__main__":
    main()
