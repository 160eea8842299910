"""The audit trail: a hash chain in which no event can be changed, removed or inserted unnoticed.

Events collect in the SQLAlchemy session and are written as the last statements before its commit. The head of the chain
is therefore locked only during the commit, after every other lock: parallel transactions neither wait for each other's
work nor deadlock, and a batch of events costs three statements.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol, cast

from sqlalchemy import Table, bindparam, event, insert, select, update
from sqlalchemy.orm import Session

from db.models import Chain, Event
from db.states import check_transition

__all__ = ["GENESIS", "Break", "act_for", "append", "newest_written", "transition", "verify"]

GENESIS = "0" * 64
_PENDING = "audit.pending"
_WRITTEN = "audit.written"
_account: ContextVar[str] = ContextVar("audit.account", default="")
"""Account on whose request this context works: every event names it, so that no caller can forget it."""


_HEAD = select(Chain.seq, Chain.hash).where(Chain.id == 1).with_for_update()
_INSERT = insert(cast(Table, Event.__table__))
_ADVANCE_HEAD = (
    update(cast(Table, Chain.__table__))
    .where(Chain.id == 1)
    .values(seq=bindparam("head_seq"), hash=bindparam("head_hash"))
)


class _Stateful(Protocol):
    id: Any
    state: Any
    __tablename__: str


@dataclass(frozen=True)
class Break:
    """First event at which the chain does not hold, and the reason."""

    seq: int
    reason: str


@contextmanager
def act_for(account: str) -> Iterator[None]:
    """Let the events that this context adds name an account; "": none."""
    token = _account.set(account)
    try:
        yield
    finally:
        _account.reset(token)


def append(
    session: Session, *, subject: str, subject_id: object, event: str, detail: dict[str, Any], now: datetime
) -> None:
    """Add an event to the transaction; ``detail`` names rows and digests, never a patient.

    Within ``act_for`` the event names the account, too.
    """
    if account := _account.get():
        detail = detail | {"account": account}
    session.info.setdefault(_PENDING, []).append(
        {"at": now, "subject": subject, "subject_id": str(subject_id), "event": event, "detail": detail}
    )


def transition(session: Session, row: _Stateful, new_state: StrEnum, *, reason: str, now: datetime) -> None:
    """Change the row's state and append the event in the same transaction. Raises InvalidTransition."""
    old_state = row.state
    check_transition(old_state, new_state)
    row.state = new_state
    detail = {"from": str(old_state), "to": str(new_state), "reason": reason}
    append(session, subject=row.__tablename__, subject_id=row.id, event="moved", detail=detail, now=now)


def newest_written(session: Session) -> tuple[int, str] | None:
    """Return number and hash of the last event that a commit of this session wrote; None where it wrote none."""
    written: tuple[int, str] | None = session.info.get(_WRITTEN)
    return written


def verify(session: Session) -> Break | None:
    """Check every event of the chain and its head; return the first break, or None."""
    head = session.get_one(Chain, 1)
    with closing(session.scalars(select(Event).order_by(Event.seq).execution_options(yield_per=1000))) as links:
        return _first_break(links, head)


def _first_break(links: Iterable[Event], head: Chain) -> Break | None:
    seq, previous = 0, GENESIS
    for link in links:
        if link.seq != seq + 1:
            return Break(seq + 1, "missing")
        if link.previous != previous:
            return Break(link.seq, "does not follow the one before it")
        if link.hash != _hash(_facts(link), link.seq, previous):
            return Break(link.seq, "was changed after it was written")
        seq, previous = link.seq, link.hash
    return None if (head.seq, head.hash) == (seq, previous) else Break(seq + 1, "missing at the end")


@event.listens_for(Session, "before_commit")
def _write_pending(session: Session) -> None:
    if session.in_nested_transaction() or not session.info.get(_PENDING):
        return
    session.flush()
    pending: list[dict[str, Any]] = session.info.pop(_PENDING)
    connection = session.connection()
    seq, previous = connection.execute(_HEAD).one()
    for link in pending:
        seq += 1
        digest = _hash(link, seq, previous)
        link |= {"seq": seq, "previous": previous, "hash": digest}
        previous = digest
    connection.execute(_INSERT, pending)
    connection.execute(_ADVANCE_HEAD, {"head_seq": seq, "head_hash": previous})
    session.info[_WRITTEN] = seq, previous


@event.listens_for(Session, "after_rollback")
def _forget_pending(session: Session) -> None:
    session.info.pop(_PENDING, None)


def _facts(link: Event) -> dict[str, Any]:
    return {name: getattr(link, name) for name in ("at", "subject", "subject_id", "event", "detail")}


def _hash(facts: dict[str, Any], seq: int, previous: str) -> str:
    moment: datetime = facts["at"]
    words = [seq, moment.astimezone(UTC).isoformat(), facts["subject"], facts["subject_id"], facts["event"]]
    text = json.dumps([*words, facts["detail"], previous], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
