"""Notifications: written in the transaction of their event, then leased and sent like deliveries, at least once.

A job carries the names of its receivers and their events, as its route stated them when the job was made. A receiver
gets one notification of an event for each run of a job: a job that is retried by hand and fails again sends another.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from db import audit, leases
from db.models import Delivery, Job, Notification, Output, Study
from db.states import DeliveryState, JobState, NotificationState

__all__ = [
    "OUTBOX",
    "ClaimedNotification",
    "DeliveredObject",
    "Subject",
    "claim_due",
    "give_up_old",
    "is_replaced",
    "list_delivered",
    "mark_failed",
    "mark_sent",
    "notify_delivered",
    "notify_given_up",
    "notify_job_ended",
]

OUTBOX = leases.Outbox(Notification, Notification.name, NotificationState.WAITING, NotificationState.SENDING)
_ENDS = MappingProxyType({JobState.HELD: "held", JobState.REFUSED: "refused", JobState.DEAD: "failed"})
_UNFINISHED = (DeliveryState.WAITING, DeliveryState.SENDING)
_NAMESPACE = uuid.UUID("6f2d5f0e-4f6c-5d0b-9a55-0d2f6a0c7c11")


@dataclass(frozen=True, repr=False)
class Subject:
    """Identifiers of patient and study: shown to receivers that may see patient data, withheld from the others."""

    patient_id: str
    patient_name: str
    accession_number: str
    study_date: str
    study_uid: str


@dataclass(frozen=True)
class DeliveredObject:
    """A result and the names of the destinations that have it."""

    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    destinations: tuple[str, ...]


@dataclass(frozen=True)
class ClaimedNotification:
    """A notification under a lease, as plain values: no session is open while the network is used."""

    notification_id: int
    name: str
    event: str
    event_id: str
    message: str = field(repr=False)
    created_at: datetime
    attempts: int
    job_id: int
    route: str
    pipeline: str
    model: str
    subject: Subject = field(repr=False)


def notify_job_ended(session: Session, job: Job, *, now: datetime) -> None:
    """Enqueue notifications of a job that is held, refused or dead; one that is done is notified on delivery."""
    if event := _ENDS.get(job.state):
        _enqueue(session, job, event, job.reason, now)


def notify_delivered(session: Session, job_id: int, *, now: datetime) -> None:
    """Enqueue notifications of a job if all its results are at their destinations now."""
    job = _lock_job(session, job_id, "delivered")
    if job is None or _has_unfinished_deliveries(session, job_id):
        return
    rows = session.scalars(
        select(Delivery).join(Output).where(Output.job_id == job_id).options(joinedload(Delivery.output))
    ).all()
    if any(row.state is not DeliveryState.DELIVERED and not is_replaced(row, rows) for row in rows):
        return
    destinations = sorted({row.destination for row in rows if row.state is DeliveryState.DELIVERED})
    count = sum(row.state is DeliveryState.DELIVERED for row in rows)
    _enqueue(session, job, "delivered", f"{count} objects at {', '.join(destinations)}", now)


def notify_given_up(session: Session, job_id: int, destination: str, *, reason: str, now: datetime) -> None:
    """Enqueue notifications of a job one of whose results will not reach its destination."""
    job = _lock_job(session, job_id, "failed")
    if job is not None:
        _enqueue(session, job, "failed", f"not delivered to {destination}: {reason}", now)


def list_delivered(session: Session, job_id: int) -> list[DeliveredObject]:
    """Return the results of a job that a destination has, in the order of their rows."""
    there = (Output.job_id == job_id, Delivery.state == DeliveryState.DELIVERED)
    rows = session.execute(select(Output, Delivery.destination).join(Delivery).where(*there).order_by(Output.id)).all()
    names: dict[Output, list[str]] = {}
    for output, destination in rows:
        names.setdefault(output, []).append(destination)
    return [
        DeliveredObject(output.series_uid, output.sop_instance_uid, output.sop_class_uid, tuple(sorted(where)))
        for output, where in names.items()
    ]


def claim_due(
    session: Session, *, name: str, worker: str, lease_s: float, limit: int, now: datetime
) -> list[ClaimedNotification]:
    """Claim the waiting notifications of that name that are due, the oldest first."""
    rows = session.scalars(OUTBOX.select_due(address=name, limit=limit, now=now)).all()
    for row in rows:
        leases.grant(session, row, NotificationState.SENDING, worker=worker, lease_s=lease_s, now=now)
    return [_as_claimed(row) for row in rows]


def mark_sent(session: Session, notification_id: int, *, worker: str, note: str = "", now: datetime) -> None:
    """Record that the receiver has the notification; ``note``: a remark on it, such as refused recipients."""
    row = _find_held(session, notification_id, worker)
    if row is not None:
        audit.transition(session, row, NotificationState.SENT, reason=note or f"to {row.name}", now=now)
        row.sent_at, row.leased_until, row.reason = now, None, note


def mark_failed(
    session: Session, notification_id: int, *, worker: str, reason: str, retry_at: datetime, now: datetime
) -> None:
    """Record a failed attempt; the next one is at ``retry_at``."""
    row = _find_held(session, notification_id, worker)
    if row is not None:
        leases.postpone(session, row, NotificationState.WAITING, reason=reason, not_before=retry_at, now=now)


def give_up_old(session: Session, *, created_before: datetime, now: datetime) -> int:
    """Give up every notification that has waited since before ``created_before``; return how many."""
    rows = OUTBOX.lock_old(session, created_before=created_before)
    for row in rows:
        row.reason = f"given up: {row.reason or 'never tried'}"
        audit.transition(session, row, NotificationState.GIVEN_UP, reason=row.reason, now=now)
    return len(rows)


def _enqueue(session: Session, job: Job, event: str, message: str, now: datetime) -> None:
    """Add a row for each receiver of the event that has none for this run of the job."""
    run_at = job.started_at or job.created_at
    run = (Notification.job_id == job.id, Notification.event == event, Notification.run_at == run_at)
    already = set(session.scalars(select(Notification.name).where(*run)))
    for name, events in (job.notify or {}).items():
        if event not in events or name in already:
            continue
        row = Notification(
            job_id=job.id,
            name=name,
            event=event,
            run_at=run_at,
            event_id=str(uuid.uuid5(_NAMESPACE, f"{job.key} {run_at.isoformat()} {event} {name}")),
            message=message,
            not_before=now,
            created_at=now,
        )
        session.add(row)
        session.flush()
        detail = {"job": job.id, "event": event, "name": name}
        audit.append(session, subject="notifications", subject_id=row.id, event="enqueued", detail=detail, now=now)


def _lock_job(session: Session, job_id: int, event: str) -> Job | None:
    """Return the job, locked, where it has a receiver of that event and its results may go out; else None.

    The lock lets the later of two deliveries that end at the same time see that the other has ended.
    """
    session.flush()
    notify = session.scalar(select(Job.notify).where(Job.id == job_id))
    if not notify or not any(event in events for events in notify.values()):
        return None
    job = session.get_one(Job, job_id, with_for_update=True, populate_existing=True)
    return job if job.state is JobState.DONE else None


def _has_unfinished_deliveries(session: Session, job_id: int) -> bool:
    query = select(Delivery.id).join(Output).where(Output.job_id == job_id, Delivery.state.in_(_UNFINISHED))
    return session.scalar(query.limit(1)) is not None


def is_replaced(row: Delivery, rows: Collection[Delivery]) -> bool:
    """Return whether the destination refused this kind of result and got another instead (``deliveries.fall_back``)."""
    return row.output.destinations is not None and any(
        other.destination == row.destination and row.destination in (other.output.spare_for or ()) for other in rows
    )


def _as_claimed(row: Notification) -> ClaimedNotification:
    job = row.job
    return ClaimedNotification(
        notification_id=row.id,
        name=row.name,
        event=row.event,
        event_id=row.event_id,
        message=row.message,
        created_at=row.created_at,
        attempts=row.attempts,
        job_id=job.id,
        route=job.route,
        pipeline=job.pipeline,
        model=str(job.report.get("model") or job.model),
        subject=_subject(job.study),
    )


def _subject(study: Study) -> Subject:
    return Subject(study.patient_id, study.patient_name, study.accession_number, study.study_date, study.study_uid)


def _find_held(session: Session, notification_id: int, worker: str) -> Notification | None:
    return leases.find_held(session, Notification, notification_id, NotificationState.SENDING, worker=worker)
