"""Studies with their way through the node: a page of them, and what each page of people needs in few queries.

However many rows a page shows, it costs the same number of queries. Who searches for DICOM attributes on the wire asks
db/catalogue.py; here is found by state, which no wire knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from statistics import median
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.orm import Session, defer

from db.keywords import fold_name
from db.models import Delivery, Instance, Job, Output, Series, Study
from db.states import DeliveryState, JobState, StudyState

__all__ = [
    "Stage",
    "StudyFilter",
    "StudyPage",
    "Tally",
    "count_jobs_by_state",
    "count_needing_attention",
    "count_stages",
    "count_studies",
    "estimate_durations_s",
    "load_job_page",
    "load_study_page",
    "load_tallies",
]

_RECENT_JOBS = 400
"""Of the finished ones among so many the usual duration is taken."""
_ON_ITS_WAY = (DeliveryState.WAITING, DeliveryState.SENDING)


class Stage(StrEnum):
    """Where a study stands; one may stand in several when it has several jobs."""

    RECEIVING = "receiving"
    COMPLETE = "complete"
    UNROUTED = "unrouted"
    WAITING = "waiting"
    RUNNING = "running"
    HELD = "held"
    FAILED = "failed"
    REFUSED = "refused"
    DELIVERING = "delivering"
    DELIVERED = "delivered"


_OF_JOBS = {
    Stage.WAITING: (JobState.READY,),
    Stage.RUNNING: (JobState.RUNNING,),
    Stage.HELD: (JobState.HELD,),
    Stage.REFUSED: (JobState.REFUSED,),
}
_OF_STUDIES = {Stage.RECEIVING: StudyState.RECEIVING, Stage.COMPLETE: StudyState.COMPLETE}


@dataclass(frozen=True)
class StudyFilter:
    """Empty: any. ``patient``: a part of the Patient ID, and with ``by_name`` also of the name; dates as YYYYMMDD."""

    stage: Stage | None = None
    patient: str = field(default="", repr=False)
    by_name: bool = False
    description: str = ""
    first_date: str = ""
    last_date: str = ""


@dataclass(frozen=True)
class Tally:
    """What a study holds, and what became of it. ``jobs``: the newest first, without those that others replaced."""

    series: int = 0
    instances: int = 0
    modalities: tuple[str, ...] = ()
    jobs: tuple[Job, ...] = ()
    deliveries: dict[DeliveryState, int] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyPage:
    """Some studies with their tallies, by study id."""

    studies: Sequence[Study]
    tallies: dict[int, Tally]


def load_study_page(session: Session, wanted: StudyFilter, *, limit: int, offset: int) -> StudyPage:
    """The studies that were last active, the newest first."""
    query = select(Study).where(*_conditions(wanted)).order_by(Study.last_received_at.desc(), Study.id.desc())
    studies = session.scalars(query.limit(limit).offset(offset)).all()
    return StudyPage(studies, load_tallies(session, [study.id for study in studies]))


def _conditions(wanted: StudyFilter) -> list[ColumnElement[bool]]:
    found = [_in_stage(wanted.stage)] if wanted.stage else []
    if wanted.patient:
        by_id = Study.patient_id.icontains(wanted.patient, autoescape=True)
        name = fold_name(wanted.patient).strip("=")
        by_name = Study.patient_folded.contains(name, autoescape=True)
        found.append(or_(by_id, by_name) if wanted.by_name and name else by_id)
    if wanted.description:
        found.append(Study.study_description.icontains(wanted.description, autoescape=True))
    if wanted.first_date:
        found.append(Study.study_date >= wanted.first_date)
    if wanted.last_date:
        found += [Study.study_date <= wanted.last_date, Study.study_date != ""]
    return found


def _in_stage(stage: Stage) -> ColumnElement[bool]:
    if stage in _OF_STUDIES:
        return Study.state == _OF_STUDIES[stage]
    if stage in _OF_JOBS:
        return Study.id.in_(select(Job.study_id).where(Job.state.in_(_OF_JOBS[stage])))
    if stage is Stage.UNROUTED:
        return (Study.state == StudyState.ROUTED) & Study.id.not_in(select(Job.study_id))
    if stage is Stage.FAILED:
        dead = select(Job.study_id).where(Job.state == JobState.DEAD)
        return Study.id.in_(dead) | Study.id.in_(_studies_with(DeliveryState.GIVEN_UP))
    if stage is Stage.DELIVERING:
        return Study.id.in_(_studies_with(*_ON_ITS_WAY))
    rest = _studies_with(*_ON_ITS_WAY, DeliveryState.GIVEN_UP)
    return Study.id.in_(_studies_with(DeliveryState.DELIVERED)) & Study.id.not_in(rest)


def _studies_with(*states: DeliveryState) -> Select[Any]:
    joined = select(Job.study_id).join(Output, Output.job_id == Job.id).join(Delivery, Delivery.output_id == Output.id)
    return joined.where(Delivery.state.in_(states))


def count_studies(session: Session, wanted: StudyFilter) -> int:
    """How many there are on all pages."""
    return session.scalar(select(func.count(Study.id)).where(*_conditions(wanted))) or 0


def load_tallies(session: Session, study_ids: Sequence[int]) -> dict[int, Tally]:
    """By study."""
    rows: dict[int, list[tuple[str, int, int]]] = {}
    of_series = (
        select(Series.study_id, Series.modality, func.count(Series.id.distinct()), func.count(Instance.id))
        .join(Instance, Instance.series_id == Series.id, isouter=True)
        .where(Series.study_id.in_(study_ids))
        .group_by(Series.study_id, Series.modality)
        .order_by(Series.study_id, Series.modality)
    )
    for study, modality, series, instances in session.execute(of_series):
        rows.setdefault(study, []).append((modality, series, instances))
    jobs: dict[int, list[Job]] = {}
    for job in session.scalars(_briefly(select(Job).where(Job.study_id.in_(study_ids))).order_by(Job.id.desc())):
        jobs.setdefault(job.study_id, []).append(job)
    sent = _deliveries(session, study_ids)
    return {id: _tally(rows.get(id, []), jobs.get(id, []), sent.get(id, {})) for id in study_ids}


def _tally(series: list[tuple[str, int, int]], jobs: list[Job], deliveries: dict[DeliveryState, int]) -> Tally:
    replaced = {job.supersedes_id for job in jobs}
    return Tally(
        sum(row[1] for row in series),
        sum(row[2] for row in series),
        tuple(row[0] for row in series if row[0]),
        tuple(job for job in jobs if job.id not in replaced),
        deliveries,
    )


def _deliveries(session: Session, study_ids: Sequence[int]) -> dict[int, dict[DeliveryState, int]]:
    query = (
        select(Job.study_id, Delivery.state, func.count())
        .join(Output, Output.job_id == Job.id)
        .join(Delivery, Delivery.output_id == Output.id)
        .where(Job.study_id.in_(study_ids))
        .group_by(Job.study_id, Delivery.state)
    )
    found: dict[int, dict[DeliveryState, int]] = {}
    for study, state, count in session.execute(query):
        found.setdefault(study, {})[state] = count
    return found


def count_stages(session: Session) -> dict[Stage, int]:
    """Of studies, for the stages that somebody waits in."""
    studies = _by_state(session, select(Study.state, func.count()).group_by(Study.state))
    unfinished = Job.state.in_([state for states in _OF_JOBS.values() for state in states] + [JobState.DEAD])
    query = select(Job.state, func.count(Job.study_id.distinct())).where(unfinished).group_by(Job.state)
    jobs = _by_state(session, query)
    counts = {stage: studies.get(state, 0) for stage, state in _OF_STUDIES.items()}
    counts |= {stage: sum(jobs.get(state, 0) for state in states) for stage, states in _OF_JOBS.items()}
    return counts | {Stage.FAILED: count_studies(session, StudyFilter(Stage.FAILED))}


def count_needing_attention(session: Session) -> dict[str, int]:
    """How many results wait for a person (``held``); how many jobs failed or reached no destination (``failed``)."""
    states = (JobState.HELD, JobState.DEAD, JobState.REFUSED)
    query = select(Job.state, func.count()).where(Job.state.in_(states)).group_by(Job.state)
    jobs = _by_state(session, query)
    undelivered = select(func.count(Output.job_id.distinct())).join(Delivery, Delivery.output_id == Output.id)
    given_up = session.scalar(undelivered.where(Delivery.state == DeliveryState.GIVEN_UP)) or 0
    failed = jobs.get(JobState.DEAD, 0) + jobs.get(JobState.REFUSED, 0) + given_up
    return {"held": jobs.get(JobState.HELD, 0), "failed": failed}


def load_job_page(session: Session, state: JobState | None, *, limit: int, offset: int) -> list[tuple[Job, Study]]:
    """Jobs with their studies, the newest first."""
    query = _briefly(select(Job, Study).join(Study, Job.study_id == Study.id))
    query = query.where(*([Job.state == state] if state else [])).order_by(Job.id.desc())
    return [(job, study) for job, study in session.execute(query.limit(limit).offset(offset))]


def _briefly(query: Any) -> Any:
    """Without what is long and not listed."""
    return query.options(defer(Job.report), defer(Job.options))


def count_jobs_by_state(session: Session) -> dict[JobState, int]:
    """How many jobs there are in each state."""
    return _by_state(session, select(Job.state, func.count()).group_by(Job.state))


def estimate_durations_s(session: Session) -> dict[str, float]:
    """By pipeline: how many seconds its latest jobs took, half of them less."""
    newest = select(Job.id).order_by(Job.id.desc()).limit(_RECENT_JOBS)  # alone, so that the key's order is used
    query = select(Job.pipeline, Job.started_at, Job.finished_at).where(
        Job.id.in_(newest.subquery().select()), Job.state.in_((JobState.DONE, JobState.HELD))
    )
    taken: dict[str, list[float]] = {}
    for pipeline, begin, end in session.execute(query):
        if begin is not None and end is not None:
            taken.setdefault(pipeline, []).append(_seconds(begin, end))
    return {pipeline: median(each) for pipeline, each in taken.items()}


def _by_state(session: Session, query: Any) -> dict[Any, int]:
    return dict(session.execute(query).all())


def _seconds(begin: datetime, end: datetime) -> float:
    return (end - begin).total_seconds()
