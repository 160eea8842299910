"""What has changed since a number in the audit trail, as plain values: for counters that hear of every machine."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.models import Delivery, Event, Job, Notification, Output, Study

__all__ = [
    "Transition",
    "list_transitions",
    "load_deliveries",
    "load_job_runs",
    "load_notification_names",
    "load_study_times",
]

_SUBJECTS = ("studies", "jobs", "deliveries", "notifications")


@dataclass(frozen=True)
class Transition:
    """A row's change of state."""

    seq: int
    at: datetime
    subject: str
    id: int
    before: str
    after: str
    reason: str


def list_transitions(session: Session, seq: int, upto: int) -> list[Transition]:
    """The changes after an event's number, up to another's."""
    query = select(Event.seq, Event.at, Event.subject, Event.subject_id, Event.detail)
    mine = (Event.seq > seq, Event.seq <= upto, Event.subject.in_(_SUBJECTS), Event.event == "moved")
    return [
        Transition(
            each.seq, each.at, each.subject, int(each.subject_id), detail["from"], detail["to"], detail["reason"]
        )
        for each in session.execute(query.where(*mine).order_by(Event.seq))
        for detail in [each.detail]
    ]


def load_study_times(session: Session, ids: Collection[int]) -> dict[int, Any]:
    """When each was opened and complete."""
    query = select(Study.id, Study.opened_at, Study.completed_at).where(Study.id.in_(ids))
    return {row.id: row for row in session.execute(query)}


def load_job_runs(session: Session, ids: Collection[int]) -> dict[int, Any]:
    """What each ran, when, and what the gate said."""
    columns = (Job.id, Job.pipeline, Job.model, Job.created_at, Job.started_at, Job.finished_at)
    query = select(*columns, Job.report["verdict"].as_string().label("verdict")).where(Job.id.in_(ids))
    return {row.id: row for row in session.execute(query)}


def load_deliveries(session: Session, ids: Collection[int]) -> dict[int, Any]:
    """Where each goes to, since when, of which pipeline, and when its study was complete."""
    query = (
        select(Delivery.id, Delivery.destination, Delivery.created_at, Job.pipeline, Study.completed_at)
        .join(Output, Delivery.output_id == Output.id)
        .join(Job, Output.job_id == Job.id)
        .join(Study, Job.study_id == Study.id)
    )
    return {row.id: row for row in session.execute(query.where(Delivery.id.in_(ids)))}


def load_notification_names(session: Session, ids: Collection[int]) -> dict[int, str]:
    """Who is told, by the name in the configuration."""
    rows = session.execute(select(Notification.id, Notification.name).where(Notification.id.in_(ids)))
    return {row.id: row.name for row in rows}
