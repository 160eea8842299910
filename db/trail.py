"""Views of the audit trail for people: the events of a study, the latest events, and new ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from db.models import Chain, Delivery, Event, Instance, Job, Notification, Output, Proof, Retrieval, Series

__all__ = ["find_subjects_since", "list_all_study_events", "list_latest", "list_study_events", "read_head"]

_AT_ONCE = 500


def read_head(session: Session) -> int:
    """Return the number of the last event."""
    return session.get_one(Chain, 1, populate_existing=True).seq


def list_latest(session: Session, *, before: int | None = None, limit: int = 100) -> Sequence[Event]:
    """Return the last events, or the last ones before a number, the newest first."""
    query = select(Event).order_by(Event.seq.desc()).limit(limit)
    return session.scalars(query if before is None else query.where(Event.seq < before)).all()


def list_study_events(session: Session, study_id: int, *, limit: int = 200) -> Sequence[Event]:
    """Return the events of a study, its jobs and their deliveries, the newest first, without those of instances."""
    jobs = select(Job.id).where(Job.study_id == study_id)
    deliveries = select(Delivery.id).join(Output, Delivery.output_id == Output.id).where(Output.job_id.in_(jobs))
    proofs = select(Proof.id).where(Proof.delivery_id.in_(deliveries))
    searches = select(Retrieval.id).where(Retrieval.study_id == study_id)
    rows = {"jobs": jobs, "deliveries": deliveries, "proofs": proofs, "prior_searches": searches}
    mine = [(Event.subject == name) & Event.subject_id.in_(_as_text(session, ids)) for name, ids in rows.items()]
    own = (Event.subject == "studies") & (Event.subject_id == str(study_id))
    return session.scalars(select(Event).where(or_(own, *mine)).order_by(Event.seq.desc()).limit(limit)).all()


def list_all_study_events(session: Session, study_id: int) -> Sequence[Event]:
    """Return all events of a study and of every row that belongs to it, in their order."""
    instances = select(Instance.id).join(Series).where(Series.study_id == study_id)
    jobs = select(Job.id).where(Job.study_id == study_id)
    deliveries = select(Delivery.id).join(Output, Delivery.output_id == Output.id).where(Output.job_id.in_(jobs))
    notifications = select(Notification.id).where(Notification.job_id.in_(jobs))
    proofs = select(Proof.id).where(Proof.delivery_id.in_(deliveries))
    searches = select(Retrieval.id).where(Retrieval.study_id == study_id)
    rows = {"instances": instances, "jobs": jobs, "deliveries": deliveries, "proofs": proofs,
            "notifications": notifications, "prior_searches": searches}  # fmt: skip
    events: list[Event] = []
    for name, ids in rows.items():
        events += _select_events(session, name, _as_text(session, ids))
    events += _select_events(session, "studies", [str(study_id)])
    return sorted(events, key=lambda event: event.seq)


def _select_events(session: Session, subject: str, ids: Sequence[str]) -> Iterator[Event]:
    for at in range(0, len(ids), _AT_ONCE):
        mine = (Event.subject == subject, Event.subject_id.in_(ids[at : at + _AT_ONCE]))
        yield from session.scalars(select(Event).where(*mine))


def find_subjects_since(session: Session, seq: int, *, limit: int = 1000) -> frozenset[str]:
    """Return the kinds of rows that the events after that number concern."""
    newest = select(Event.subject).where(Event.seq > seq).order_by(Event.seq.desc()).limit(limit).subquery()
    return frozenset(session.scalars(select(newest.c.subject).distinct()))


def _as_text(session: Session, ids: Select[Any]) -> list[str]:
    return [str(id) for id in session.scalars(ids)]
