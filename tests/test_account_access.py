"""Roles, sessions and tokens of accounts at the running web, and who is in the audit trail."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import select
from starlette.routing import BaseRoute
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from db import accounts
from db import engine as engines
from db.models import Event, Reading, WebSession
from db.states import Role
from dicomnode.accounts import managing, passwords
from dicomnode.config.node import NodeConfig
from dicomnode.maintenance import backup
from dicomnode.web import roles
from dicomnode.web.access import OPEN_PATHS
from dicomnode.web.methods import REFUSAL
from tests.account_node import (
    NAMES,
    NODE_TOKEN,
    PASSWORD,
    bearer_of,
    cookie_of,
    find_events,
    log_in,
    run_node,
)
from tests.peers import write_instance
from tests.prior_bundle import write_prior_bundle
from tests.web_node import Web
from tests.web_readings import make_reading
from tests.web_studies import PEERS, ROUTES, make_all_states, run_all_states

pytestmark = pytest.mark.slow

_PARAMETERS = {"id:row": "999", "kind": "html", "path:path": "x", "decision": "retry"}
"""Values of parameters in paths; "1.2.3" for all others."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Web]:
    """Yield a node with an account of each role."""
    with run_node(tmp_path) as web:
        yield web


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """Yield a node with accounts for tests that change nothing."""
    with run_node(tmp_path_factory.mktemp("accounts"), worklist={"enabled": True}) as web:
        yield web


def list_routes(web: Web) -> list[tuple[APIRoute, str]]:
    """Return every route with each of its methods."""
    return [(route, method) for route in walk(web.app.routes) for method in sorted(route.methods or ())]


