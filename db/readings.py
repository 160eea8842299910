"""The quality record: decisions of readers on results."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from db import audit, jobs, result_files
from db.models import Event, Job, Reading
from db.result_files import OutputFile
from db.states import InvalidTransition, JobState, ReadingVerdict

__all__ = ["READABLE_STATES", "add_notes", "describe_readings", "find_latest", "is_noted", "is_readable", "record"]

READABLE_STATES = (JobState.DONE, JobState.HELD)
"""States of jobs whose results are read."""
_NOTED = "reading noted"


def is_readable(session: Session, job: Job) -> bool:
    """Return whether the job has a result that a reader reads, or that was read or discarded before."""
    return job.state in READABLE_STATES or job.is_discarded or find_latest(session, job.id) is not None


def record(
    session: Session,
    job: Job,
    *,
    verdict: ReadingVerdict,
    who: str,
    reason: str,
    sentence: str,
    now: datetime,
) -> tuple[Reading, bool]:
    """Record a decision on a job's result. Return its row, and whether it is new; one that repeats the last is not.

    A held result is released or discarded by a new decision. Raises InvalidTransition.
    """
    last = find_latest(session, job.id)
    if last is not None and (last.verdict, last.who, last.reason) == (verdict, who, reason):
        return last, False
    if job.state not in READABLE_STATES:
        raise InvalidTransition(f"job {job.id} is {job.state}; it has no result to read")
    if job.state is JobState.HELD:
        decide = jobs.release if verdict is ReadingVerdict.ACCEPTED else jobs.discard
        decide(session, job, reason=f"{verdict} by {who}: {reason}", now=now)
    model = str(job.report.get("model", job.model))
    reading = Reading(
        job_id=job.id, verdict=verdict, who=who, reason=reason, sentence=sentence, model=model, created_at=now
    )
    session.add(reading)
    detail = {"verdict": verdict, "who": who, "reason": reason}
    audit.append(session, subject="jobs", subject_id=job.id, event="read", detail=detail, now=now)
    session.flush()
    return reading, True


def add_notes(session: Session, reading: Reading, notes: Sequence[OutputFile], *, now: datetime) -> None:
    """Add the objects that state a decision to the results of its job, and deliver them."""
    job = reading.job
    result_files.add_outputs(job, notes, now)
    result_files.enqueue_deliveries(job, now, only={each.sop_instance_uid for each in notes})
    detail = {"reading": reading.id, "notes": [each.sop_instance_uid for each in notes]}
    audit.append(session, subject="jobs", subject_id=job.id, event=_NOTED, detail=detail, now=now)


def is_noted(session: Session, reading: Reading) -> bool:
    """Return whether the notes on a decision were added: a full disk or a crash may have come between."""
    noted = (Event.subject == "jobs", Event.subject_id == str(reading.job_id), Event.event == _NOTED)
    own = Event.detail["reading"].as_integer() == reading.id
    return session.scalar(select(Event.seq).where(*noted, own).limit(1)) is not None


def find_latest(session: Session, job_id: int) -> Reading | None:
    """Return the last decision on a job's result, or None."""
    return session.scalar(select(Reading).where(Reading.job_id == job_id).order_by(Reading.id.desc()).limit(1))


def describe_readings(session: Session) -> list[dict[str, Any]]:
    """Return all decisions as rows of plain values, the oldest first, for an export without patients' names."""
    query = select(Reading).options(joinedload(Reading.job).joinedload(Job.study)).order_by(Reading.id)
    return [
        {
            "read_at": reading.created_at.isoformat(),
            "verdict": str(reading.verdict),
            "who": reading.who,
            "reason": reading.reason,
            "job": reading.job_id,
            "route": reading.job.route,
            "pipeline": reading.job.pipeline,
            "model": reading.model,
            "study_uid": reading.job.study.study_uid,
            "gate": str(reading.job.report.get("verdict", "")),
            "sentence": reading.sentence,
        }
        for reading in session.scalars(query)
    ]
