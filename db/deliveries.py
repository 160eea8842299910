"""Deliveries: leased like jobs, tried until the object is at its destination or the configured age is reached."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session, joinedload

from db import audit, notifications
from db.models import Delivery, Output
from db.states import DeliveryState

__all__ = [
    "ClaimedDelivery",
    "claim_due",
    "count_by_state",
    "expire_leases",
    "fall_back",
    "find_spare_classes",
    "give_up_old",
    "mark_delivered",
    "mark_failed",
    "reclaim",
    "retry",
]

_UNFINISHED = (DeliveryState.WAITING, DeliveryState.SENDING)


@dataclass(frozen=True)
class ClaimedDelivery:
    """A delivery that its claimer has to make, as plain values: no session is open while the network is used."""

    delivery_id: int
    job_id: int
    destination: str
    sop_instance_uid: str
    sop_class_uid: str
    kind: str
    sha256: str
    relative_path: str
    attempts: int
    created_at: datetime


def claim_due(
    session: Session,
    *,
    worker: str,
    lease_s: float,
    limit: int,
    now: datetime,
    destination: str | None = None,
    skip: Sequence[str] = (),
) -> list[ClaimedDelivery]:
    """Claim waiting deliveries whose time has come, oldest first; ``skip`` names destinations to leave alone."""
    query = select(Delivery).where(Delivery.state == DeliveryState.WAITING, Delivery.not_before <= now)
    if destination is not None:
        query = query.where(Delivery.destination == destination)
    if skip:
        query = query.where(Delivery.destination.not_in(skip))
    query = query.order_by(Delivery.destination, Delivery.id).limit(limit).with_for_update(skip_locked=True)
    rows = session.scalars(query.options(joinedload(Delivery.output, innerjoin=True))).all()
    return [_take(session, row, worker, lease_s, now) for row in rows]


def mark_delivered(session: Session, delivery_id: int, *, worker: str, now: datetime) -> None:
    """The destination has it."""
    row = _mine(session, delivery_id, worker)
    if row is not None:
        audit.transition(session, row, DeliveryState.DELIVERED, reason=f"at {row.destination}", now=now)
        row.delivered_at, row.leased_until, row.reason = now, None, ""
        notifications.notify_delivered(session, row.output.job_id, now=now)


def mark_failed(
    session: Session, delivery_id: int, *, worker: str, reason: str, retry_at: datetime | None, now: datetime
) -> None:
    """It is not there: try again at ``retry_at``, or never when that is None."""
    row = _mine(session, delivery_id, worker)
    if row is None:
        return
    row.reason, row.leased_until = reason, None
    if retry_at is None:
        _give_up(session, row, reason, now)
        return
    audit.transition(session, row, DeliveryState.WAITING, reason=reason, now=now)
    row.not_before = retry_at


def find_spare_classes(session: Session, destination: str, job_ids: Collection[int]) -> dict[int, set[str]]:
    """By job the SOP classes that lie ready for the destination, should it not take what is for it."""
    query = select(Output).where(Output.job_id.in_(job_ids), Output.spare_for.is_not(None))
    found: dict[int, set[str]] = {}
    for output in session.scalars(query):
        if destination in (output.spare_for or ()):
            found.setdefault(output.job_id, set()).add(output.sop_class_uid)
    return found


def fall_back(session: Session, job_id: int, destination: str, *, reason: str, now: datetime) -> None:
    """Give up what is for the destination and not there yet, and send what lies ready for it instead."""
    for output in session.scalars(select(Output).where(Output.job_id == job_id).order_by(Output.id)):
        rows = [row for row in output.deliveries if row.destination == destination]
        spare = destination in (output.spare_for or ())
        if spare and not rows:
            output.deliveries.append(Delivery(destination=destination, not_before=now, created_at=now))
        for row in rows:
            if not spare and output.destinations is not None and row.state in _UNFINISHED:
                row.reason, row.leased_until = reason, None
                audit.transition(session, row, DeliveryState.GIVEN_UP, reason=reason, now=now)


def give_up_old(session: Session, *, created_before: datetime, now: datetime) -> int:
    """Give up on everything that has waited since before ``created_before``."""
    query = select(Delivery).where(Delivery.state == DeliveryState.WAITING, Delivery.created_at < created_before)
    rows = session.scalars(query.order_by(Delivery.id).with_for_update(skip_locked=True)).all()
    for row in rows:
        row.reason = f"given up: {row.reason or 'never tried'}"
        _give_up(session, row, row.reason, now)
    return len(rows)


def expire_leases(session: Session, *, now: datetime) -> int:
    """Deliveries whose sender died: no answer does not mean not stored, so they are sent again."""
    query = select(Delivery).where(Delivery.state == DeliveryState.SENDING, Delivery.leased_until < now)
    rows = session.scalars(query.order_by(Delivery.id).with_for_update(skip_locked=True)).all()
    for row in rows:
        audit.transition(session, row, DeliveryState.WAITING, reason="its sender stopped", now=now)
        row.leased_until = None
    return len(rows)


def reclaim(session: Session, *, machine: str, now: datetime) -> int:
    """Take back what earlier processes of this machine were sending, without waiting for their leases."""
    mine = Delivery.worker.startswith(f"{machine}:", autoescape=True)
    query = select(Delivery).where(Delivery.state == DeliveryState.SENDING, mine).order_by(Delivery.id)
    rows = session.scalars(query.with_for_update(skip_locked=True)).all()
    for row in rows:
        audit.transition(session, row, DeliveryState.WAITING, reason="its sender stopped", now=now)
        row.leased_until = None
    return len(rows)


def retry(session: Session, row: Delivery, *, reason: str, now: datetime) -> None:
    """Start again with one that was given up."""
    audit.transition(session, row, DeliveryState.WAITING, reason=reason, now=now)
    row.attempts, row.not_before, row.created_at = 0, now, now


def count_by_state(session: Session) -> dict[str, dict[DeliveryState, int]]:
    """Per destination the number of deliveries in each state."""
    query = select(Delivery.destination, Delivery.state, func.count()).group_by(Delivery.destination, Delivery.state)
    found: dict[str, dict[DeliveryState, int]] = {}
    for destination, state, count in session.execute(query):
        found.setdefault(destination, {})[state] = count
    return found


def _take(session: Session, row: Delivery, worker: str, lease_s: float, now: datetime) -> ClaimedDelivery:
    row.worker, row.leased_until = worker, now + timedelta(seconds=lease_s)
    row.attempts += 1
    audit.transition(session, row, DeliveryState.SENDING, reason=f"attempt {row.attempts}, {worker}", now=now)
    output: Output = row.output
    return ClaimedDelivery(
        delivery_id=row.id,
        job_id=output.job_id,
        destination=row.destination,
        sop_instance_uid=output.sop_instance_uid,
        sop_class_uid=output.sop_class_uid,
        kind=output.kind,
        sha256=output.sha256,
        relative_path=output.relative_path,
        attempts=row.attempts,
        created_at=row.created_at,
    )


def _give_up(session: Session, row: Delivery, reason: str, now: datetime) -> None:
    audit.transition(session, row, DeliveryState.GIVEN_UP, reason=reason, now=now)
    notifications.notify_given_up(session, row.output.job_id, row.destination, reason=reason, now=now)


def _mine(session: Session, delivery_id: int, worker: str) -> Delivery | None:
    """None when the lease lapsed meanwhile: whoever has it now will tell."""
    row = session.get_one(Delivery, delivery_id, with_for_update=True, populate_existing=True)
    return row if row.state is DeliveryState.SENDING and row.worker == worker else None
