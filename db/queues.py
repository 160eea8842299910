"""Depth and age of the queues: counts of unfinished rows, read from the index on their state."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.models import CommitmentRequest, Delivery, Job, Notification, Quarantine, Retrieval, Study
from db.states import (
    DeliveryState,
    JobState,
    NotificationState,
    QuarantineState,
    ReportState,
    RetrievalState,
    StudyState,
)

__all__ = [
    "count_deliveries",
    "count_jobs",
    "count_notifications",
    "count_quarantined",
    "count_reports",
    "count_retrievals",
    "count_studies",
    "measure_oldest_s",
]

_STUDIES = (StudyState.RECEIVING, StudyState.COMPLETE)
_JOBS = (JobState.READY, JobState.RUNNING, JobState.HELD, JobState.REFUSED, JobState.DEAD)
_DELIVERIES = (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.GIVEN_UP)
_NOTIFICATIONS = (NotificationState.WAITING, NotificationState.SENDING, NotificationState.GIVEN_UP)
_REPORTS = (ReportState.WAITING, ReportState.SENDING, ReportState.GIVEN_UP)
_RETRIEVALS = (RetrievalState.WANTED, RetrievalState.FETCHING)

_OLDEST: tuple[tuple[str, Any, Any, Any], ...] = (
    ("study_receiving", Study.opened_at, Study.state, StudyState.RECEIVING),
    ("study_complete", Study.completed_at, Study.state, StudyState.COMPLETE),
    ("job_ready", Job.created_at, Job.state, JobState.READY),
    ("job_running", Job.started_at, Job.state, JobState.RUNNING),
    ("job_held", Job.finished_at, Job.state, JobState.HELD),
    ("delivery_waiting", Delivery.created_at, Delivery.state, DeliveryState.WAITING),
    ("notification_waiting", Notification.created_at, Notification.state, NotificationState.WAITING),
    ("commitment_report_waiting", CommitmentRequest.created_at, CommitmentRequest.state, ReportState.WAITING),
    ("search_open", Retrieval.created_at, Retrieval.state, RetrievalState.WANTED),
)


def count_studies(session: Session) -> dict[str, int]:
    """Return the number of studies not yet routed, by state."""
    counts = _count(session, Study.state, among=(Study.state, _STUDIES))
    return {str(state): counts.get((state,), 0) for state in _STUDIES}


def count_jobs(session: Session) -> dict[tuple[str, ...], int]:
    """Return the number of jobs that are not done or cancelled, by pipeline, model and state."""
    return _as_labels(_count(session, Job.pipeline, Job.model, Job.state, among=(Job.state, _JOBS)))


def count_deliveries(session: Session) -> dict[tuple[str, ...], int]:
    """Return the number of unfinished deliveries, by destination and state."""
    return _as_labels(_count(session, Delivery.destination, Delivery.state, among=(Delivery.state, _DELIVERIES)))


def count_notifications(session: Session) -> dict[tuple[str, ...], int]:
    """Return the number of unfinished notifications, by receiver and state."""
    among = (Notification.state, _NOTIFICATIONS)
    return _as_labels(_count(session, Notification.name, Notification.state, among=among))


def count_reports(session: Session) -> dict[tuple[str, ...], int]:
    """Return the number of reports on storage commitments that are not sent, by state."""
    among = (CommitmentRequest.state, _REPORTS)
    return _as_labels(_count(session, CommitmentRequest.state, among=among))


def count_retrievals(session: Session) -> dict[tuple[str, ...], int]:
    """Return the number of open retrievals, by peer and state."""
    among = (Retrieval.state, _RETRIEVALS)
    return _as_labels(_count(session, Retrieval.peer, Retrieval.state, among=among))


def count_quarantined(session: Session) -> int:
    """Return the number of quarantined files that wait for a person's decision."""
    undecided = Quarantine.state == QuarantineState.KEPT
    return session.scalar(select(func.count(Quarantine.id)).where(undecided)) or 0


def measure_oldest_s(session: Session, *, now: datetime) -> dict[str, float]:
    """Return by queue and state the age of its oldest row in seconds; 0 where it is empty."""
    ages: dict[str, float] = {}
    for queue, since, state, waiting in _OLDEST:
        moment = session.scalar(select(func.min(since)).where(state == waiting))
        ages[queue] = 0.0 if moment is None else max(0.0, (now - moment).total_seconds())
    return ages


def _count(session: Session, *by: Any, among: tuple[Any, Any]) -> dict[tuple[Any, ...], int]:
    state, states = among
    query = select(*by, func.count()).where(state.in_(states)).group_by(*by)
    return {tuple(row[:-1]): row[-1] for row in session.execute(query)}


def _as_labels(counts: dict[tuple[Any, ...], int]) -> dict[tuple[str, ...], int]:
    return {tuple(map(str, key)): count for key, count in counts.items()}
