"""Accounts: passwords, names, changes in the audit trail, on both databases; the command; limits of attempts."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import accounts, audit
from db import engine as engines
from db.models import Account, Event, WebSession
from db.states import Role
from dicomnode import cli, config
from dicomnode.accounts import managing, passwords
from dicomnode.config.web import WebConfig
from dicomnode.errors import InputRefused, NotAllowed, NotFound
from dicomnode.web import template_filters
from dicomnode.web.login_throttle import LoginThrottle
from tests import databases
from tests.peers import write_config

HOUR = timedelta(hours=1)
Change = Callable[[Session, str, datetime], object]


def test_a_role_includes_those_below_it() -> None:
    assert [Role.OPERATOR.includes(role) for role in Role] == [True, True, False]


@pytest.mark.slow
def test_a_password_matches_itself_only_and_is_not_in_its_hash() -> None:
    hashed = passwords.hash_password("correct horse battery")
    assert hashed.startswith("$argon2id$")
    assert "correct" not in hashed
    assert passwords.verify(hashed, "correct horse battery")
    assert not passwords.verify(hashed, "correct horse batterx")
    assert not passwords.verify("", "correct horse battery")
    assert not passwords.verify("no hash", "correct horse battery")


@pytest.mark.slow
def test_one_password_matches_however_a_keyboard_writes_it() -> None:
    hashed = passwords.hash_password(unicodedata.normalize("NFC", "zwölf Boxkämpfer"))
    assert passwords.verify(hashed, unicodedata.normalize("NFD", "zwölf Boxkämpfer"))


@pytest.mark.parametrize("password", ["", "eleven char", "x" * 257, " correct horse battery", "correct horse\n"])
def test_a_password_that_no_form_can_send_or_anybody_guesses_is_refused(password: str) -> None:
    with pytest.raises(InputRefused, match="a password"):
        passwords.hash_password(password)


@pytest.mark.parametrize("name", ["", "Anna", "an na", "-anna", "oidc:1", "node token", "x" * 41, "änne"])
def test_a_name_of_other_characters_is_refused(name: str, tmp_path: Path, now: datetime) -> None:
    engine = engines.connect(databases.copy_sqlite(tmp_path / "node.sqlite"))
    with engines.sessions(engine).begin() as session, pytest.raises(InputRefused, match="the name of an account"):
        managing.add(session, name, Role.VIEWER, "correct horse battery", by="root", now=now)
    engine.dispose()


def add(session: Session, name: str, now: datetime, *, issuer: str = "") -> Account:
    return accounts.add(
        session, name=name, display_name=name, role=Role.OPERATOR, password_hash="x", issuer=issuer, by="root", now=now
    )


def test_every_change_is_in_the_audit_trail_with_who_made_it(sessions: sessionmaker[Session], now: datetime) -> None:
    changes: dict[str, Change] = {
        "role_changed": lambda session, name, at: managing.change_role(session, name, Role.VIEWER, by="root", now=at),
        "token_made": lambda session, name, at: managing.make_token(session, name, by="root", now=at),
        "token_revoked": lambda session, name, at: managing.revoke_token(session, name, by="root", now=at),
        "disabled": lambda session, name, at: managing.disable(session, name, by="root", now=at),
        "enabled": lambda session, name, at: managing.enable(session, name, by="root", now=at),
        "password_changed": lambda session, name, at: managing.change_password(
            session, name, "correct horse battery", by="root", now=at
        ),
    }
    with sessions.begin() as session:
        add(session, "otto", now)
    for change in changes.values():
        with sessions.begin() as session:
            change(session, "otto", now)
    with sessions() as session:
        events = session.scalars(select(Event).where(Event.subject == "accounts").order_by(Event.seq)).all()
        assert [each.event for each in events] == ["added", *changes]
        assert {(each.subject_id, each.detail["who"]) for each in events} == {("otto", "root")}
        assert audit.verify(session) is None
        assert "horse" not in json.dumps([each.detail for each in events])


def test_what_a_request_causes_names_its_account(sessions: sessionmaker[Session], now: datetime) -> None:
    with audit.act_for("anna"), sessions.begin() as session:
        audit.append(session, subject="jobs", subject_id=1, event="moved", detail={"reason": "x"}, now=now)
    with sessions.begin() as session:
        audit.append(session, subject="jobs", subject_id=2, event="moved", detail={"reason": "x"}, now=now)
    with sessions() as session:
        details = [each.detail for each in session.scalars(select(Event).order_by(Event.seq))]
        assert details == [{"reason": "x", "account": "anna"}, {"reason": "x"}]
        assert audit.verify(session) is None


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("a slice is missing", "Job 1 held → routed: a slice is missing, by li"),
        ("released by li: fine", "Job 1 held → routed: released by li: fine"),
        ("released by li.wei: fine", "Job 1 held → routed: released by li.wei: fine, by li"),
    ],
)
def test_the_person_behind_an_event_is_not_hidden_by_a_text_with_their_letters(reason: str, text: str) -> None:
    detail = {"from": "held", "to": "routed", "reason": reason, "account": "li"}
    event = Event(subject="jobs", subject_id="1", event="moved", detail=detail)
    assert template_filters.describe_event(event) == text


def test_a_log_in_names_its_account_once() -> None:
    event = Event(subject="accounts", subject_id="otto", event="logged_in", detail={"account": "otto"})
    assert template_filters.describe_event(event) == "Account otto logged in"


def test_a_session_ends_at_its_end_without_requests_and_with_its_account(
    sessions: sessionmaker[Session], now: datetime
) -> None:
    def is_open(at: datetime) -> bool:
        with sessions() as session:
            return accounts.find_session(session, "d" * 64, idle=HOUR, now=at) is not None

    with sessions.begin() as session:
        accounts.open_session(session, add(session, "otto", now), "d" * 64, length=12 * HOUR, now=now)
    assert is_open(now)
    assert not is_open(now + HOUR)
    with sessions.begin() as session:
        accounts.mark_seen(session, "d" * 64, now + 11.5 * HOUR)
    assert is_open(now + 11.9 * HOUR)
    assert not is_open(now + 12 * HOUR)
    with sessions.begin() as session:
        account = accounts.find(session, "otto")
        assert account is not None
        account.disabled_at = now
    assert not is_open(now + 11.9 * HOUR)


@pytest.mark.parametrize("change", ["role", "disable", "password"])
def test_a_change_of_rights_ends_the_sessions_of_that_account_only(
    sessions: sessionmaker[Session], now: datetime, change: str
) -> None:
    with sessions.begin() as session:
        for letter, name in (("a", "otto"), ("b", "vera")):
            accounts.open_session(session, add(session, name, now), letter * 64, length=HOUR, now=now)
    with sessions.begin() as session:
        if change == "role":
            managing.change_role(session, "otto", Role.ADMINISTRATOR, by="root", now=now)
        elif change == "disable":
            managing.disable(session, "otto", by="root", now=now)
        else:
            managing.change_password(session, "otto", "another long password", by="root", now=now)
    with sessions() as session:
        assert [row.digest[0] for row in session.scalars(select(WebSession))] == ["b"]


def test_sessions_that_are_over_leave_the_table(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        accounts.open_session(session, add(session, "otto", now), "a" * 64, length=HOUR, now=now)
    with sessions.begin() as session:
        account = accounts.find(session, "otto")
        assert account is not None
        accounts.open_session(session, account, "b" * 64, length=HOUR, now=now + 2 * HOUR)
    with sessions() as session:
        assert [row.digest[0] for row in session.scalars(select(WebSession))] == ["b"]


def test_what_makes_no_sense_is_refused(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        add(session, "otto", now)
        add(session, "oidc:1", now, issuer="https://idp.example")
    facts = {"by": "root", "now": now}
    with sessions.begin() as session:
        with pytest.raises(NotFound, match="there is no account nobody"):
            managing.disable(session, "nobody", **facts)  # type: ignore[arg-type]  # names and kinds of the facts
        with pytest.raises(NotAllowed, match="account otto exists"):
            managing.add(session, "otto", Role.VIEWER, "correct horse battery", by="root", now=now)
        with pytest.raises(NotAllowed, match="is not disabled"):
            managing.enable(session, "otto", by="root", now=now)
        with pytest.raises(NotAllowed, match="has no token"):
            managing.revoke_token(session, "otto", by="root", now=now)
        for refused in (
            lambda: managing.change_role(session, "oidc:1", Role.VIEWER, by="root", now=now),
            lambda: managing.change_password(session, "oidc:1", "correct horse battery", by="root", now=now),
            lambda: managing.make_token(session, "oidc:1", by="root", now=now),
        ):
            with pytest.raises(NotAllowed, match=r"https://idp\.example, which decides"):
                refused()
        managing.disable(session, "otto", by="root", now=now)
        with pytest.raises(NotAllowed, match="is disabled already"):
            managing.disable(session, "otto", by="root", now=now)
        with pytest.raises(NotAllowed, match="it gets no token"):
            managing.make_token(session, "otto", by="root", now=now)


def test_attempts_are_limited_by_account_and_by_address(now: datetime) -> None:
    at = [now]
    throttle = LoginThrottle(lambda: at[0])
    assert [throttle.admit("otto", "10.0.1.1") for _ in range(10)] == [0] * 10
    assert throttle.admit("otto", "10.0.1.1") == 901
    assert throttle.admit("otto", "10.0.1.2") == 0  # nobody is locked out from elsewhere
    assert [throttle.admit(f"name{number}", "10.0.1.1") for number in range(30)] == [0] * 30
    assert throttle.admit("anna", "10.0.1.1") == 901
    assert throttle.admit("anna", "10.0.1.2") == 0
    at[0] += timedelta(minutes=15)
    assert throttle.admit("otto", "10.0.1.1") == 0


def test_attempts_at_one_account_from_many_addresses_are_limited(now: datetime) -> None:
    throttle = LoginThrottle(lambda: now)
    assert [throttle.admit("otto", f"10.0.0.{number}") for number in range(100)] == [0] * 100
    assert throttle.admit("otto", "10.0.1.1") == 901


def test_a_limit_that_is_reached_is_listed_once_in_its_time(now: datetime) -> None:
    at = [now]
    throttle = LoginThrottle(lambda: at[0])
    for _ in range(2):
        assert [throttle.admit("otto", "10.0.1.1") for _ in range(11)][-1] > 0
        listed = [throttle.list_new_closures("otto", "10.0.1.1") for _ in range(2)]
        assert listed == [["10 attempts by account and address"], []]
        at[0] += timedelta(minutes=15)


def test_the_event_of_a_limit_names_accounts_only(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        add(session, "otto", now)
        for name in ("otto", "a password by mistake"):
            accounts.record_throttle(session, name, address="10.0.1.1", limits=["40 attempts by address"], now=now)
    with sessions() as session:
        events = session.scalars(select(Event).where(Event.event == "throttled")).all()
    assert [each.subject_id for each in events] == ["otto", "unknown"]
    assert {str(each.detail) for each in events} == {"{'address': '10.0.1.1', 'limits': ['40 attempts by address']}"}


def test_log_ins_at_the_provider_count_by_themselves(now: datetime) -> None:
    throttle = LoginThrottle(lambda: now)
    assert [throttle.admit(None, "10.0.0.1") for _ in range(41)] == [0] * 40 + [901]
    assert throttle.admit("otto", "10.0.0.1") == 0
    throttle.forgive(None, "10.0.0.1")
    assert [throttle.admit(None, "10.0.0.1") for _ in range(2)] == [0, 901]


def test_a_right_password_forgives_the_wrong_ones_of_its_account(now: datetime) -> None:
    throttle = LoginThrottle(lambda: now)
    for _ in range(9):
        throttle.admit("otto", "10.0.0.1")
    throttle.admit("otto", "10.0.0.1")
    throttle.forgive("otto", "10.0.0.1")
    assert [throttle.admit("otto", "10.0.0.1") for _ in range(10)] == [0] * 10


def test_beyond_loopback_accounts_do_for_a_token() -> None:
    assert WebConfig(host="0.0.0.0", accounts=True).token_file is None
    with pytest.raises(ValueError, match="asks for a token"):
        WebConfig(host="0.0.0.0")


@pytest.mark.slow
def test_the_command_manages_accounts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path)
    databases.prepare(config.load(path))
    (tmp_path / "password").write_text("correct horse battery\n")
    (tmp_path / "short").write_text("short\n")

    def run(*words: str) -> tuple[int, str, str]:
        status = cli.main(["--config", str(path), "accounts", *words])
        said = capsys.readouterr()
        return status, said.out, said.err

    from_file = ("--password-file", str(tmp_path / "password"))
    status, out, err = run("add", "otto", "--role", "operator", *from_file)
    assert (status, out) == (0, "account otto is added with the role operator\n")
    assert "'accounts = true' under [web]" in err
    assert run("add", "vera", "--password-file", str(tmp_path / "short"))[0] == 1
    assert run("add", "vera", "--role", "king", *from_file)[0] == 2
    assert run("passwd", "otto", *from_file)[0] == 0
    assert run("role", "otto", "administrator")[1] == "account otto has the role administrator\n"
    token = run("token", "otto")[1].strip()
    assert len(token) == 43
    [facts] = json.loads(run("list", "--json")[1])
    assert (facts["name"], facts["role"], facts["state"], facts["token"]) == ("otto", "administrator", "enabled", "yes")
    assert "hash" not in json.dumps(facts)
    assert run("token", "otto", "--revoke")[0] == 0
    assert run("disable", "otto", "--who", "chief")[0] == 0
    assert json.loads(run("list", "--json")[1])[0]["state"] == "disabled"
    assert run("enable", "otto")[0] == 0
    engine = engines.connect(config.load(path).database_url)
    with engines.readers(engine)() as session:
        disabled = session.scalars(select(Event).where(Event.event == "disabled")).one()
        assert disabled.detail["who"] == "chief"
        account = accounts.find(session, "otto")
        assert account is not None
        assert passwords.verify(account.password_hash, "correct horse battery")
    engine.dispose()
