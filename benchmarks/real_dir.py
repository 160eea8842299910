"""Synthetic DIR of real MS patients with consensus lesion masks: lesions against what surrounds them, beside FLAIR.

    python -m benchmarks.real_dir [--patient 07 --patient 19] [--passes 2] [--picture FILE.png]

The pipeline as the node runs it (registration, anatomy, passes, lesions) with the shipped bundles. AUC: how well the
voxels of the consensus mask stand out from tissue within 5 mm of it, all tissue and white matter alone (cortex is
bright on DIR by design). A second table compares the lesions with plain rules on FLAIR
(``model_zoo.evaluation.lesion_baselines``). Kit: ``mri/ms-3t-t1-flair-mni``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats

from model_zoo import registry
from model_zoo.bundle import Model
from model_zoo.data_kit import data_root
from model_zoo.evaluation import lesion_baselines
from model_zoo.structures import number
from model_zoo.synthetic_dir import prepare
from pipelines import anatomy, synthetic_dir
from pipelines.contract import Case, Finding, Grid, Image, Segmentation, Volume

Mask = NDArray[np.bool_]
NEAR_MM = 5


@dataclass(frozen=True)
class Patient:
    """FLAIR, T1w and the consensus of the raters, on one grid of 1 mm."""

    name: str
    flair: Volume
    t1w: Volume
    lesions: Mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--patient", action="append", default=None)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    print("| patient | lesions ml | AUC all: DIR | FLAIR | AUC white: DIR | FLAIR | recall | precision | Dice | s |")
    print("| --- " + "| ---: " * 9 + "|")
    results = []
    for name in arguments.patient or ["07", "19"]:
        patient = read_patient(name)
        started = time.monotonic()
        findings = run(patient, arguments.passes)
        cells = score(patient, findings)
        print(f"| {name} | " + " | ".join(cells) + f" | {time.monotonic() - started:.0f} |", flush=True)
        results.append((patient, findings))
    print("\n| patient | lesions by | recall | precision | Dice |\n| --- | --- | ---: | ---: | ---: |")
    for patient, findings in results:
        for method, found in segment(patient, findings).items():
            print(f"| {patient.name} | {method} | {' | '.join(overlap(patient.lesions, found))} |", flush=True)
    if arguments.picture:
        figure(results).savefig(arguments.picture, dpi=110)


def read_patient(name: str) -> Patient:
    """Read a patient of the kit."""
    folder = data_root() / "mri" / "ms-3t-t1-flair-mni" / f"patient{name}"
    flair, t1w, lesions = (volume(folder / f"{image}.nii.gz") for image in ("FLAIR", "T1", "lesions"))
    return Patient(name, flair, t1w, lesions.data > 0.5)


def volume(path: Path) -> Volume:
    """Read a NIfTI file, LPS."""
    image: Any = nibabel.load(path)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine  # NIfTI is RAS
    data = np.ascontiguousarray(np.asarray(image.dataobj, np.float32).transpose(2, 1, 0))
    k, j, i = data.shape
    return Volume(data, Grid((k, j, i), affine))


def run(patient: Patient, passes: int) -> list[Finding]:
    """Run the pipeline on the patient."""
    case = Case({"flair": patient.flair, "t1w": patient.t1w}, {"modality": "MR"})
    return synthetic_dir.run(case, load_models(), synthetic_dir.Options(passes=passes), 1, lambda done, step: None)


def load_models() -> Model:
    """Load the shipped bundle with its helpers."""
    model = registry.load("synthetic_dir")
    return replace(model, helpers={name: registry.load(name) for name in synthetic_dir.PIPELINE.helpers})


def score(patient: Patient, findings: Sequence[Finding]) -> list[str]:
    """Return load in ml, AUCs, and the overlap of lesions found with the raters' (components of at least 15 voxels)."""
    dir_, found = _dir(findings), _lesions(findings) > 0
    model = registry.load("anatomy")
    white = anatomy.segment_head(patient.t1w, model).image_labels == number("cerebral white matter")
    lesions = patient.lesions
    ring = ndimage.binary_dilation(lesions, iterations=NEAR_MM) & ~ndimage.binary_dilation(lesions)
    ring &= dir_ > 0
    cells = [f"{lesions.sum() / 1000:.1f}"]
    for about in (ring, ring & white):
        cells += [f"{auc(image[lesions], image[about]):.3f}" for image in (dir_, patient.flair.data)]
    return [*cells, *overlap(lesions, found)]


