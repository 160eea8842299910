"""The circuit breaker of each destination.

Its state is the newest of its events in the audit trail, so it survives a restart and an outage is on record.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from db import audit
from db.models import Delivery, Event
from db.states import DeliveryState

__all__ = [
    "Breaker",
    "find_accepted_classes",
    "load_breaker",
    "record_accepted_classes",
    "record_failure",
    "record_success",
]

_SUBJECT = "destination"
_CLASSES = "destination classes"


@dataclass(frozen=True)
class Breaker:
    """``failures`` in a row, the last one at ``failed_at``; nothing is sent before ``open_until``, and then little.

    After the clock was set back to before ``failed_at`` it counts as closed: the time that is left is not known.
    """

    failures: int = 0
    open_until: datetime | None = None
    failed_at: datetime | None = None

    def is_open(self, now: datetime) -> bool:
        if self.open_until is None or (self.failed_at is not None and now < self.failed_at):
            return False
        return now < self.open_until


def load_breaker(session: Session, destination: str) -> Breaker:
    """The breaker as the last attempt left it."""
    mine = select(Event.detail, Event.at).where(Event.subject == _SUBJECT, Event.subject_id == destination)
    newest = session.execute(mine.order_by(Event.seq.desc()).limit(1)).first()
    if newest is None or not newest.detail.get("failures"):
        return Breaker()
    until = newest.detail.get("open_until")
    return Breaker(int(newest.detail["failures"]), datetime.fromisoformat(until) if until else None, newest.at)


def record_failure(
    session: Session, destination: str, *, threshold: int, open_s: float, open_max_s: float, now: datetime
) -> Breaker:
    """One more failure in a row: from ``threshold`` on the breaker opens, twice as long each time."""
    failures = load_breaker(session, destination).failures + 1
    until = None
    if failures >= threshold:
        doublings = min(failures - threshold, 30)
        until = now + timedelta(seconds=min(open_s * 2.0**doublings, open_max_s))
    detail = {"failures": failures, "open_until": until.isoformat() if until else None}
    audit.append(session, subject=_SUBJECT, subject_id=destination, event="unreachable", detail=detail, now=now)
    return Breaker(failures, until, now)


def find_accepted_classes(session: Session, destination: str) -> frozenset[str] | None:
    """The SOP classes that the destination took when it was last asked; None: it never was."""
    mine = select(Event.detail).where(Event.subject == _CLASSES, Event.subject_id == destination)
    detail = session.scalars(mine.order_by(Event.seq.desc()).limit(1)).first()
    return None if detail is None else frozenset(map(str, detail.get("taken", ())))


def record_accepted_classes(session: Session, destination: str, classes: Collection[str], *, now: datetime) -> None:
    """What it takes of what it was asked for, on record when it is news."""
    if find_accepted_classes(session, destination) != frozenset(classes):
        detail = {"taken": sorted(classes)}
        audit.append(session, subject=_CLASSES, subject_id=destination, event="negotiated", detail=detail, now=now)


def record_success(session: Session, destination: str, *, now: datetime) -> None:
    """It answers. After failures the breaker closes and what waited for the destination is due at once."""
    if not load_breaker(session, destination).failures:
        return
    audit.append(session, subject=_SUBJECT, subject_id=destination, event="reachable", detail={"failures": 0}, now=now)
    waiting = update(Delivery).where(Delivery.state == DeliveryState.WAITING, Delivery.destination == destination)
    session.execute(waiting.where(Delivery.not_before > now).values(not_before=now))