def walk(routes: Iterable[BaseRoute]) -> Iterator[APIRoute]:
    """Yield the routes of included routers, too, which newer versions of FastAPI keep as they are."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif (router := getattr(route, "original_router", None)) is not None:
            yield from walk(router.routes)


def test_every_route_has_a_role(lasting: Web) -> None:
    missing = [
        f"{method} {route.path}"
        for route, method in list_routes(lasting)
        if route.path not in OPEN_PATHS and roles.find_role(route, method) is None
    ]
    assert missing == [], "add them to the tables of dicomnode/web/roles.py"


def test_the_tables_name_no_route_that_is_gone(lasting: Web) -> None:
    present = list_routes(lasting)
    reading = {route.path for route, method in present if method == "GET"}
    writing = {route.path for route, method in present if method != "GET" and route.name != REFUSAL}
    assert set(roles.READING) - reading == set()
    assert set(roles.WRITING) - writing == set()


def test_a_route_without_an_entry_is_refused_to_everybody(site: Web) -> None:
    site.app.add_api_route("/forgotten", lambda: "x", methods=["GET"])
    for name in NAMES.values():
        answer = site.client.get("/forgotten", headers=bearer_of(site, name))
        assert (answer.status_code, "of nobody" in answer.text) == (403, True)


@pytest.mark.parametrize("role", list(Role))
def test_each_role_reaches_what_it_may_and_nothing_else(lasting: Web, role: Role) -> None:
    header, wrong, refused = bearer_of(lasting, NAMES[role]), [], 0
    for route, method in list_routes(lasting):
        needed = roles.find_role(route, method)
        if route.path in OPEN_PATHS | {"/events", "/logout"} or needed is None:
            continue
        path = re.sub(r"{(.+?)}", lambda found: _PARAMETERS.get(found[1], "1.2.3"), route.path)
        answer = lasting.client.request(method, path, headers=header)
        is_refused = answer.status_code == 403
        refused += is_refused
        if is_refused == role.includes(needed) or answer.status_code == 401:
            wrong.append((method, path, answer.status_code, str(needed)))
        if is_refused and method != "HEAD" and f"needs the role {needed}" not in answer.text:
            wrong.append((method, path, answer.status_code, answer.text))
    assert wrong == []
    assert (refused > 0) == (role is not Role.ADMINISTRATOR)


def test_nothing_is_told_without_an_account(lasting: Web) -> None:
    for route, method in list_routes(lasting):
        if route.path in OPEN_PATHS:
            continue
        path = re.sub(r"{(.+?)}", lambda found: _PARAMETERS.get(found[1], "1.2.3"), route.path)
        assert lasting.client.request(method, path).status_code == 401, (method, path)
    assert lasting.get("/static/dashboard.css").status_code == 401


def test_a_refusal_is_a_page_that_names_the_role(lasting: Web) -> None:
    header = bearer_of(lasting, "vera") | {"Accept": "text/html"}
    answer = lasting.client.post("/jobs/1/release", headers=header)
    assert answer.status_code == 403
    assert "This needs the role operator" in answer.text
    assert "<b>vera</b> with the role viewer" in answer.text


def test_a_browser_logs_in_and_is_named_on_the_pages(site: Web) -> None:
    assert site.get("/", "text/html").headers["location"] == "/login?next=%2F"
    assert 'name="password"' in site.get("/login", "text/html").text
    answer = log_in(site, "otto")
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    page = site.get("/", "text/html", Cookie=cookie.partition(";")[0])
    assert page.status_code == 200
    assert "otto (operator)" in page.text
    assert "Log out" in page.text


@pytest.mark.parametrize(
    ("name", "password"), [("otto", "wrong password"), ("nobody", PASSWORD), ("", ""), ("otto", "")]
)
def test_a_wrong_name_and_a_wrong_password_get_one_answer(site: Web, name: str, password: str) -> None:
    answer = log_in(site, name, password)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    expected = log_in(site, "somebody else", "something else").text
    assert answer.text == expected


def test_an_unknown_name_costs_a_check_like_a_known_one(site: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    verify = passwords.verify

    def note(hashed: str, password: str) -> bool:
        checked.append(hashed)
        return verify(hashed, password)

    monkeypatch.setattr(passwords, "verify", note)
    log_in(site, "nobody")
    assert checked == [""]


def test_many_attempts_wait_and_the_answer_says_how_long(site: Web) -> None:
    for _ in range(10):
        assert log_in(site, "otto", "wrong password").status_code == 401
    answer = log_in(site, "otto")
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "901"
    assert "Too many attempts" in answer.text
    assert log_in(site, "vera").status_code == 303
    site.now += timedelta(minutes=16)
    assert log_in(site, "otto").status_code == 303


def test_logging_out_ends_that_session_at_once_and_no_other(site: Web) -> None:
    mine, other = cookie_of(site, "otto"), cookie_of(site, "otto")
    assert site.client.post("/logout", headers=mine).headers["location"] == "/login"
    assert site.client.get("/", headers=mine).status_code == 401
    assert site.client.get("/", headers=other).status_code == 200
    [event] = find_events(site, "accounts", "logged_out")
    assert (event.subject_id, event.detail["account"]) == ("otto", "otto")


@pytest.mark.parametrize("change", ["disable", "role", "password"])
def test_a_change_by_the_command_ends_sessions_at_once(site: Web, change: str) -> None:
    cookie = cookie_of(site, "otto")
    assert site.client.get("/", headers=cookie).status_code == 200
    with site.sessions.begin() as session:
        if change == "disable":
            managing.disable(session, "otto", by="root", now=site.now)
        elif change == "role":
            managing.change_role(session, "otto", Role.VIEWER, by="root", now=site.now)
        else:
            managing.change_password(session, "otto", "another long password", by="root", now=site.now)
    assert site.client.get("/", headers=cookie).status_code == 401
    assert log_in(site, "otto").status_code == (303 if change == "role" else 401)


def test_a_session_ends_without_requests_and_at_its_end(site: Web) -> None:
    cookie = cookie_of(site, "otto")
    for _ in range(23):
        site.now += timedelta(minutes=31)
        assert site.client.get("/", headers=cookie).status_code == 200
    site.now += timedelta(minutes=10)
    assert site.client.get("/", headers=cookie).status_code == 401  # after twelve hours
    cookie = cookie_of(site, "otto")
    site.now += timedelta(minutes=61)
    assert site.client.get("/", headers=cookie).status_code == 401


def test_a_stream_of_changes_ends_with_its_session(site: Web) -> None:
    cookie = cookie_of(site, "otto")
    with httpx.stream("GET", f"{site.address}/events", headers=cookie, timeout=60) as stream:
        pieces = stream.iter_text()
        assert "hello" in next(pieces)
        site.client.post("/logout", headers=cookie)  # whose event is a change
        assert "changed" not in "".join(pieces)


def test_a_session_outlives_a_restart(tmp_path: Path) -> None:
    with run_node(tmp_path) as web:
        cookie = cookie_of(web, "otto")
    with Web(tmp_path, {"accounts": True}) as again:
        assert again.client.get("/", headers=cookie).status_code == 200


def test_a_restored_backup_holds_accounts_and_no_session(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    with run_node(tmp_path / "first") as web:
        cookie_of(web, "otto")
        assert len(web.rows(WebSession)) == 1
        backup.create(web.config, tmp_path / "backup", now=lambda: web.now)
    node = NodeConfig(data_dir=tmp_path / "second")
    restored = web.config.model_copy(update={"node": node})
    backup.restore(restored, tmp_path / "backup")
    engine = engines.connect(restored.database_url)
    with engines.readers(engine)() as session:
        assert [each.name for each in accounts.list_accounts(session)] == ["anna", "otto", "vera"]
        assert session.scalars(select(WebSession)).all() == []
    engine.dispose()


def test_tokens_of_programs_end_with_a_new_one_and_with_their_account(site: Web) -> None:
    first = bearer_of(site, "otto")
    assert site.client.get("/api/status", headers=first).status_code == 200
    second = bearer_of(site, "otto")
    assert site.client.get("/api/status", headers=first).status_code == 401
    assert site.client.get("/dicom-web/studies", headers=second).status_code == 204
    with site.sessions.begin() as session:
        managing.disable(session, "otto", by="root", now=site.now)
    assert site.client.get("/api/status", headers=second).status_code == 401


def test_the_token_of_the_node_stays_and_is_an_administrator(site: Web) -> None:
    header = {"Authorization": f"Bearer {NODE_TOKEN}"}
    assert site.client.get("/", headers=header).status_code == 200
    answer = site.client.post("/models/x/deploy", headers=header)
    assert answer.status_code == 400  # and not 403
    assert site.client.get("/", headers={"Authorization": f"Bearer {NODE_TOKEN}x"}).status_code == 401


def test_the_cookie_of_a_session_is_no_token_and_a_token_no_cookie(site: Web) -> None:
    value = cookie_of(site, "otto")["Cookie"].partition("=")[2]
    assert site.client.get("/", headers={"Authorization": f"Bearer {value}"}).status_code == 401
    token = bearer_of(site, "otto")["Authorization"].removeprefix("Bearer ")
    for forged in (token, NODE_TOKEN, f"{value}x", "ümlaut".encode().decode("latin-1")):
        assert site.client.get("/", headers={b"Cookie": f"dicomnode={forged}".encode("latin-1")}).status_code == 401


def test_another_sites_page_neither_logs_in_nor_decides(site: Web) -> None:
    cookie, form = cookie_of(site, "otto"), {"name": "otto", "password": PASSWORD}
    for header in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert site.client.post("/jobs/1/release", headers=cookie | header).status_code == 403
        assert site.client.post("/login", data=form, headers=header).status_code == 403
    assert len(find_events(site, "accounts", "logged_in")) == 1


def test_the_database_holds_no_credential(site: Web) -> None:
    value = cookie_of(site, "otto")["Cookie"].partition("=")[2]
    token = bearer_of(site, "otto")["Authorization"].removeprefix("Bearer ")
    files = [path for path in site.config.node.data_dir.rglob("*.sqlite*") if path.is_file()]
    held = b"".join(path.read_bytes() for path in files)
    assert b"argon2id" in held
    assert not any(each.encode() in held for each in (value, token, PASSWORD))


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[tuple[Web, Mapping[str, int]]]:
    """Yield a node with accounts and jobs in all states."""
    with run_node(tmp_path, routes=ROUTES, peers=PEERS) as web:
        web.client.headers["Authorization"] = f"Bearer {NODE_TOKEN}"
        made = make_all_states(web)
        del web.client.headers["Authorization"]
        yield web, made


def test_a_decision_is_of_the_account_whatever_the_form_says(busy: tuple[Web, Mapping[str, int]]) -> None:
    web, made = busy
    cookie = cookie_of(web, "otto")
    page = web.client.get("/hold", headers=cookie | {"Accept": "text/html"}).text
    assert "Decided by <b>otto</b>" in page
    assert 'name="who"' not in page
    answer = web.client.post(
        f"/jobs/{made['held']}/release", data={"who": "chief", "reason": "looks right"}, headers=cookie
    )
    assert answer.status_code == 303
    moved = [each for each in web.rows(Event) if each.subject == "jobs" and each.subject_id == str(made["held"])]
    assert moved[-1].detail["account"] == "otto"
    assert moved[-1].detail["reason"] == "released at the dashboard by otto: looks right"
    assert not any("chief" in str(each.detail) for each in web.rows(Event))


def test_every_kind_of_decision_names_the_account(busy: tuple[Web, Mapping[str, int]]) -> None:
    web, made = busy
    cookie = cookie_of(web, "anna")
    before = len(web.rows(Event))
    version = "10.0.0"
    write_prior_bundle(web.config.models_dir / "mri_prior" / version, version)
    deploy = {"pipeline": "mri_reconstruction", "mode": "current"}
    forms = [
        (f"/jobs/{made['held']}/discard", {"reason": "no"}),
        (f"/jobs/{made['dead']}/retry", {}),
        (f"/models/mri_prior@{version}/deploy", deploy),
        ("/models/rollback/mri_reconstruction", {}),
    ]
    for path, fields in forms:
        answer = web.client.post(path, data=fields, headers=cookie)
        assert answer.status_code == 303, (path, answer.text)
    events = web.rows(Event)[before:]
    assert {(each.subject, each.event) for each in events} >= {
        ("jobs", "moved"),
        ("deployments", "deployed"),
        ("deployments", "ended"),
    }
    assert {each.detail.get("account") for each in events} == {"anna"}


def test_a_reading_is_of_the_account(tmp_path: Path) -> None:
    with run_node(tmp_path, routes=ROUTES, peers=PEERS) as web:
        web.client.headers["Authorization"] = f"Bearer {NODE_TOKEN}"
        job = make_reading(web)
        del web.client.headers["Authorization"]
        form = {"verdict": "accepted", "who": "chief", "reason": "agrees"}
        assert web.client.post(f"/jobs/{job}/reading", data=form, headers=bearer_of(web, "otto")).status_code == 303
        assert [row.who for row in web.rows(Reading)] == ["otto"]


def test_instances_sent_over_the_web_are_of_their_account(site: Web, tmp_path: Path) -> None:
    site.client.headers.update(bearer_of(site, "otto"))
    write_instance(tmp_path / "a.dcm")
    assert site.store([tmp_path / "a.dcm"]).status_code == 200
    [received] = find_events(site, "instances", "received")
    assert received.detail["account"] == "otto"


def test_a_node_without_accounts_is_as_before(tmp_path: Path) -> None:
    with run_all_states(tmp_path) as (web, made):
        assert 'name="who"' in web.get("/hold", "text/html").text
        form = {"who": "GH", "reason": "looks right"}
        assert web.client.post(f"/jobs/{made['held']}/release", data=form).status_code == 303
        assert not any("account" in each.detail for each in web.rows(Event))
        assert "Access token" in web.get("/login", "text/html").text


def test_a_channel_of_events_needs_an_operator(lasting: Web) -> None:
    address = f"ws://127.0.0.1:{lasting.port}/dicom-web/subscribers/WATCHER"
    for headers in ({}, bearer_of(lasting, "vera")):
        with pytest.raises(InvalidStatus, match="403"):
            connect(address, proxy=None, additional_headers=headers).close()
    with connect(address, proxy=None, additional_headers=bearer_of(lasting, "otto")) as channel:
        channel.ping().wait(30)
