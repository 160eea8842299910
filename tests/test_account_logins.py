"""What happens about a log-in: what is logged, which sessions end, and databases that refuse."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from db import accounts
from dicomnode.accounts import managing, passwords
from tests.account_node import PASSWORD, cookie_of, find_events, log_in, run_node
from tests.web_node import Web

pytestmark = pytest.mark.slow


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Web]:
    with run_node(tmp_path) as web:
        yield web


def test_no_name_reaches_the_database_that_it_refuses(site: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(accounts, "find", lambda session, name: names.append(name))
    assert log_in(site, "otto\0").status_code == 401
    assert names == ["otto?"]


def test_reading_goes_on_where_the_database_takes_no_writes(site: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OperationalError("UPDATE", {}, Exception("database or disk is full"))

    cookie = cookie_of(site, "otto")
    site.now += timedelta(minutes=2)
    monkeypatch.setattr(accounts, "mark_seen", fail)
    assert site.client.get("/", headers=cookie).status_code == 200


def test_a_refused_log_in_is_in_the_log_with_name_and_address(site: Web, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="dicomnode.web.account_login"):
        assert log_in(site, "otto", "a wrong password").status_code == 401
        assert log_in(site, "no\nbody", "a wrong password").status_code == 401
    lines = [record.getMessage() for record in caplog.records if "log-in" in record.getMessage()]
    assert [line.split(" from ")[0] for line in lines] == ["web: a log-in as 'otto'", "web: a log-in as 'no\\nbody'"]


def test_log_ins_that_wait_are_an_event(site: Web) -> None:
    assert [log_in(site, "otto", "wrong").status_code for _ in range(12)] == [401] * 10 + [429] * 2
    [event] = find_events(site, "accounts", "throttled")
    assert event.subject_id == "otto"
    assert event.detail == {"address": "127.0.0.1", "limits": ["10 attempts by account and address"]}


def test_a_password_that_changes_during_the_log_in_opens_no_session(site: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = passwords.verify

    def change_after(password_hash: str, password: str) -> bool:
        found = verify(password_hash, password)
        with site.sessions.begin() as session:
            managing.change_password(session, "otto", "another long password", by="root", now=site.now)
        return found

    monkeypatch.setattr(passwords, "verify", change_after)
    assert log_in(site, "otto").status_code == 401


def test_a_log_in_ends_the_session_that_the_browser_had(site: Web) -> None:
    first = cookie_of(site, "otto")
    assert site.client.get("/", headers=first).status_code == 200
    form = {"name": "otto", "password": PASSWORD, "next": "/"}
    assert site.client.post("/login", data=form, headers=first, follow_redirects=False).status_code == 303
    site.client.cookies.clear()
    assert site.client.get("/", headers=first, follow_redirects=False).status_code != 200
