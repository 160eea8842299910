"""Correction of leases and due times when the clock is set (NTP, a restored snapshot, a machine that slept).

Moments in rows are compared with the clock. After it was set by an hour, a lease would lapse at once or hold for an
hour too long, a delivery would wait for an hour, and a study that is still being received would be complete.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import audit
from db.models import CommitmentRequest, Delivery, Event, Job, Notification, Proof, Retrieval, Study
from db.states import DeliveryState, JobState, NotificationState, ProofState, ReportState, RetrievalState, StudyState

__all__ = ["ClockWatch", "grant_leases", "measure_time_lost", "shift_open_rows"]

log = logging.getLogger("dicomnode.clock")

TOLERANCE = timedelta(seconds=5)
"""Smallest step that is corrected: NTP slews far less between two checks, and a smaller step does no harm."""

_LEASED: tuple[tuple[Any, Any], ...] = (
    (Job, JobState.RUNNING),
    (Delivery, DeliveryState.SENDING),
    (Notification, NotificationState.SENDING),
    (CommitmentRequest, ReportState.SENDING),
)
_AGE = "created_at"
_OPEN: tuple[tuple[Any, tuple[Any, ...], tuple[str, ...]], ...] = (
    (Study, (StudyState.RECEIVING, StudyState.COMPLETE), ("opened_at", "last_received_at", "completed_at")),
    (Job, (JobState.READY,), ("not_before",)),
    (Delivery, (DeliveryState.WAITING,), ("not_before", _AGE)),
    (Notification, (NotificationState.WAITING,), ("not_before", _AGE)),
    (CommitmentRequest, (ReportState.WAITING,), ("not_before", _AGE)),
    (Proof, (ProofState.SENT,), ("not_before", "begun_at")),
    (Retrieval, (RetrievalState.WANTED, RetrievalState.FETCHING), ("not_before", "created_at", "found_at")),
)


class ClockWatch:
    """Comparison of the clock with the monotonic one, which corrects the rows when the clock was set.

    ``moves_rows``: True where this process shifts the open rows, which one process of a database does. Every process
    grants the leases anew, which may be done twice.
    """

    def __init__(
        self,
        sessions: sessionmaker[Session],
        now: Callable[[], datetime],
        *,
        lease_s: float,
        moves_rows: bool,
        passed_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sessions, self._now, self._lease_s, self._moves_rows = sessions, now, lease_s, moves_rows
        self._passed_s, self._lock = passed_s, threading.Lock()
        self._last = now(), passed_s()

    def check(self) -> None:
        """Correct the rows if the clock was set since the last call; call this before comparing rows with the clock."""
        with self._lock:
            now, passed_s = self._now(), self._passed_s()
            jump = now - self._last[0] - timedelta(seconds=passed_s - self._last[1])
            if abs(jump) >= TOLERANCE:
                self._correct(jump, now)
            self._last = now, passed_s

    def _correct(self, jump: timedelta, now: datetime) -> None:
        with self._sessions.begin() as session:
            grant_leases(session, lease_s=self._lease_s, now=now)
            if self._moves_rows:
                shift_open_rows(session, jump, now=now)
        log.warning("the clock was set by %+.0f s; leases and due times follow it", jump.total_seconds())


def measure_time_lost(session: Session, *, now: datetime) -> timedelta:
    """Return the time by which the clock is behind the newest event, as a negative time; zero where it is not."""
    newest = session.scalar(select(Event.at).order_by(Event.seq.desc()).limit(1))
    return min(now - newest, timedelta(0)) if newest is not None else timedelta(0)


def grant_leases(session: Session, *, lease_s: float, now: datetime) -> None:
    """Extend every lease to its full length from now."""
    for table, state in _LEASED:
        for row in session.scalars(select(table).where(table.state == state).with_for_update(skip_locked=True)):
            row.leased_until = now + timedelta(seconds=lease_s)


def _makes_older(table: Any, column: str, jump: timedelta) -> bool:
    """Return whether the shift would let a message be given up early once the clock is right again."""
    return table in (Delivery, Notification, CommitmentRequest) and column == _AGE and jump < timedelta(0)


def shift_open_rows(session: Session, jump: timedelta, *, now: datetime) -> None:
    """Shift the moments of open rows by the time by which the clock was set.

    The event tells it, and is the newest one then, so that ``time_lost`` does not find the same time once more.
    """
    for table, states, columns in _OPEN:
        for row in session.scalars(select(table).where(table.state.in_(states)).with_for_update(skip_locked=True)):
            for column in columns:
                if (moment := getattr(row, column)) is not None and not _makes_older(table, column, jump):
                    setattr(row, column, moment + jump)
    detail = {"reason": f"by {jump.total_seconds():+.0f} s"}
    audit.append(session, subject="clock", subject_id="", event="set", detail=detail, now=now)