def segment(patient: Patient, findings: Sequence[Finding]) -> dict[str, Mask]:
    """Return the lesions by the pipeline and by plain rules on FLAIR, which get the structures of the T1w."""
    structure = anatomy.segment_head(patient.t1w, registry.load("anatomy")).image_labels
    flair = prepare(torch.from_numpy(patient.flair.data), torch.from_numpy(structure)).numpy()
    return {
        "pipeline": _lesions(findings) > 0,
        "seeds grown to the half level": lesion_baselines.segment_by_seeds(flair, structure),
        "FLAIR above a threshold": lesion_baselines.segment_by_threshold(flair, structure),
    }


def overlap(lesions: Mask, found: Mask) -> list[str]:
    """Return recall, precision and Dice."""
    dice = 2 * float((lesions & found).sum()) / max(float(lesions.sum() + found.sum()), 1)
    return [count_touched(lesions, found), count_touched(found, lesions), f"{dice:.2f}"]


def _dir(findings: Sequence[Finding]) -> NDArray[np.float32]:
    return next(f.volume.data for f in findings if isinstance(f, Image) and f.name == "DIR")


def _lesions(findings: Sequence[Finding]) -> NDArray[np.uint8]:
    return next(f.labels for f in findings if isinstance(f, Segmentation))


def auc(above: NDArray[np.float32], below: NDArray[np.float32]) -> float:
    """Return the probability that a value of ``above`` exceeds one of ``below`` (Mann-Whitney)."""
    u = stats.mannwhitneyu(above, below).statistic
    return float(u / (above.size * below.size))


def count_touched(parts: Mask, by: Mask, fewest: int = 15) -> str:
    """Return how many connected parts of at least ``fewest`` voxels the other mask touches, and their number."""
    labels, count = ndimage.label(parts, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    large = [n for n in range(1, count + 1) if sizes[n] >= fewest]
    hit = set(np.unique(labels[by])) & set(large)
    return f"{len(hit)}/{len(large)}"


def figure(results: Sequence[tuple[Patient, Sequence[Finding]]]) -> Any:
    """Draw FLAIR, T1w, DIR and the lesions (found filled, consensus outlined) in the slice with most lesion."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(12, 4 * len(results)), layout="constrained")
    axes = made.subplots(len(results), 4, squeeze=False)
    for row, (patient, findings) in zip(axes, results, strict=True):
        k = int(patient.lesions.sum(axis=(1, 2)).argmax())
        dir_, found = _dir(findings), _lesions(findings) > 0
        top = [float(np.quantile(x[x > 0], 0.995)) for x in (patient.flair.data, patient.t1w.data)]
        pictures = ((patient.flair.data, top[0]), (patient.t1w.data, top[1]), (dir_, 2.0), (dir_, 2.0))
        titles = (f"FLAIR, patient {patient.name}", "T1w", "synthetic DIR", "found (red), consensus (yellow)")
        for axis, (image, white), title in zip(row, pictures, titles, strict=True):
            axis.imshow(image[k], cmap="gray", vmin=0, vmax=white, origin=_origin(patient))
            axis.set_title(title, fontsize=9)
            axis.axis("off")
        row[3].contour(patient.lesions[k], [0.5], colors="yellow", linewidths=0.8)
        row[3].contour(found[k], [0.5], colors="red", linewidths=0.8)
    return made


def _origin(patient: Patient) -> Any:
    """Return the origin that puts anterior up: rows of an LPS image run to posterior, these volumes' may run to
    anterior.
    """
    return "upper" if patient.flair.grid.affine_mm[1, 1] > 0 else "lower"


if __name__ == "__main__":
    main()
