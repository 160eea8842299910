"""Names of accounts in forms and records: each is of one account, and a change is an event."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Engine, event, select
from sqlalchemy.orm import Session, sessionmaker

from db import accounts
from db import engine as engines
from db.models import Account, Event
from db.states import Role
from dicomnode.accounts import entering, managing
from dicomnode.accounts.oidc import Identity
from dicomnode.errors import NotAllowed
from tests import databases
from tests.postgresql import Server

ISSUER = "https://idp.example"


def enter(sessions: sessionmaker[Session], subject: str, display_name: str, now: datetime) -> str:
    """Log a person in; return their name in forms and records."""
    name = entering.enter(sessions, ISSUER, Identity(subject, display_name, Role.VIEWER), now)
    with sessions() as session:
        account = accounts.find(session, name)
        assert account is not None
        return account.display_name


def find_events(sessions: sessionmaker[Session], name: str) -> list[dict[str, Any]]:
    with sessions() as session:
        return list(session.scalars(select(Event.detail).where(Event.event == name)))


def test_a_new_name_is_an_event_with_the_old_one(sessions: sessionmaker[Session], now: datetime) -> None:
    for name in ("Anna Beta", "Anna Beta", "Anna Gamma"):
        assert enter(sessions, "1", name, now) == name
    [detail] = find_events(sessions, "renamed")
    assert detail == {"who": ISSUER, "from": "Anna Beta", "to": "Anna Gamma", "account": "oidc:1"}


@pytest.mark.parametrize("proposed", ["Anna Beta", "ANNA  BETA", "\uff21nna Beta", "otto", "oidc:1", "Node Token"])
def test_a_name_of_another_account_gets_digits_of_its_own(
    sessions: sessionmaker[Session], now: datetime, proposed: str
) -> None:
    with sessions.begin() as session:
        accounts.add(session, name="otto", display_name="otto", role=Role.VIEWER, by="root", now=now)
    enter(sessions, "1", "Anna Beta", now)
    other = enter(sessions, "2", proposed, now)
    assert other.startswith(f"{proposed} (")
    assert len(other) == len(proposed) + 11
    assert enter(sessions, "2", proposed, now) == other
    assert find_events(sessions, "renamed") == []


def test_a_name_that_is_given_up_is_not_taken_over(sessions: sessionmaker[Session], now: datetime) -> None:
    enter(sessions, "1", "Anna Beta", now)
    other = enter(sessions, "2", "Anna Beta", now)
    enter(sessions, "1", "Anna Gamma", now)
    assert enter(sessions, "2", "Anna Beta", now) == other


def test_a_long_name_with_digits_is_no_longer_than_a_form_takes(sessions: sessionmaker[Session], now: datetime) -> None:
    names = {enter(sessions, subject, "A" * 40, now) for subject in "12"}
    assert sorted(map(len, names)) == [40, 40]


def test_no_local_account_has_the_name_of_a_person(sessions: sessionmaker[Session], now: datetime) -> None:
    enter(sessions, "1", "Olga", now)
    with sessions.begin() as session, pytest.raises(NotAllowed, match="olga is the name that another account has"):
        managing.add(session, "olga", Role.VIEWER, "correct horse battery", by="root", now=now)


def test_of_two_first_log_ins_at_once_both_succeed(postgresql_server: Server, now: datetime) -> None:
    """On SQLite the second waits before it looks for the account."""
    with databases.copy_postgresql(postgresql_server) as url:
        engine = engines.connect(url)
        sessions, found = engines.sessions(engine), list[str]()
        with sessions.begin() as session:
            facts: dict[str, Any] = {"role": Role.VIEWER, "issuer": ISSUER, "by": ISSUER, "now": now}
            accounts.add(session, name="oidc:1", display_name="Anna Beta", **facts)
            thread = threading.Thread(target=lambda: found.append(enter(sessions, "1", "Anna Beta", now)))
            adds = wait_for_insert(engine)
            thread.start()
            assert adds.wait(60), "the other has not found the account, and adds it"
        thread.join()
        assert found == ["Anna Beta"]
        with sessions() as session:
            assert session.scalars(select(Account.name)).all() == ["oidc:1"]
        engine.dispose()


def wait_for_insert(engine: Engine) -> threading.Event:
    """Return an event that is set when the next account is about to be inserted."""
    adds = threading.Event()

    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if "INSERT INTO accounts" in statement:
            adds.set()

    event.listen(engine, "before_cursor_execute", note)
    return adds
