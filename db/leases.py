"""Leases on rows: a worker holds a row until a moment, and loses it unless it renews or ends the work before.

Jobs, deliveries, notifications and reports on commitments are leased (``base.Leased``). All but jobs are outboxes
besides: rows written with the change that caused them, which wait, are sent under a lease, and wait again after a
failure.
Retrievals have no lease: ``serve`` alone runs them, one after the other, and continues them after a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, TypeVar

from sqlalchemy import Select, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from db import audit
from db.models import CommitmentRequest, Delivery, Job, Notification

__all__ = ["Outbox", "find_held", "give_back", "grant", "lock_lapsed", "postpone"]

Row = TypeVar("Row", Job, Delivery, Notification, CommitmentRequest)
Message = TypeVar("Message", Delivery, Notification, CommitmentRequest)

_SENDER_STOPPED = "its sender stopped"


def grant(session: Session, row: Row, state: StrEnum, *, worker: str, lease_s: float, now: datetime) -> None:
    """Give the row to the worker for ``lease_s`` seconds, as one more attempt, and set the state of leased rows."""
    row.worker, row.leased_until = worker, now + timedelta(seconds=lease_s)
    row.attempts += 1
    audit.transition(session, row, state, reason=f"attempt {row.attempts}, {worker}", now=now)


def give_back(session: Session, row: Row, state: StrEnum, *, reason: str, now: datetime) -> None:
    """End the lease and set the state of waiting rows."""
    audit.transition(session, row, state, reason=reason, now=now)
    row.leased_until = None


def postpone(session: Session, row: Row, state: StrEnum, *, reason: str, not_before: datetime, now: datetime) -> None:
    """End the lease of an attempt that failed for the reason; the next one begins at ``not_before`` or later."""
    give_back(session, row, state, reason=reason, now=now)
    row.reason, row.not_before = reason, not_before


def find_held(session: Session, table: type[Row], row_id: int, state: StrEnum, *, worker: str) -> Row | None:
    """Return the locked row; None where the worker does not hold it any more, as its lease lapsed or the row ended."""
    row = session.get_one(table, row_id, with_for_update=True, populate_existing=True)
    return row if row.state is state and row.worker == worker else None


def lock_lapsed(session: Session, table: type[Row], state: StrEnum, *, now: datetime) -> Sequence[Row]:
    """Return the rows in the state whose leases lapsed before ``now``, locked, the oldest first."""
    return _lock(session, select(table).where(table.state == state, table.leased_until < now).order_by(table.id))


@dataclass(frozen=True)
class Outbox(Generic[Message]):
    """The rows of a table that wait to be sent; ``address``: the column that names the receiver."""

    table: type[Message]
    address: InstrumentedAttribute[str]
    waiting: StrEnum
    sending: StrEnum

    def select_due(self, *, address: str | None, limit: int | None, now: datetime) -> Select[Any]:
        """Return the statement for what waits for the receiver, or for all, and is due; the oldest first, locked."""
        query = select(self.table).where(self.table.state == self.waiting, self.table.not_before <= now)
        query = query if address is None else query.where(self.address == address)
        return query.order_by(self.address, self.table.id).limit(limit).with_for_update(skip_locked=True)

    def lock_old(self, session: Session, *, created_before: datetime) -> Sequence[Message]:
        """Return what was created before that moment and still waits, locked, the oldest first."""
        old = (self.table.state == self.waiting, self.table.created_at < created_before)
        return _lock(session, select(self.table).where(*old).order_by(self.table.id))

    def expire_leases(self, session: Session, *, now: datetime) -> int:
        """Let rows whose leases lapsed wait again, as no answer does not mean not sent; return how many."""
        return self._give_back(session, lock_lapsed(session, self.table, self.sending, now=now), now)

    def reclaim(self, session: Session, *, machine: str, now: datetime) -> int:
        """Let rows that earlier processes of the machine were sending wait again at once; return how many."""
        of_machine = self.table.worker.startswith(f"{machine}:", autoescape=True)
        query = select(self.table).where(self.table.state == self.sending, of_machine).order_by(self.table.id)
        return self._give_back(session, _lock(session, query), now)

    def count_by_state(self, session: Session) -> dict[str, dict[Any, int]]:
        """Return by receiver the number of rows in each state."""
        query = select(self.address, self.table.state, func.count()).group_by(self.address, self.table.state)
        counts: dict[str, dict[Any, int]] = {}
        for address, state, count in session.execute(query):
            counts.setdefault(address, {})[state] = count
        return counts

    def _give_back(self, session: Session, rows: Sequence[Message], now: datetime) -> int:
        for row in rows:
            give_back(session, row, self.waiting, reason=_SENDER_STOPPED, now=now)
        return len(rows)


def _lock(session: Session, query: Select[Any]) -> Sequence[Row]:
    return session.scalars(query.with_for_update(skip_locked=True)).all()
