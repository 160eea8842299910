"""The comparison of two results of one study: their images, their numbers and their durations.

Objects are matched by kind, the first with the first and so on, as both come from one pipeline. Images: the largest
difference and the peak signal-to-noise ratio of the second against the first, in the units of the image. Segmentations:
the overlap of all segments, 2 |A and B| / (|A| + |B|) (Dice 1945), voxel by voxel. Numbers: those of the two reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from dicomnode.config import Config
from dicomnode.datasets import objects
from dicomnode.reading import lookup
from dicomnode.storage import spool

if TYPE_CHECKING:
    from db.models import Job, Output
    from dicomnode.execution.processing import Task, TaskResult

__all__ = [
    "FinishedJob",
    "compare_measurements",
    "compare_results",
    "compare_with_produced",
    "compare_with_refusal",
    "read_finished_job",
]

Pair = tuple[Path | None, Dataset | None]
Voxels = dict[tuple[object, ...], NDArray[np.bool_]]


@dataclass(frozen=True)
class FinishedJob:
    """A job that has ended: its report, and the files of its results in their order."""

    job_id: int
    state: str
    reason: str
    report: Mapping[str, Any] = field(repr=False)
    files: tuple[Path, ...]


def read_finished_job(job: Job, config: Config) -> FinishedJob:
    """Read a finished job; its results are the node's own rendition, without notes about refusals."""
    files = tuple(spool.path(config.spool_dir, output.sha256) for output in _list_own_outputs(job))
    return FinishedJob(job.id, str(job.state), job.reason, job.report, files)


def compare_with_produced(primary: FinishedJob, produced: TaskResult) -> dict[str, Any]:
    """Compare a primary job ("before"), whose results were delivered, with the results of its shadow job ("after")."""
    after = produced.report
    return {
        "job": primary.job_id,
        "before": _summarise(primary.report) | {"state": primary.state, "reason": primary.reason},
        "after": _summarise(after),
        "results": list(compare_results(primary.files, produced.objects)) if primary.files else [],
        "numbers": compare_measurements(primary.report, after),
    }


def compare_with_refusal(primary: FinishedJob, task: Task, reason: str) -> dict[str, Any]:
    """Compare a primary job ("before") with its shadow job that was refused ("after")."""
    before = _summarise(primary.report) | {"state": primary.state, "reason": primary.reason}
    after = {"model": task.model, "digest": task.model_digest, "verdict": "refuse", "seconds": None, "reason": reason}
    return {"job": primary.job_id, "before": before, "after": after, "results": [], "numbers": []}


def compare_results(before: Sequence[Path], after: Sequence[Dataset]) -> Iterator[dict[str, Any]]:
    """Yield for each object its kind, whether it is the same, and by how much it differs."""
    for kind, (old, new) in _pair_by_kind(before, after):
        if old is None:
            found = _row("was not made before")
        elif new is None:
            found = _row("was not made again")
        else:
            found = _compare_objects(old, new)
        yield {"kind": kind} | found


