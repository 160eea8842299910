"""Circuit breaker of each destination, and the SOP classes that it accepts.

The state is the newest of the destination's events in the audit trail. It survives a restart, and outages are recorded.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

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
    "try_now",
]

_SUBJECT = "destination"
_CLASSES = "destination classes"


@dataclass(frozen=True)
class Breaker:
    """Number of ``failures`` in a row, the last at ``failed_at``, for that ``reason``.

    Nothing is sent before ``open_until``, then a probe.

    After the clock was set back to before ``failed_at`` the breaker counts as closed: the time left is not known.
    """

    failures: int = 0
    open_until: datetime | None = None
    failed_at: datetime | None = None
    reason: str = ""

    def is_open(self, now: datetime) -> bool:
        """Return whether nothing may be sent now."""
        if self.open_until is None or (self.failed_at is not None and now < self.failed_at):
            return False
        return now < self.open_until


def load_breaker(session: Session, destination: str) -> Breaker:
    """Return the breaker as the last attempt left it."""
    mine = select(Event.detail, Event.at).where(Event.subject == _SUBJECT, Event.subject_id == destination)
    newest = session.execute(mine.order_by(Event.seq.desc()).limit(1)).first()
    if newest is None or not newest.detail.get("failures"):
        return Breaker()
    until = newest.detail.get("open_until")
    open_until = datetime.fromisoformat(until) if until else None
    return Breaker(int(newest.detail["failures"]), open_until, newest.at, str(newest.detail.get("reason", "")))


def record_failure(
    session: Session,
    destination: str,
    *,
    threshold: int,
    open_s: float,
    open_max_s: float,
    reason: str = "",
    now: datetime,
) -> Breaker:
    """Record one more failure in a row: from ``threshold`` on the breaker opens, twice as long each time."""
    failures = load_breaker(session, destination).failures + 1
    until = None
    if failures >= threshold:
        doublings = min(failures - threshold, 30)
        until = now + timedelta(seconds=min(open_s * 2.0**doublings, open_max_s))
    detail = {"failures": failures, "open_until": until.isoformat() if until else None, "reason": reason}
    audit.append(session, subject=_SUBJECT, subject_id=destination, event="unreachable", detail=detail, now=now)
    return Breaker(failures, until, now, reason)


def find_accepted_classes(session: Session, destination: str) -> frozenset[str] | None:
    """Return the SOP classes that the destination accepted in its last negotiation; None without one."""
    mine = select(Event.detail).where(Event.subject == _CLASSES, Event.subject_id == destination)
    detail = session.scalars(mine.order_by(Event.seq.desc()).limit(1)).first()
    return None if detail is None else frozenset(map(str, detail.get("taken", ())))


def record_accepted_classes(session: Session, destination: str, classes: Collection[str], *, now: datetime) -> None:
    """Record the SOP classes that the destination accepts, where they differ from those on record."""
    if find_accepted_classes(session, destination) != frozenset(classes):
        detail = {"taken": sorted(classes)}
        audit.append(session, subject=_CLASSES, subject_id=destination, event="negotiated", detail=detail, now=now)


def record_success(session: Session, destination: str, *, now: datetime) -> None:
    """Record that the destination answers: the breaker closes, and deliveries that wait are due at once."""
    if not load_breaker(session, destination).failures:
        return
    audit.append(session, subject=_SUBJECT, subject_id=destination, event="reachable", detail={"failures": 0}, now=now)
    _make_due(session, destination, now)


def try_now(session: Session, destination: str, *, reason: str, now: datetime) -> int:
    """Close the breaker until the next attempt, and make the deliveries that wait due; return their number."""
    breaker = load_breaker(session, destination)
    detail = {"failures": breaker.failures, "open_until": None, "reason": breaker.reason, "by": reason}
    audit.append(session, subject=_SUBJECT, subject_id=destination, event="tried again", detail=detail, now=now)
    return _make_due(session, destination, now)


def _make_due(session: Session, destination: str, now: datetime) -> int:
    waiting = update(Delivery).where(Delivery.state == DeliveryState.WAITING, Delivery.destination == destination)
    done: Any = session.execute(waiting.where(Delivery.not_before > now).values(not_before=now))
    return int(done.rowcount)
