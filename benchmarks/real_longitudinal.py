"""Change between two visits of real MS patients: new lesions by subtraction of synthetic DIRs, against the raters'.

    python -m benchmarks.real_longitudinal [--patient 01 --patient 12] [--passes 2] [--picture FILE.png]

The pipeline as the node runs it with a prior, by the shipped bundles. The raters marked change in a space of their own;
the transform that comes with each visit brings it to the FLAIR. AUC: how well the voxels of change stand out from
tissue within 5 mm of it, on the difference of the DIRs and on that of the FLAIRs. The raters marked what faded, too;
the pipeline tells what is new, so that only parts that FLAIR shows brighter at the second visit are asked for. Kit:
``mri/ms-longitudinal-t1-flair`` (2D, 3 to 4 mm slices).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.real_dir import Mask, auc, count_touched, load_models, volume
from model_zoo.data_kit import data_root
from pipelines import synthetic_dir
from pipelines.contract import Case, Finding, Image, Segmentation, Volume

NEAR_MM = 5.0
FEWEST_VOXELS = 8


@dataclass(frozen=True)
class Visits:
    """Both visits of a patient and, on the second FLAIR's grid, what the raters say has changed."""

    name: str
    volumes: dict[str, Volume]
    change: Mask


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--patient", action="append", default=None)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    print(
        "| patient | change ml | brighter ml | AUC: DIR difference | FLAIR difference | parts found | parts true | s |"
    )
    print("| --- " + "| ---: " * 7 + "|")
    results = []
    for name in arguments.patient or ["01", "12"]:
        visits = read(name)
        started = time.monotonic()
        findings = run(visits, arguments.passes)
        cells = score(visits, findings)
        print(f"| {name} | " + " | ".join(cells) + f" | {time.monotonic() - started:.0f} |", flush=True)
        results.append((visits, findings))
    if arguments.picture:
        figure(results).savefig(arguments.picture, dpi=110)


def read(name: str) -> Visits:
    folder = data_root() / "mri" / "ms-longitudinal-t1-flair" / f"patient{name}"
    files = {
        "flair": "study2_FLAIR", "t1w": "study2_T1W", "prior_flair": "study1_FLAIR", "prior_t1w": "study1_T1W"
    }  # fmt: skip
    volumes = {what: volume(folder / f"{file}.nii.gz") for what, file in files.items()}
    return Visits(name, volumes, _on_flair(folder, folder / "gt.nii.gz") > 0)


def _on_flair(folder: Path, path: Path, visit: int = 2) -> NDArray[Any]:
    """Return an image of the common space at the voxels of a visit's FLAIR; the transform leads from there to the
    FLAIR.
    """
    flair = sitk.ReadImage(str(folder / f"study{visit}_FLAIR.nii.gz"), sitk.sitkFloat32)
    moved = sitk.ReadTransform(str(folder / f"study{visit}_FLAIR_to_common_space.txt")).GetInverse()
    found: NDArray[Any] = sitk.GetArrayFromImage(
        sitk.Resample(sitk.ReadImage(str(path)), flair, moved, sitk.sitkNearestNeighbor)
    )
    return found


def run(visits: Visits, passes: int) -> list[Finding]:
    """Run the pipeline on both visits."""
    options = synthetic_dir.Options(passes=passes)
    facts = {"modality": "MR", **{name: {"modality": "MR"} for name in ("t1w", "prior_flair", "prior_t1w")}}
    return synthetic_dir.run(Case(dict(visits.volumes), facts), load_models(), options, 1, lambda done, step: None)


