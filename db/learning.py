"""Decided results of a pipeline, and the learning runs that use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session, joinedload

from db import audit
from db.models import Job, LearningRun, Reading
from db.states import JobState, LearningState, ReadingVerdict

__all__ = ["OPEN", "Decision", "count_new", "find_open", "list_decisions", "list_runs", "move"]

OPEN = (LearningState.EXPORTING, LearningState.TRAINING)
"""States of runs that the next night goes on with."""
_DECIDED = {JobState.DONE: "released", JobState.CANCELLED: "discarded"}
"""Decisions of the hold queue, by the state in which a held job ends."""


@dataclass(frozen=True)
class Decision:
    """Decision of a person on a job's result: accepted or rejected by a reader, or released or discarded when held."""

    job: Job
    verdict: str
    reason: str
    at: datetime

    @property
    def is_accepted(self) -> bool:
        """True where a reader accepted the result; a release from the hold queue is no reading."""
        return self.verdict == ReadingVerdict.ACCEPTED

    @property
    def is_rejected(self) -> bool:
        """True where a reader rejected the result, or it was discarded from the hold queue."""
        return self.verdict in (ReadingVerdict.REJECTED, "discarded")


def list_decisions(session: Session, pipeline: str) -> list[Decision]:
    """Return the last decision on each study of a pipeline, without trials, in the order of the jobs."""
    mine = (Job.pipeline == pipeline, Job.shadow_of_id.is_(None), ~Job.is_trial, Job.state.in_(_DECIDED))
    by_person = [Job.reason.startswith(f"{verdict} ") for verdict in _DECIDED.values()]
    decided = or_(Job.id.in_(select(Reading.job_id)), *by_person)
    jobs = session.scalars(select(Job).where(*mine, decided).options(joinedload(Job.study)).order_by(Job.id)).all()
    read = select(Reading).join(Job, Reading.job_id == Job.id).where(*mine).order_by(Reading.id)
    latest = {reading.job_id: reading for reading in session.scalars(read)}
    decisions = [each for job in jobs if (each := _find_decision(job, latest.get(job.id)))]
    by_study = {each.job.study_id: each for each in sorted(decisions, key=lambda each: (each.at, each.job.id))}
    return sorted(by_study.values(), key=lambda each: each.job.id)


def count_new(session: Session, name: str, pipeline: str) -> int:
    """Return the number of decisions since the last run of that name began."""
    last = list_runs(session, name)[:1]
    return sum(not last or each.at > last[0].created_at for each in list_decisions(session, pipeline))


def find_open(session: Session, name: str) -> LearningRun | None:
    """Return the run of that name that has not ended, or None."""
    mine = (LearningRun.name == name, LearningRun.state.in_(OPEN))
    return session.scalar(select(LearningRun).where(*mine).order_by(LearningRun.id.desc()).limit(1))


def list_runs(session: Session, name: str = "") -> Sequence[LearningRun]:
    """Return the runs of that name, or all of them, the newest first."""
    query = select(LearningRun).order_by(LearningRun.id.desc())
    return session.scalars(query.where(LearningRun.name == name) if name else query).all()


def move(session: Session, run: LearningRun, state: LearningState, *, reason: str, now: datetime) -> None:
    """Change the state of a run, with the reason. Raises InvalidTransition."""
    audit.transition(session, run, state, reason=reason, now=now)
    run.reason = reason
    run.ended_at = None if state in OPEN else now


def _find_decision(job: Job, reading: Reading | None) -> Decision | None:
    """Return the reader's decision, or else that of the hold queue, or None."""
    if reading is not None:
        return Decision(job, str(reading.verdict), reading.reason, reading.created_at)
    verdict = _DECIDED[job.state]
    by_person = job.reason.startswith(f"{verdict} ")  # not "superseded by job 7"
    if job.report.get("verdict") != "hold" or job.finished_at is None or not by_person:
        return None
    return Decision(job, verdict, job.reason, job.finished_at)
