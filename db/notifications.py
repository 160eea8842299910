"""Notifications: written with the change that they tell of, then leased and sent like deliveries, at least once.

A job carries the names of those who are told of it and of which events, as its route said when it was made. Everybody
hears of an event once for each run of a job: a job that is retried by hand and fails again is told of again.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType

from sqlalchemy import func, select
from sqlalchemy.orm import Session, joinedload

from db import audit
from db.models import Delivery, Job, Notification, Output, Study
from db.states import DeliveryState, JobState, NotificationState

__all__ = [
    "ClaimedNotification",
    "Subject",
    "claim_due",
    "count_by_state",
    "expire_leases",
    "give_up_old",
    "is_replaced",
    "mark_failed",
    "mark_sent",
    "notify_delivered",
    "notify_given_up",
    "notify_job_ended",
    "reclaim",
]

_ENDS = MappingProxyType({JobState.HELD: "held", JobState.REFUSED: "refused", JobState.DEAD: "failed"})
_UNFINISHED = (DeliveryState.WAITING, DeliveryState.SENDING)
_NAMESPACE = uuid.UUID("6f2d5f0e-4f6c-5d0b-9a55-0d2f6a0c7c11")


@dataclass(frozen=True, repr=False)
class Subject:
    """What names the patient or the study: for those who may see it, and to be kept out for the others."""

    patient_id: str
    patient_name: str
    accession_number: str
    study_date: str
    study_uid: str


@dataclass(frozen=True)
class ClaimedNotification:
    """A notification that its claimer has to send, as plain values: no session is open while the network is used."""

    notification_id: int
    name: str
    event: str
    event_id: str
    told: str = field(repr=False)
    created_at: datetime
    attempts: int
    job_id: int
    route: str
    pipeline: str
    model: str
    subject: Subject = field(repr=False)


def notify_job_ended(session: Session, job: Job, *, now: datetime) -> None:
    """Tell of a job that is held, refused or dead; one that is done is told of when its results are delivered."""
    if event := _ENDS.get(job.state):
        _tell(session, job, event, job.reason, now)


def notify_delivered(session: Session, job_id: int, *, now: datetime) -> None:
    """Tell of a job all of whose results are where they belong, if they are now."""
    job = _locked(session, job_id, "delivered")
    if job is None or _unfinished(session, job_id):
        return
    rows = session.scalars(
        select(Delivery).join(Output).where(Output.job_id == job_id).options(joinedload(Delivery.output))
    ).all()
    if any(row.state is not DeliveryState.DELIVERED and not is_replaced(row, rows) for row in rows):
        return
    there = sorted({row.destination for row in rows if row.state is DeliveryState.DELIVERED})
    count = sum(row.state is DeliveryState.DELIVERED for row in rows)
    _tell(session, job, "delivered", f"{count} objects at {', '.join(there)}", now)


def notify_given_up(session: Session, job_id: int, destination: str, *, reason: str, now: datetime) -> None:
    """Tell of a job one of whose results will not reach its destination."""
    job = _locked(session, job_id, "failed")
    if job is not None:
        _tell(session, job, "failed", f"not delivered to {destination}: {reason}", now)


def claim_due(
    session: Session, *, name: str, worker: str, lease_s: float, limit: int, now: datetime
) -> list[ClaimedNotification]:
    """Claim what waits for that name and whose time has come, oldest first."""
    query = select(Notification).where(
        Notification.state == NotificationState.WAITING, Notification.not_before <= now, Notification.name == name
    )
    rows = session.scalars(query.order_by(Notification.id).limit(limit).with_for_update(skip_locked=True)).all()
    return [_take(session, row, worker, lease_s, now) for row in rows]


def mark_sent(session: Session, notification_id: int, *, worker: str, note: str = "", now: datetime) -> None:
    """Its receiver has it; ``note``: what is to be remembered of that."""
    row = _mine(session, notification_id, worker)
    if row is not None:
        audit.transition(session, row, NotificationState.SENT, reason=note or f"to {row.name}", now=now)
        row.sent_at, row.leased_until, row.reason = now, None, note


def mark_failed(
    session: Session, notification_id: int, *, worker: str, reason: str, retry_at: datetime, now: datetime
) -> None:
    """Its receiver has not taken it: try again at ``retry_at``."""
    row = _mine(session, notification_id, worker)
    if row is not None:
        _wait(session, row, reason, now)
        row.reason, row.not_before = reason, retry_at


def give_up_old(session: Session, *, created_before: datetime, now: datetime) -> int:
    """Give up on everything that has waited since before ``created_before``."""
    waiting = Notification.state == NotificationState.WAITING
    query = select(Notification).where(waiting, Notification.created_at < created_before).order_by(Notification.id)
    rows = session.scalars(query.with_for_update(skip_locked=True)).all()
    for row in rows:
        row.reason = f"given up: {row.reason or 'never tried'}"
        audit.transition(session, row, NotificationState.GIVEN_UP, reason=row.reason, now=now)
    return len(rows)


def expire_leases(session: Session, *, now: datetime) -> int:
    """Notifications whose sender died: no answer does not mean not sent, so they are sent again."""
    query = select(Notification).where(Notification.state == NotificationState.SENDING, Notification.leased_until < now)
    rows = session.scalars(query.order_by(Notification.id).with_for_update(skip_locked=True)).all()
    for row in rows:
        _wait(session, row, "its sender stopped", now)
    return len(rows)


def reclaim(session: Session, *, machine: str, now: datetime) -> int:
    """Take back what earlier processes of this machine were sending, without waiting for their leases."""
    mine = Notification.worker.startswith(f"{machine}:", autoescape=True)
    query = select(Notification).where(Notification.state == NotificationState.SENDING, mine)
    rows = session.scalars(query.order_by(Notification.id).with_for_update(skip_locked=True)).all()
    for row in rows:
        _wait(session, row, "its sender stopped", now)
    return len(rows)


def count_by_state(session: Session) -> dict[str, dict[NotificationState, int]]:
    """Per name the number of notifications in each state."""
    query = select(Notification.name, Notification.state, func.count())
    found: dict[str, dict[NotificationState, int]] = {}
    for name, state, count in session.execute(query.group_by(Notification.name, Notification.state)):
        found.setdefault(name, {})[state] = count
    return found


def _tell(session: Session, job: Job, event: str, told: str, now: datetime) -> None:
    """A row for everybody who wants to know and has not been told in this run."""
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
            told=told,
            not_before=now,
            created_at=now,
        )
        session.add(row)
        session.flush()
        detail = {"job": job.id, "event": event, "name": name}
        audit.append(session, subject="notifications", subject_id=row.id, event="enqueued", detail=detail, now=now)


def _locked(session: Session, job_id: int, event: str) -> Job | None:
    """The job, when somebody wants to hear of that event of it and its results may go out.

    It is locked: of two deliveries that end at the same time, the later one has to see that the other has ended.
    """
    session.flush()
    notify = session.scalar(select(Job.notify).where(Job.id == job_id))
    if not notify or not any(event in events for events in notify.values()):
        return None
    job = session.get_one(Job, job_id, with_for_update=True, populate_existing=True)
    return job if job.state is JobState.DONE else None


def _unfinished(session: Session, job_id: int) -> bool:
    query = select(Delivery.id).join(Output).where(Output.job_id == job_id, Delivery.state.in_(_UNFINISHED))
    return session.scalar(query.limit(1)) is not None


def is_replaced(row: Delivery, rows: Collection[Delivery]) -> bool:
    """Whether the destination did not take this kind, and got another instead (``deliveries.fall_back``)."""
    return row.output.destinations is not None and any(
        other.destination == row.destination and row.destination in (other.output.spare_for or ()) for other in rows
    )


def _take(session: Session, row: Notification, worker: str, lease_s: float, now: datetime) -> ClaimedNotification:
    row.worker, row.leased_until = worker, now + timedelta(seconds=lease_s)
    row.attempts += 1
    audit.transition(session, row, NotificationState.SENDING, reason=f"attempt {row.attempts}, {worker}", now=now)
    job = row.job
    return ClaimedNotification(
        notification_id=row.id,
        name=row.name,
        event=row.event,
        event_id=row.event_id,
        told=row.told,
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


def _wait(session: Session, row: Notification, reason: str, now: datetime) -> None:
    audit.transition(session, row, NotificationState.WAITING, reason=reason, now=now)
    row.leased_until = None


def _mine(session: Session, notification_id: int, worker: str) -> Notification | None:
    """None when the lease lapsed meanwhile: whoever has it now will tell."""
    row = session.get_one(Notification, notification_id, with_for_update=True, populate_existing=True)
    return row if row.state is NotificationState.SENDING and row.worker == worker else None
