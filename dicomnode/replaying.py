"""Running finished work again, without delivering, to see what differs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from sqlalchemy.orm import Session

from db.models import Job, Output, Study
from db.states import JobState
from dicomnode import processing, spool, worker
from dicomnode.config import Config
from dicomnode.errors import NotFound
from dicomnode.processing import Task

__all__ = ["Done", "compare", "finished"]


@dataclass(frozen=True)
class Done:
    """A finished job and the files of its results, by kind."""

    job_id: int
    task: Task
    results: tuple[Path, ...]


def finished(session: Session, config: Config, study: Study, model: str) -> list[Done]:
    """The study's finished jobs as tasks, on the model that is named or the job's own."""
    jobs = [job for job in study.jobs if job.state in (JobState.DONE, JobState.HELD)]
    if not jobs:
        raise NotFound(f"study {study.study_uid} has no finished job to run again")
    found = []
    for job in jobs:
        task = worker.task_of(job, config)
        recorded = model or str(job.report.get("model", task.model))
        results = tuple(spool.path(config.spool_dir, output.sha256) for output in _made(job))
        found.append(Done(job.id, replace(task, model=recorded), results))
    return found


def _made(job: Job) -> list[Output]:
    """Without the notes of earlier runs that were refused."""
    return [output for output in job.outputs if output.kind != worker.REFUSAL_NOTE]


def compare(done: Done, config: Config) -> Iterator[dict[str, Any]]:
    """Run again; per result whether it is the same, or by how much its values differ."""
    produced = processing.process(done.task, config, progress=lambda fraction, step: None)
    for index, new in enumerate(produced.objects):
        old = done.results[index] if index < len(done.results) else None
        difference = _difference(old, new) if old else _row("was not made before")
        yield {"job": done.job_id, "kind": worker.kind_of(new), **difference}
    for old in done.results[len(produced.objects) :]:
        yield {"job": done.job_id, "kind": worker.kind_of(dcmread(old)), **_row("was not made again")}


def _difference(old: Path, new: Dataset) -> dict[str, Any]:
    if old.read_bytes() == worker.encoded(new):
        return _row("identical", 0.0)
    a, b = _values(dcmread(old)), _values(new)
    if a is None or b is None:
        return _row("differs in its header")
    if a.shape != b.shape:
        return _row("differs in shape")
    largest = float(np.max(np.abs(a - b)))
    if largest == 0:
        return _row("same values, other header", 0.0)
    rmse, peak = float(np.sqrt(np.mean((a - b) ** 2))), float(np.max(np.abs(a)))
    return _row("differs", largest, round(20 * math.log10(peak / rmse), 2) if peak else None)


def _row(result: str, largest: float | None = None, psnr_db: float | None = None) -> dict[str, Any]:
    return {"result": result, "largest_difference": largest, "psnr_db": psnr_db}


def _values(ds: Dataset) -> NDArray[np.float64] | None:
    if not any(keyword in ds for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return None
    slope, intercept = float(ds.get("RescaleSlope", 1) or 1), float(ds.get("RescaleIntercept", 0) or 0)
    return np.asarray(ds.pixel_array, np.float64) * slope + intercept
