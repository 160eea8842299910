"""Studies and their progress through the node, for the pages of the dashboard.

A page costs the same number of queries however many rows it shows. Searches here are by state, which no DICOM query
knows; db/catalogue.py answers searches for DICOM attributes.
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
from db.models import Delivery, Instance, Job, Output, Quarantine, Series, Study
from db.states import DeliveryState, JobState, QuarantineState, StudyState

__all__ = [
    "Stage",
    "StudyFilter",
    "StudyPage",
    "Tally",
    "count_jobs_by_state",
    "count_needing_attention",
    "count_stages",
    "count_studies",
    "describe_study_state",
    "estimate_durations_s",
    "load_job_page",
    "load_study_page",
    "load_tallies",
]

_RECENT_JOBS = 400
"""Newest jobs whose durations are averaged."""
_ON_ITS_WAY = (DeliveryState.WAITING, DeliveryState.SENDING)


class Stage(StrEnum):
    """Stage of a study; a study with several jobs may be in several stages."""

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
    """Filter of studies; an empty field matches any.

    ``patient``: a part of the Patient ID, and with ``by_name`` also of the name. Dates: YYYYMMDD.
    """

    stage: Stage | None = None
    patient: str = field(default="", repr=False)
    by_name: bool = False
    description: str = ""
    first_date: str = ""
    last_date: str = ""


@dataclass(frozen=True)
class Tally:
    """Content of a study, its jobs and deliveries. ``jobs``: the newest first, without superseded ones."""

    series: int = 0
    instances: int = 0
    modalities: tuple[str, ...] = ()
    jobs: tuple[Job, ...] = ()
    deliveries: dict[DeliveryState, int] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyPage:
    """Studies of one page, and their tallies by study id."""

    studies: Sequence[Study]
    tallies: dict[int, Tally]


def load_study_page(session: Session, criteria: StudyFilter, *, limit: int, offset: int) -> StudyPage:
    """Return one page of the studies that match, the last active first."""
    query = select(Study).where(*_conditions(criteria)).order_by(Study.last_received_at.desc(), Study.id.desc())
    studies = session.scalars(query.limit(limit).offset(offset)).all()
    return StudyPage(studies, load_tallies(session, [study.id for study in studies]))


def _conditions(criteria: StudyFilter) -> list[ColumnElement[bool]]:
    conditions = [_in_stage(criteria.stage)] if criteria.stage else []
    if criteria.patient:
        by_id = Study.patient_id.icontains(criteria.patient, autoescape=True)
        name = fold_name(criteria.patient).strip("=")
        by_name = Study.patient_folded.contains(name, autoescape=True)
        conditions.append(or_(by_id, by_name) if criteria.by_name and name else by_id)
    if criteria.description:
        conditions.append(Study.study_description.icontains(criteria.description, autoescape=True))
    if criteria.first_date:
        conditions.append(Study.study_date >= criteria.first_date)
    if criteria.last_date:
        conditions += [Study.study_date <= criteria.last_date, Study.study_date != ""]
    return conditions


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


def describe_study_state(state: StudyState, jobs: int) -> str:
    """Return the state in the words of the pages: a routed study without a job is "not routed", no route took it."""
    return "not routed" if state is StudyState.ROUTED and not jobs else str(state)


def count_studies(session: Session, criteria: StudyFilter) -> int:
    """Return the number of studies that match, on all pages."""
    return session.scalar(select(func.count(Study.id)).where(*_conditions(criteria))) or 0


def load_tallies(session: Session, study_ids: Sequence[int]) -> dict[int, Tally]:
    """Return the tallies by study."""
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
    for job in session.scalars(
        _defer_long_columns(select(Job).where(Job.study_id.in_(study_ids))).order_by(Job.id.desc())
    ):
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
    """Return the number of studies in each stage that may need attention."""
    studies = _by_state(session, select(Study.state, func.count()).group_by(Study.state))
    unfinished = Job.state.in_([state for states in _OF_JOBS.values() for state in states] + [JobState.DEAD])
    query = select(Job.state, func.count(Job.study_id.distinct())).where(unfinished).group_by(Job.state)
    jobs = _by_state(session, query)
    counts = {stage: studies.get(state, 0) for stage, state in _OF_STUDIES.items()}
    counts |= {stage: sum(jobs.get(state, 0) for state in states) for stage, states in _OF_JOBS.items()}
    return counts | {Stage.FAILED: count_studies(session, StudyFilter(Stage.FAILED))}


def count_needing_attention(session: Session) -> dict[str, int]:
    """Return the number of held jobs (``held``), of jobs that failed or were not delivered (``failed``), and of files
    in quarantine (``quarantined``).
    """
    states = (JobState.HELD, JobState.DEAD, JobState.REFUSED)
    query = select(Job.state, func.count()).where(Job.state.in_(states)).group_by(Job.state)
    jobs = _by_state(session, query)
    undelivered = select(func.count(Output.job_id.distinct())).join(Delivery, Delivery.output_id == Output.id)
    given_up = session.scalar(undelivered.where(Delivery.state == DeliveryState.GIVEN_UP)) or 0
    failed = jobs.get(JobState.DEAD, 0) + jobs.get(JobState.REFUSED, 0) + given_up
    quarantined = select(func.count(Quarantine.id)).where(Quarantine.state == QuarantineState.KEPT)
    return {"held": jobs.get(JobState.HELD, 0), "failed": failed, "quarantined": session.scalar(quarantined) or 0}


def load_job_page(session: Session, state: JobState | None, *, limit: int, offset: int) -> list[tuple[Job, Study]]:
    """Return one page of jobs with their studies, the newest first."""
    query = _defer_long_columns(select(Job, Study).join(Study, Job.study_id == Study.id))
    query = query.where(*([Job.state == state] if state else [])).order_by(Job.id.desc())
    return [(job, study) for job, study in session.execute(query.limit(limit).offset(offset))]


def _defer_long_columns(query: Any) -> Any:
    """Defer the long columns, which lists do not show."""
    return query.options(defer(Job.report), defer(Job.options))


def count_jobs_by_state(session: Session) -> dict[JobState, int]:
    """Return the number of jobs in each state."""
    return _by_state(session, select(Job.state, func.count()).group_by(Job.state))


def estimate_durations_s(session: Session) -> dict[str, float]:
    """Return by pipeline the median duration of its latest jobs in seconds."""
    newest = (
        select(Job.id).order_by(Job.id.desc()).limit(_RECENT_JOBS)
    )  # a query of its own, so that the order of the key is used
    query = select(Job.pipeline, Job.started_at, Job.finished_at).where(
        Job.id.in_(newest.subquery().select()), Job.state.in_((JobState.DONE, JobState.HELD))
    )
    durations: dict[str, list[float]] = {}
    for pipeline, begin, end in session.execute(query):
        if begin is not None and end is not None:
            durations.setdefault(pipeline, []).append(_seconds(begin, end))
    return {pipeline: median(each) for pipeline, each in durations.items()}


def _by_state(session: Session, query: Any) -> dict[Any, int]:
    return dict(session.execute(query).all())


def _seconds(begin: datetime, end: datetime) -> float:
    return (end - begin).total_seconds()
