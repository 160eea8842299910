"""Evaluation of ``slice_repair``: slices taken out of simulated scans of the test subjects and of real scans.

PSNR within the brain (``gap_scores``). Simulated: the two test subjects, any contrast, along each axis. Real: T1w, T2w
and FLAIR of two MS patients at 3 T on voxels of 1 mm (Lesjak et al. 2017), which the collection has interpolated.
``python -m benchmarks.slice_repair``: a T1w series as its scanner stored it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import nibabel
import numpy as np
import torch
from torch import Tensor

from model_zoo.bundle import Model
from model_zoo.data_kit import data_root
from model_zoo.evaluation import Evaluation, Picture, Progress, Table
from model_zoo.evaluation.gap_scores import CUBIC, OURS, Gap, fill_gap, list_gaps, score_gaps, summarise
from model_zoo.simulate import anatomy, heads, ms
from model_zoo.simulate.phantom import make_phantom
from model_zoo.simulate.volumes import Scan
from model_zoo.training.recipe import seeded
from model_zoo.training.translation_items import scan_contrasts

__all__ = ["COLUMNS", "evaluate", "make_row"]

AXES = ("axial", "coronal", "sagittal")
"""Planes of the slices along the axes (k, j, i)."""
SHAPE = (144, 176, 144)
BLUR_MM = (0.4, 0.8)
PATIENTS = ("patient07", "patient19")
COLUMNS = ("slices", "linear dB", "cubic dB", "this model dB", "gain dB", "least gain", "gaps lost", "within 2 sd")
NOTE = (
    "Mean PSNR over gaps, peak 1: the 99th percentile. Gain: over the cubic spline. Gaps lost: share where the spline "
    "or linear interpolation is better. Within 2 sd: 0.94 if right."
)

Scored = dict[tuple[str, str, int], list[Gap]]
"""Gaps by scan, plane and number of missing slices."""


def evaluate(model: Model, *, root: Path | None, quick: bool = False, progress: Progress) -> Evaluation:
    """Score gaps of one to three slices of simulated and real scans (``quick``: a phantom)."""
    scored: Scored = {}
    scans = list(_phantoms()) if quick else [*_simulate(root), *_read_real(root)]
    for n, (name, image, inside) in enumerate(scans):
        progress(n / len(scans), name)
        for axis, plane in enumerate(AXES):
            for missing in (1, 2, 3):
                found = score_gaps(model, image, inside, axis=axis, missing=missing, every=16)
                if found:
                    scored[name, plane, missing] = found
    tables = tuple(
        _table(title, kind, scored) for title, kind in (("Simulated scans", "simulated"), ("Real scans", "real"))
    )
    return Evaluation(
        tuple(table for table in tables if table.rows),
        () if quick else (_make_picture(model, scans[0]),),
        _make_metrics(scored),
        _describe_failures(scored),
        "A finding that no neighbour shows is not in a filled slice, which is smoother than a measured one. "
        "Trained on simulated heads only.",
    )


def _simulate(root: Path | None) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, image and brain of a scan of each test subject in each of two contrasts."""
    for subject in anatomy.TEST:
        head = heads.make_plain_head(subject, shape=SHAPE, root=root or data_root())
        for n, kind in enumerate(("t1w", "flair")):
            generator = seeded(61, int(subject), n)
            patient = ms.draw_patient(head, generator, count=10)
            scan = Scan((1.0, 1.0, 1.0), noise_sd=0.02, bias=0.1)
            images, _, _ = scan_contrasts(patient, {kind: kind}, generator, scan, BLUR_MM[n])
            yield f"simulated {subject} {kind}", images[kind], patient.head.structure > 0


def _phantoms() -> Iterator[tuple[str, Tensor, Tensor]]:
    head = make_phantom((40, 48, 40), 4.0)
    generator = seeded(61)
    patient = ms.draw_patient(head, generator, count=0)
    images, _, _ = scan_contrasts(patient, {"t1w": "t1w"}, generator, Scan((4.0, 4.0, 4.0)))
    yield "simulated phantom", images["t1w"], patient.head.structure > 0


