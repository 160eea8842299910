"""The replay of finished jobs, without delivery, to compare their results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from db.models import Study
from db.states import JobState, StudyState
from dicomnode.config import Config
from dicomnode.errors import NotFound
from dicomnode.execution import comparing, job_run, processing
from dicomnode.execution.comparing import FinishedJob
from dicomnode.execution.processing import Task, TaskResult

__all__ = ["COLUMNS", "Replay", "list_replays", "run_and_compare"]

COLUMNS = ("job", "kind", "name", "result", "before", "after", "largest_difference", "psnr_db", "dice")


@dataclass(frozen=True)
class Replay:
    """A finished job, and the task to run again."""

    job: FinishedJob
    task: Task
    model: str


def list_replays(session: Session, config: Config, study: Study, model: str) -> list[Replay]:
    """Return the study's finished jobs as tasks on the given model, or the job's own; shadow jobs are left out."""
    jobs = [job for job in study.jobs if job.state in (JobState.DONE, JobState.HELD) and job.shadow_of_id is None]
    if not jobs:
        raise NotFound(f"study {study.study_uid} has no finished job to run again: {_advise(study)}")
    replays = []
    for job in jobs:
        task = job_run.build_task(job, config)
        own = str(job.report.get("model", task.model))
        again = replace(task, model=model or own, model_digest="" if model else task.model_digest)
        replays.append(Replay(comparing.read_finished_job(job, config), again, own))
    return replays


def _advise(study: Study) -> str:
    if any(job.shadow_of_id is None for job in study.jobs):
        return "'dicomnode studies show' lists its jobs, 'dicomnode jobs retry' runs one of them"
    if study.state is StudyState.ROUTED:
        return "no route took it; 'dicomnode studies explain' says why, 'dicomnode studies route' offers it again"
    return f"it is {study.state}, and the node routes it when it is complete"


def run_and_compare(replay: Replay, config: Config) -> Iterator[dict[str, Any]]:
    """Run a job again, and yield for each result its difference, then the numbers that differ.

    With another model than the job's, the model, all numbers and the duration follow as well.
    """
    produced = processing.run_task(replay.task, config, progress=lambda fraction, step: None)
    empty = dict.fromkeys(COLUMNS) | {"job": replay.job.job_id}
    for row in comparing.compare_results(replay.job.files, produced.objects):
        yield empty | row
    is_other_model = produced.report["model"] != replay.model
    for number in comparing.compare_measurements(replay.job.report, produced.report):
        if is_other_model or number["before"] != number["after"]:
            yield empty | _format_number(number)
    if is_other_model:
        yield from (empty | row for row in _compare_runs(replay, produced))


def _format_number(number: dict[str, Any]) -> dict[str, Any]:
    name = ": ".join(part for part in (number["group"], number["name"]) if part)
    result = "identical" if number["before"] == number["after"] else "differs"
    unit = f", {number['unit']}" if number["unit"] not in ("", "1") else ""
    values = {key: number[key] for key in ("before", "after")}
    difference = number["difference"]
    largest = abs(difference) if difference is not None else None
    return {"kind": "measurement", "name": f"{name}{unit}", "result": result, "largest_difference": largest} | values


def _compare_runs(replay: Replay, produced: TaskResult) -> Iterator[dict[str, Any]]:
    for kind in ("model", "digest", "verdict", "seconds"):
        before, after = replay.job.report.get(kind), produced.report.get(kind)
        yield {"kind": kind, "result": "identical" if before == after else "differs", "before": before, "after": after}