def score(visits: Visits, findings: Sequence[Finding]) -> list[str]:
    """Return change and brighter change in ml, AUCs, and the overlap of parts found with the raters'."""
    difference, found, flair = _difference(findings), _changed(findings) > 0, _flair_difference(visits)
    grid = visits.volumes["flair"].grid
    brighter = _brighter(visits.change, flair)
    distance_mm = ndimage.distance_transform_edt(~visits.change, sampling=grid.spacing_mm)
    ring = (distance_mm > 1.5) & (distance_mm <= NEAR_MM) & (difference != 0)
    inside = brighter & (difference != 0)
    voxel_ml = float(np.prod(grid.spacing_mm)) / 1000
    cells = [f"{mask.sum() * voxel_ml:.2f}" for mask in (visits.change, brighter)]
    cells += [f"{auc(image[inside], image[ring]):.3f}" for image in (difference, flair)]
    return [*cells, count_touched(brighter, found, FEWEST_VOXELS), count_touched(found, visits.change, FEWEST_VOXELS)]


def _brighter(change: Mask, flair_difference: NDArray[np.float32]) -> Mask:
    """Return the connected parts of a change that are brighter than before."""
    parts, count = ndimage.label(change, np.ones((3, 3, 3)))
    numbers = np.arange(1, count + 1)
    rising = numbers[np.asarray(ndimage.mean(flair_difference, parts, numbers)) > 0]
    return np.isin(parts, rising)


def _flair_difference(visits: Visits) -> NDArray[np.float32]:
    """Return second less first FLAIR by the kit's own transforms, each over its median of all that is bright."""
    folder = data_root() / "mri" / "ms-longitudinal-t1-flair" / f"patient{visits.name}"
    first, second = (sitk.ReadTransform(str(folder / f"study{visit}_FLAIR_to_common_space.txt")) for visit in (1, 2))
    both = sitk.CompositeTransform([first, second.GetInverse()])
    images = [sitk.ReadImage(str(folder / f"study{visit}_FLAIR.nii.gz"), sitk.sitkFloat32) for visit in (1, 2)]
    before = sitk.GetArrayFromImage(sitk.Resample(images[0], images[1], both, sitk.sitkLinear))
    after = sitk.GetArrayFromImage(images[1])
    inside = (before > 0.3 * before.max()) & (after > 0.3 * after.max())
    found: NDArray[np.float32] = after / np.median(after[inside]) - before / np.median(before[inside])
    return found


def _difference(findings: Sequence[Finding]) -> NDArray[np.float32]:
    return next(f.volume.data for f in findings if isinstance(f, Image) and f.name == "subtraction")


def _changed(findings: Sequence[Finding]) -> NDArray[np.uint8]:
    return next(f.labels for f in findings if isinstance(f, Segmentation) and f.name == "new lesions")


def figure(results: Sequence[tuple[Visits, Sequence[Finding]]]) -> Any:
    """Draw the second FLAIR, its DIR, the difference, and the parts found (red) beside the raters' (yellow)."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(12, 3.2 * len(results)), layout="constrained")
    axes = made.subplots(len(results), 4, squeeze=False)
    for row, (visits, findings) in zip(axes, results, strict=True):
        k = int(visits.change.sum(axis=(1, 2)).argmax())
        flair = visits.volumes["flair"].data
        dir_ = next(f.volume.data for f in findings if isinstance(f, Image) and f.name == "DIR")
        top = float(np.quantile(flair[flair > 0], 0.995))
        panels = ((flair, 0, top, "gray"), (dir_, 0, 2, "gray"), *[(_difference(findings), -1, 1, "coolwarm")] * 2)
        titles = (f"second FLAIR, patient {visits.name}", "its synthetic DIR", "DIR, second less first",
                  "found (black), raters (yellow)")  # fmt: skip
        for axis, (image, low, high, colours), title in zip(row, panels, titles, strict=True):
            axis.imshow(image[k], cmap=colours, vmin=low, vmax=high)
            axis.set_title(title, fontsize=9)
            axis.axis("off")
        row[3].contour(visits.change[k], [0.5], colors="yellow", linewidths=0.8)
        row[3].contour(_changed(findings)[k] > 0, [0.5], colors="black", linewidths=0.8)
    return made


if __name__ == "__main__":
    main()
