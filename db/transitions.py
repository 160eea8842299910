"""Transitions of rows after an event of the audit trail, as plain values, for counters across all machines."""

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
    """Change of state of one row."""

    seq: int
    at: datetime
    subject: str
    id: int
    before: str
    after: str
    reason: str


def list_transitions(session: Session, seq: int, last: int) -> list[Transition]:
    """Return the transitions in the events after number ``seq``, up to ``last``."""
    query = select(Event.seq, Event.at, Event.subject, Event.subject_id, Event.detail)
    mine = (Event.seq > seq, Event.seq <= last, Event.subject.in_(_SUBJECTS), Event.event == "moved")
    return [
        Transition(
            each.seq, each.at, each.subject, int(each.subject_id), detail["from"], detail["to"], detail["reason"]
        )
        for each in session.execute(query.where(*mine).order_by(Event.seq))
        for detail in [each.detail]
    ]


def load_study_times(session: Session, ids: Collection[int]) -> dict[int, Any]:
    """Return by study when it was opened and completed."""
    query = select(Study.id, Study.opened_at, Study.completed_at).where(Study.id.in_(ids))
    return {row.id: row for row in session.execute(query)}


def load_job_runs(session: Session, ids: Collection[int]) -> dict[int, Any]:
    """Return by job its pipeline, model and times, and the verdict of the output gate."""
    columns = (Job.id, Job.pipeline, Job.model, Job.created_at, Job.started_at, Job.finished_at)
    query = select(*columns, Job.report["verdict"].as_string().label("verdict")).where(Job.id.in_(ids))
    return {row.id: row for row in session.execute(query)}


def load_deliveries(session: Session, ids: Collection[int]) -> dict[int, Any]:
    """Return by delivery its destination, creation and pipeline, and when its study was completed."""
    query = (
        select(Delivery.id, Delivery.destination, Delivery.created_at, Job.pipeline, Study.completed_at)
        .join(Output, Delivery.output_id == Output.id)
        .join(Job, Output.job_id == Job.id)
        .join(Study, Job.study_id == Study.id)
    )
    return {row.id: row for row in session.execute(query.where(Delivery.id.in_(ids)))}


def load_notification_names(session: Session, ids: Collection[int]) -> dict[int, str]:
    """Return by notification the name of its receiver in the configuration."""
    rows = session.execute(select(Notification.id, Notification.name).where(Notification.id.in_(ids)))
    return {row.id: row.name for row in rows}
