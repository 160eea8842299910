"""Streams and channels of a node with accounts: they end with their access, and are no use of a session."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from db import audit
from db.states import Role
from db.workitem_rows import WorkitemEvent
from dicomnode.accounts import managing
from dicomnode.web import ups_events
from tests.account_node import bearer_of, cookie_of, run_node
from tests.web_node import Web
from tests.workitems import make_workitem, send

pytestmark = pytest.mark.slow

UID, ALL = "1.2.826.0.1.99.1", "1.2.840.10008.5.1.4.34.5"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Web]:
    with run_node(tmp_path, worklist={"enabled": True, "performs": False}) as web:
        yield web


def open_channel(web: Web, headers: dict[str, str]) -> ClientConnection:
    address = f"ws://127.0.0.1:{web.port}/dicom-web/subscribers/WATCHER"
    return connect(address, proxy=None, additional_headers=headers)


def end_access(web: Web, how: str, headers: dict[str, str]) -> None:
    if how == "logged out":
        assert web.client.post("/logout", headers=headers).status_code == 303
        return
    with web.sessions.begin() as session:
        if how == "disabled":
            managing.disable(session, "otto", by="root", now=web.now)
        elif how == "role":
            managing.change_role(session, "otto", Role.VIEWER, by="root", now=web.now)
        else:
            managing.revoke_token(session, "otto", by="root", now=web.now)


WAYS = ["logged out", "disabled", "role", "token"]


@pytest.mark.parametrize("how", WAYS)
def test_a_channel_ends_with_its_access(site: Web, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(ups_events, "JUDGED_EVERY_S", 0.05)
    headers = bearer_of(site, "otto") if how == "token" else cookie_of(site, "otto")
    with open_channel(site, headers) as channel:
        channel.ping().wait(60)
        end_access(site, how, headers)
        with pytest.raises(ConnectionClosed) as closed:
            channel.recv(timeout=60)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


@pytest.mark.parametrize("how", WAYS)
def test_a_report_waits_where_the_access_is_over(site: Web, how: str) -> None:
    mine = bearer_of(site, "otto") if how == "token" else cookie_of(site, "otto")
    others = bearer_of(site, "anna")
    with httpx.Client(base_url=site.address, headers=others, timeout=60) as client:
        assert send(client, "POST", f"/workitems/{ALL}/subscribers/WATCHER").status_code == 201
        with open_channel(site, mine) as channel:
            channel.ping().wait(60)
            end_access(site, how, mine)
            assert send(client, "POST", f"/workitems?workitem={UID}", make_workitem()).status_code == 201
            with pytest.raises(ConnectionClosed) as closed:
                channel.recv(timeout=60)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    assert len(site.rows(WorkitemEvent)) == 1


def test_an_open_page_is_no_use_of_its_session(site: Web) -> None:
    cookie = cookie_of(site, "otto")
    with httpx.stream("GET", f"{site.address}/events", headers=cookie, timeout=60) as stream:
        pieces = stream.iter_text()
        assert "hello" in next(pieces)
        site.now += timedelta(minutes=50)
        with site.sessions.begin() as session:
            audit.append(session, subject="jobs", subject_id=1, event="moved", detail={}, now=site.now)
        assert "changed" in next(pieces)
        for header in ({"Dicomnode-Background": "1"}, {"Sec-Fetch-Dest": "image"}):
            assert site.client.get("/", headers=cookie | header).status_code == 200
        site.now += timedelta(minutes=20)
        assert site.client.get("/", headers=cookie).status_code == 401


def test_moving_through_slices_is_use_of_a_session_and_pictures_of_rows_are_none(site: Web) -> None:
    cookie = cookie_of(site, "otto") | {"Sec-Fetch-Dest": "image"}
    for _ in range(3):
        site.now += timedelta(minutes=50)
        assert site.client.get("/jobs/1/pictures/1.2.3?at=7&size=512", headers=cookie).status_code == 404
    for path in ("/jobs/1/pictures/1.2.3", "/studies/1.2.3/thumbnail"):
        site.now += timedelta(minutes=25)
        assert site.client.get(path, headers=cookie).status_code == 404
    site.now += timedelta(minutes=25)
    assert site.client.get("/jobs/1/pictures/1.2.3?at=7", headers=cookie).status_code == 401


def test_an_open_channel_is_no_use_of_its_session(site: Web) -> None:
    cookie, others = cookie_of(site, "otto"), bearer_of(site, "anna")
    with httpx.Client(base_url=site.address, headers=others, timeout=60) as client:
        assert send(client, "POST", f"/workitems/{ALL}/subscribers/WATCHER").status_code == 201
        with open_channel(site, cookie) as channel:
            site.now += timedelta(minutes=50)
            assert send(client, "POST", f"/workitems?workitem={UID}", make_workitem()).status_code == 201
            assert UID in str(channel.recv(timeout=60))
            site.now += timedelta(minutes=20)
            assert site.client.get("/", headers=cookie).status_code == 401


def test_the_pages_mark_their_own_requests(site: Web) -> None:
    script = site.client.get("/static/dashboard.js", headers=cookie_of(site, "otto")).text
    assert script.count("await fetch(") == 2
    assert script.count("BACKGROUND") == 3