def _read_real(root: Path | None) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, image and brain of the real scans, which have no skull."""
    folder = (root or data_root()) / "mri" / "ms-3t-t1-flair-mni"
    for patient in PATIENTS:
        for contrast in ("T1", "T2", "FLAIR"):
            file = nibabel.as_closest_canonical(nibabel.load(folder / patient / f"{contrast}.nii.gz"))
            values = np.asarray(file.dataobj, np.float32).transpose(2, 1, 0)
            image = torch.from_numpy(np.ascontiguousarray(values)).clamp(min=0)
            yield f"real {patient} {contrast}", image, image > 0.02 * float(np.percentile(values, 99))


def make_row(name: str, gaps: Sequence[Gap]) -> tuple[str | float, ...]:
    """Return the row of a table; ``COLUMNS``."""
    return (name, *(round(value, 2) for value in summarise(gaps)))


def _table(title: str, kind: str, scored: Scored) -> Table:
    rows = []
    for missing in (1, 2, 3):
        for plane in AXES:
            of_plane = [
                g
                for (n, p, m), each in scored.items()
                if n.startswith(kind) and (p, m) == (plane, missing)
                for g in each
            ]
            rows += [make_row(f"{missing} missing, {plane}", of_plane)] if of_plane else []
    names = dict.fromkeys(name for name, _, _ in scored if name.startswith(kind))
    for name in names:
        gaps = [g for (n, _, m), each in scored.items() if (n, m) == (name, 2) for g in each]
        rows += [make_row(f"2 missing, {name}", gaps)] if gaps else []
    return Table(title, COLUMNS, tuple(rows), NOTE)


def _make_metrics(scored: Scored) -> dict[str, float]:
    found = {}
    for kind in ("simulated", "real"):
        gaps = [g for (n, _, m), each in scored.items() if n.startswith(kind) and m == 2 for g in each]
        if gaps:
            found[f"{kind}_psnr_db"] = round(fmean(g.psnr_db[OURS] for g in gaps), 3)
            found[f"{kind}_cubic_psnr_db"] = round(fmean(g.psnr_db[CUBIC] for g in gaps), 3)
            found[f"{kind}_within_2_sd"] = round(fmean(g.within_2_sd for g in gaps), 3)
    return found


def _describe_failures(scored: Scored) -> str:
    gaps = [(name, plane, missing, gap) for (name, plane, missing), each in scored.items() for gap in each]
    lost = [gap for *_, gap in gaps if gap.is_lost]
    worst = min(gaps, key=lambda each: each[3].psnr_db[OURS] - each[3].psnr_db[CUBIC])
    gain = worst[3].psnr_db[OURS] - worst[3].psnr_db[CUBIC]
    return (
        f"Linear or cubic interpolation is better in {len(lost)} of {len(gaps)} gaps. The least gain over cubic is "
        f"{gain:+.2f} dB: {worst[0]}, "
        f"{worst[2]} {worst[1]} slice(s) from {worst[3].first + 1} on."
    )


def _make_picture(model: Model, scan: tuple[str, Tensor, Tensor]) -> Picture:
    from matplotlib.figure import Figure

    name, image, inside = scan
    scaled = image / image[inside].quantile(0.99)
    gaps = list_gaps(inside, 2, 1)
    gap = gaps[len(gaps) // 2]
    found, sd = fill_gap(model, scaled, gap)
    images = {"measured": scaled[gap[0]], **{key: x[0] for key, x in found.items()}}
    errors = {f"{key}: error x 4": 4 * (x - images["measured"]).abs() for key, x in images.items() if key != "measured"}
    figure = Figure(figsize=(12, 6))
    for n, (title, x) in enumerate([*images.items(), ("sd x 4", 4 * sd[0]), *errors.items()]):
        axes = figure.add_subplot(2, 4, n + 1)
        axes.imshow(x, cmap="gray", vmin=0, vmax=1.2)
        axes.set_title(title)
        axes.axis("off")
    return Picture("typical", f"{name}: the first of two missing slices.", figure)