def compare_measurements(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all measurements of two reports, by region and name, with the difference after - before."""
    old, new = _index_measurements(before), _index_measurements(after)
    return [_compare_numbers(key, old.get(key), new.get(key)) for key in dict.fromkeys([*old, *new])]


def _read_duration_s(report: Mapping[str, Any]) -> float | None:
    value = report.get("seconds")
    return float(value) if isinstance(value, int | float) else None


def _list_own_outputs(job: Job) -> list[Output]:
    notes = (objects.REFUSAL_NOTE, objects.KEY_OBJECT)
    held = job.state == "held"
    return [
        output
        for output in job.outputs
        if not output.rendition and (output.kind not in notes or (held and output.kind == objects.KEY_OBJECT))
    ]


def _summarise(report: Mapping[str, Any]) -> dict[str, Any]:
    summary = {name: report.get(name, "") for name in ("model", "digest", "verdict")}
    return summary | {"seconds": _read_duration_s(report)}


def _pair_by_kind(before: Sequence[Path], after: Sequence[Dataset]) -> Iterator[tuple[str, Pair]]:
    """Yield pairs of objects of one kind in the order of the new ones; those without a partner are paired with None."""
    unpaired: dict[str, list[Path]] = {}
    for path in before:
        unpaired.setdefault(objects.kind_of(dcmread(path)), []).append(path)
    for ds in after:
        kind = objects.kind_of(ds)
        same = unpaired.get(kind, [])
        yield kind, (same.pop(0) if same else None, ds)
    for kind, left in unpaired.items():
        for path in left:
            yield kind, (path, None)


def _compare_objects(before: Path, after: Dataset) -> dict[str, Any]:
    if before.read_bytes() == objects.encode(after):
        return _row("identical", 0.0)
    old = dcmread(before)
    if after.Modality == "SEG":
        overlap = _measure_overlap(_read_segments(old), _read_segments(after))
        return _row("differs" if overlap < 1 else "same values, other header", dice=overlap)
    a, b = _read_values(old), _read_values(after)
    if a is None or b is None:
        return _row("differs in its header")
    if a.shape != b.shape:
        return _row("differs in shape")
    largest = float(np.max(np.abs(a - b)))
    if largest == 0:
        return _row("same values, other header", 0.0)
    rmse, peak = float(np.sqrt(np.mean((a - b) ** 2))), float(np.max(np.abs(a)))
    return _row("differs", largest, round(20 * math.log10(peak / rmse), 2) if peak else None)


def _row(
    result: str, largest: float | None = None, psnr_db: float | None = None, dice: float | None = None
) -> dict[str, Any]:
    return {"result": result, "largest_difference": largest, "psnr_db": psnr_db, "dice": dice}


def _read_values(ds: Dataset) -> NDArray[np.float64] | None:
    if not any(keyword in ds for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return None
    slope, intercept = float(ds.get("RescaleSlope", 1) or 1), float(ds.get("RescaleIntercept", 0) or 0)
    fraction, _ = lookup.split_rescale_type(str(ds.get("RescaleType") or ""))
    return fraction * (np.asarray(ds.pixel_array, np.float64) * slope + intercept)


def _read_segments(ds: Dataset) -> Voxels:
    """Return the voxels of each segment by number and position; empty frames are not in the file (PS3.3 C.8.20)."""
    frames = np.asarray(ds.pixel_array).reshape(-1, int(ds.Rows), int(ds.Columns))
    found: Voxels = {}
    for frame, group in zip(frames, ds.PerFrameFunctionalGroupsSequence, strict=True):
        place = tuple(float(x) for x in group.PlanePositionSequence[0].ImagePositionPatient)
        if "SegmentIdentificationSequence" in group:
            number = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
            found[(number, *place)] = frame > 0
        else:
            found |= {(int(number), *place): frame == number for number in np.unique(frame) if number}
    return found


def _measure_overlap(a: Voxels, b: Voxels) -> float:
    """Return the Dice coefficient over all frames; 1 where both files are empty.

    Not ``model_zoo.similarity.dice``: that takes two arrays of one shape, and an empty frame is in neither file.
    """
    total = sum(int(each.sum()) for each in (*a.values(), *b.values()))
    both = sum(int((a[key] & b[key]).sum()) for key in a.keys() & b.keys() if a[key].shape == b[key].shape)
    return round(2 * both / total, 6) if total else 1.0


def _index_measurements(report: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(each.get("group", ""), each["name"]): each for each in report.get("measurements", [])}


def _compare_numbers(
    key: tuple[str, str], before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> dict[str, Any]:
    old, new = (each.get("value") if each else None for each in (before, after))
    unit = (after or before or {}).get("unit", "")
    difference = new - old if old is not None and new is not None else None
    return {"group": key[0], "name": key[1], "unit": unit, "before": old, "after": new, "difference": difference}
