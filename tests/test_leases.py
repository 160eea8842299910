"""Leases on rows, and outboxes: one holder at a time, and what its holder lost waits again."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy.orm import Session, sessionmaker

from db import leases
from db.models import Notification
from db.notifications import OUTBOX
from db.states import NotificationState
from tests.rows import add_job

WAITING, SENDING = NotificationState.WAITING, NotificationState.SENDING
LEASE_S = 60.0


def add_notification(session: Session, now: datetime, name: str = "ward", study: str = "1.2.1") -> Notification:
    """Add a notification that is due."""
    job = add_job(session, now, study=study)
    row = Notification(
        job_id=job.id, name=name, event="held", run_at=now, event_id="1", message="", created_at=now, not_before=now
    )
    session.add(row)
    session.flush()
    return row


def grant(session: Session, row: Notification, now: datetime, worker: str = "host:1") -> None:
    leases.grant(session, row, SENDING, worker=worker, lease_s=LEASE_S, now=now)


def list_due(session: Session, now: datetime, address: str | None = None, limit: int = 10) -> list[str]:
    """Return the receivers of what is due, in the order in which it is sent."""
    statement = OUTBOX.select_due(address=address, limit=limit, now=now)
    return [row.name for row in session.scalars(statement)]


def test_a_granted_row_is_held_by_its_worker_alone(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        row = add_notification(session, now)
        grant(session, row, now)
        assert (row.attempts, row.worker, row.leased_until) == (1, "host:1", now + timedelta(seconds=LEASE_S))
        assert leases.find_held(session, Notification, row.id, SENDING, worker="host:1") is row
        assert leases.find_held(session, Notification, row.id, SENDING, worker="host:2") is None
        assert leases.find_held(session, Notification, row.id, WAITING, worker="host:1") is None


def test_a_row_that_was_given_back_is_held_by_nobody(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        row = add_notification(session, now)
        grant(session, row, now)
        leases.give_back(session, row, WAITING, reason="its sender stopped", now=now)
        assert row.leased_until is None
        assert leases.find_held(session, Notification, row.id, SENDING, worker="host:1") is None
        assert list_due(session, now) == ["ward"]


def test_a_lease_lapses_after_its_end_and_not_at_it(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        row = add_notification(session, now)
        grant(session, row, now)
        end = now + timedelta(seconds=LEASE_S)
        assert leases.lock_lapsed(session, Notification, SENDING, now=end) == []
        assert leases.lock_lapsed(session, Notification, SENDING, now=end + timedelta(microseconds=1)) == [row]
        assert leases.lock_lapsed(session, Notification, WAITING, now=end + timedelta(days=1)) == []


def test_what_a_worker_lost_waits_again_and_counts_its_attempts(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        row = add_notification(session, now)
        grant(session, row, now)
        assert OUTBOX.expire_leases(session, now=now) == 0
        later = now + timedelta(seconds=LEASE_S + 1)
        assert OUTBOX.expire_leases(session, now=later) == 1
        assert (row.state, row.leased_until) == (WAITING, None)
        grant(session, row, later)
        assert row.attempts == 2


def test_a_postponed_row_is_due_at_its_moment(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        row = add_notification(session, now)
        grant(session, row, now)
        due = now + timedelta(minutes=5)
        leases.postpone(session, row, WAITING, reason="no answer", not_before=due, now=now)
        assert row.reason == "no answer"
        assert list_due(session, due - timedelta(seconds=1)) == []
        assert list_due(session, due) == ["ward"]


def test_what_is_due_comes_by_receiver_within_the_limit(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        for number, name in enumerate(["ward", "archive", "ward"]):
            add_notification(session, now, name, study=f"1.2.{number}")
        assert list_due(session, now) == ["archive", "ward", "ward"]
        assert list_due(session, now, limit=2) == ["archive", "ward"]
        assert list_due(session, now, address="ward") == ["ward", "ward"]


def test_what_is_being_sent_is_not_due(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        grant(session, add_notification(session, now), now)
        assert list_due(session, now + timedelta(days=1)) == []


@pytest.mark.parametrize("machine", ["host_1", "host%"])
def test_a_machine_takes_back_its_own_rows_only(sessions: sessionmaker[Session], now: datetime, machine: str) -> None:
    """An underscore and a percent sign in a host's name are characters, not wildcards."""
    with sessions.begin() as session:
        own = add_notification(session, now, study="1.2.1")
        others = add_notification(session, now, study="1.2.2")
        grant(session, own, now, worker=f"{machine}:17")
        grant(session, others, now, worker="hostx1:17")
        assert OUTBOX.reclaim(session, machine=machine, now=now) == 1
        assert (own.state, others.state) == (WAITING, SENDING)


def test_old_rows_are_those_that_wait_since_before_the_moment(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        row = add_notification(session, now)
        assert OUTBOX.lock_old(session, created_before=now) == []
        assert OUTBOX.lock_old(session, created_before=now + timedelta(seconds=1)) == [row]
        grant(session, row, now)
        assert OUTBOX.lock_old(session, created_before=now + timedelta(seconds=1)) == []


def test_two_senders_do_not_get_the_same_row(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        add_notification(session, now)
    with sessions() as first, sessions() as second:
        if first.get_bind().dialect.name == "sqlite":
            pytest.skip("SQLite has one writer at a time and no row locks")
        assert list_due(first, now) == ["ward"]
        assert list_due(second, now) == []


def test_counts_are_by_receiver_and_state(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        grant(session, add_notification(session, now, "ward", study="1.2.1"), now)
        add_notification(session, now, "ward", study="1.2.2")
        add_notification(session, now, "archive", study="1.2.3")
        counts = OUTBOX.count_by_state(session)
        assert counts == {"ward": {SENDING: 1, WAITING: 1}, "archive": {WAITING: 1}}
