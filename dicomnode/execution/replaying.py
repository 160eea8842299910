"""Running finished work again, without delivering, to see what differs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from db.models import Study
from db.states import JobState
from dicomnode.config import Config
from dicomnode.errors import NotFound
from dicomnode.execution import comparing, job_run, processing
from dicomnode.execution.comparing import Finished
from dicomnode.execution.processing import Produced, Task

__all__ = ["COLUMNS", "Done", "compare", "finished"]

COLUMNS = ("job", "kind", "name", "result", "before", "after", "largest_difference", "psnr_db", "dice")


@dataclass(frozen=True)
class Done:
    """A finished job, and what there is to do again."""

    job: Finished
    task: Task
    model: str


def finished(session: Session, config: Config, study: Study, model: str) -> list[Done]:
    """The study's finished jobs as tasks, on the model that is named or the job's own; not those beside others."""
    jobs = [job for job in study.jobs if job.state in (JobState.DONE, JobState.HELD) and job.shadow_of_id is None]
    if not jobs:
        raise NotFound(f"study {study.study_uid} has no finished job to run again")
    found = []
    for job in jobs:
        task = job_run.build_task(job, config)
        own = str(job.report.get("model", task.model))
        again = replace(task, model=model or own, model_digest="" if model else task.model_digest)
        found.append(Done(comparing.finished(job, config), again, own))
    return found


def compare(done: Done, config: Config) -> Iterator[dict[str, Any]]:
    """Run again: per result whether it is the same, or by how much its values differ; then the numbers that differ.

    With another model than the job's the model, every number and the seconds are told.
    """
    produced = processing.process(done.task, config, progress=lambda fraction, step: None)
    empty = dict.fromkeys(COLUMNS) | {"job": done.job.job_id}
    for row in comparing.results(done.job.files, produced.objects):
        yield empty | row
    other = produced.report["model"] != done.model
    for number in comparing.numbers(done.job.report, produced.report):
        if other or number["before"] != number["after"]:
            yield empty | _number(number)
    if other:
        yield from (empty | row for row in _of_the_run(done, produced))


def _number(found: dict[str, Any]) -> dict[str, Any]:
    name = ": ".join(word for word in (found["group"], found["name"]) if word)
    result = "identical" if found["before"] == found["after"] else "differs"
    unit = f", {found['unit']}" if found["unit"] not in ("", "1") else ""
    values = {key: found[key] for key in ("before", "after")}
    difference = found["difference"]
    largest = abs(difference) if difference is not None else None
    return {"kind": "measurement", "name": f"{name}{unit}", "result": result, "largest_difference": largest} | values


def _of_the_run(done: Done, produced: Produced) -> Iterator[dict[str, Any]]:
    for kind in ("model", "digest", "verdict", "seconds"):
        before, after = done.job.report.get(kind), produced.report.get(kind)
        yield {"kind": kind, "result": "identical" if before == after else "differs", "before": before, "after": after}
