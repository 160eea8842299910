"""Slices taken out of a real T1w and filled again: PSNR within the brain against linear and cubic interpolation.

    python -m benchmarks.slice_repair --bundle slice_repair

The scan is the kit's studyforrest T1w (DICOM), on voxels of 1 mm and as it was stored (0.67 mm between slices). Gaps of
two neighbouring slices, along each axis, ``--every`` slices apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.unfit_inputs import read_archive
from model_zoo import registry
from model_zoo.data_kit import data_root
from model_zoo.evaluation.gap_scores import Gap, score_gaps
from model_zoo.evaluation.slice_repair import COLUMNS, make_row
from model_zoo.structures import BRAIN
from pipelines import anatomy, resampling
from pipelines.contract import Volume

__all__ = ["find_plane", "list_scans"]

PLANES = ("sagittal", "coronal", "axial")
"""Plane of slices whose normal lies along x, y or z (LPS)."""


def list_scans(root: Path) -> Iterator[tuple[str, Volume, Tensor]]:
    """Yield name, volume and the mask of the brain (k, j, i): at 1 mm, and on the scanner's own voxels."""
    stored = read_archive(root / "mri/t1-dicom-studyforrest/dicoms.tar.xz")
    found = anatomy.segment_head(stored, registry.load("anatomy"))
    brain = torch.from_numpy(np.isin(found.image_labels, BRAIN))
    grid = resampling.axis_aligned(stored.grid, 1.0)
    on_1_mm = resampling.resample(torch.stack([torch.from_numpy(stored.data), brain.float()]), stored.grid, grid)
    yield "1 mm", Volume(on_1_mm[0].numpy(), grid), on_1_mm[1] > 0.5
    yield "as stored", stored, brain


def find_plane(volume: Volume, axis: int) -> str:
    """Return the plane of slices along an axis (k, j, i), with their distance."""
    normal = volume.grid.affine_mm[:3, 2 - axis]
    return f"{PLANES[int(np.abs(normal).argmax())]}, {np.linalg.norm(normal):.2f} mm"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="slice_repair", help="a shipped bundle, or a bundle's folder")
    parser.add_argument("--missing", type=int, default=2, help="neighbouring slices of a gap")
    parser.add_argument("--every", type=int, default=12, help="slices from one gap to the next")
    arguments = parser.parse_args()
    folder = Path(arguments.bundle)
    is_folder = (folder / "configs").is_dir()
    model = registry.load_from(registry.read_facts(folder)) if is_folder else registry.load(arguments.bundle)
    print(f"{model.name}@{model.version}: gaps of {arguments.missing}, PSNR within the brain\n")
    print(f"| {' | '.join(COLUMNS)} | gaps |\n|{' --- |' * (len(COLUMNS) + 1)}")
    for name, volume, brain in list_scans(data_root()):
        every: list[Gap] = []
        for axis in range(3):
            gaps = score_gaps(
                model, torch.from_numpy(volume.data), brain, axis=axis, missing=arguments.missing, every=arguments.every
            )
            _print_row(f"{name}, {find_plane(volume, axis)}", gaps)
            every += gaps
        _print_row(f"{name}, all", every)


def _print_row(name: str, gaps: list[Gap]) -> None:
    print("| " + " | ".join(map(str, (*make_row(name, gaps), len(gaps)))) + " |", flush=True)


if __name__ == "__main__":
    main()
