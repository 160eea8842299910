"""Deliveries: leased and retried until the object is at its destination or the configured age is reached."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from db import audit, leases, notifications
from db.models import Delivery, Output
from db.states import DeliveryState

__all__ = [
    "OUTBOX",
    "ClaimedDelivery",
    "claim_due",
    "fall_back",
    "find_spare_classes",
    "give_up_old",
    "mark_delivered",
    "mark_failed",
    "retry",
]

OUTBOX = leases.Outbox(Delivery, Delivery.destination, DeliveryState.WAITING, DeliveryState.SENDING)
_UNFINISHED = (OUTBOX.waiting, OUTBOX.sending)


@dataclass(frozen=True)
class ClaimedDelivery:
    """A delivery under a lease, as plain values: no session is open while the network is used."""

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
    session: Session, *, worker: str, lease_s: float, limit: int, now: datetime, destination: str | None = None
) -> list[ClaimedDelivery]:
    """Claim the waiting deliveries that are due, to the destination or to all, the oldest first."""
    query = OUTBOX.select_due(address=destination, limit=limit, now=now)
    rows = session.scalars(query.options(joinedload(Delivery.output, innerjoin=True))).all()
    for row in rows:
        leases.grant(session, row, DeliveryState.SENDING, worker=worker, lease_s=lease_s, now=now)
    return [_as_claimed(row) for row in rows]


def mark_delivered(session: Session, delivery_id: int, *, worker: str, now: datetime) -> bool:
    """Record that the destination has the object; return False where another worker holds the delivery now."""
    row = _find_held(session, delivery_id, worker)
    if row is None:
        return False
    audit.transition(session, row, DeliveryState.DELIVERED, reason=f"at {row.destination}", now=now)
    row.delivered_at, row.leased_until, row.reason = now, None, ""
    notifications.notify_delivered(session, row.output.job_id, now=now)
    return True


def mark_failed(
    session: Session, delivery_id: int, *, worker: str, reason: str, retry_at: datetime | None, now: datetime
) -> None:
    """Record a failed attempt: the next one is at ``retry_at``, and none follows where that is None."""
    row = _find_held(session, delivery_id, worker)
    if row is None:
        return
    if retry_at is None:
        _give_up(session, row, reason, now)
        return
    leases.postpone(session, row, DeliveryState.WAITING, reason=reason, not_before=retry_at, now=now)


def find_spare_classes(session: Session, destination: str, job_ids: Collection[int]) -> dict[int, set[str]]:
    """Return by job the SOP classes of its spare results for a destination that does not take the first choice."""
    query = select(Output).where(Output.job_id.in_(job_ids), Output.spare_for.is_not(None))
    classes: dict[int, set[str]] = {}
    for output in session.scalars(query):
        if destination in (output.spare_for or ()):
            classes.setdefault(output.job_id, set()).add(output.sop_class_uid)
    return classes


def fall_back(session: Session, job_id: int, destination: str, *, reason: str, now: datetime) -> None:
    """Give up the unfinished deliveries of the job to the destination, and enqueue its spare results instead."""
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
    """Give up every delivery that has waited since before ``created_before``; return how many."""
    rows = OUTBOX.lock_old(session, created_before=created_before)
    for row in rows:
        _give_up(session, row, f"given up: {row.reason or 'never tried'}", now)
    return len(rows)


def retry(session: Session, row: Delivery, *, reason: str, now: datetime) -> None:
    """Enqueue a delivery that was given up anew, with its full time and no attempts."""
    audit.transition(session, row, DeliveryState.WAITING, reason=reason, now=now)
    row.attempts, row.not_before, row.created_at = 0, now, now


def _as_claimed(row: Delivery) -> ClaimedDelivery:
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
    row.reason, row.leased_until = reason, None
    audit.transition(session, row, DeliveryState.GIVEN_UP, reason=reason, now=now)
    notifications.notify_given_up(session, row.output.job_id, row.destination, reason=reason, now=now)


def _find_held(session: Session, delivery_id: int, worker: str) -> Delivery | None:
    return leases.find_held(session, Delivery, delivery_id, DeliveryState.SENDING, worker=worker)
