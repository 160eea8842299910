"""Subscriptions to the worklist, and event reports over a WebSocket, received by the client library ``websockets``."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from db.models import Event
from db.workitem_rows import WorkitemEvent
from tests.web_node import Web
from tests.workitems import make_workitem, send, to_json

UID, MINE = "1.2.826.0.1.99.1", "1.2.826.0.1.99.2"
ALL, MATCHING = "1.2.840.10008.5.1.4.34.5", "1.2.840.10008.5.1.4.34.5.1"
STATE, CANCEL_REQUEST, PROGRESS, ASSIGNMENT = 1, 2, 3, 5
TOKEN = "0123456789abcdef"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with Web(tmp_path, sections={"worklist": {"enabled": True, "performs": False}}) as running:
        yield running


@pytest.fixture
def client(web: Web) -> httpx.Client:
    return web.client


def create(client: httpx.Client, uid: str = UID, **changes: Any) -> None:
    assert send(client, "POST", f"/workitems?workitem={uid}", make_workitem(**changes)).status_code == 201


def change(client: httpx.Client, state: str, uid: str = UID) -> None:
    values = to_json({"ProcedureStepState": state, "TransactionUID": MINE})
    assert send(client, "PUT", f"/workitems/{uid}/state", values).status_code == 200


def subscribe(client: httpx.Client, uid: str, ae_title: str = "WATCHER", query: str = "") -> str:
    answer = send(client, "POST", f"/workitems/{uid}/subscribers/{ae_title}{query}")
    assert answer.status_code == 201, answer.text
    return answer.headers["content-location"]


def receive(channel: ClientConnection) -> tuple[str, int, str]:
    """Return UID, type and state of the next report (PS3.18 11.14)."""
    report = json.loads(channel.recv(timeout=60))
    assert report["00000002"]["Value"] == ["1.2.840.10008.5.1.4.34.6.4"]
    state = report.get("00741000", {}).get("Value", [""])[0]
    return report["00001000"]["Value"][0], report["00001002"]["Value"][0], state


def test_a_subscriber_hears_every_event_of_its_workitem(client: httpx.Client) -> None:
    create(client)
    address = subscribe(client, UID)
    assert address.startswith("ws://127.0.0.1")
    assert address.endswith("/dicom-web/subscribers/WATCHER")
    with connect(address, proxy=None) as channel:
        assert receive(channel) == (UID, STATE, "SCHEDULED")
        change(client, "IN PROGRESS")
        assert receive(channel) == (UID, STATE, "IN PROGRESS")
        item = {"ProcedureStepProgress": "40", "ProcedureStepProgressDescription": "sampling"}
        progress = to_json({"ProcedureStepProgressInformationSequence": [item]})
        assert send(client, "POST", f"/workitems/{UID}?transaction-uid={MINE}", progress).status_code == 200
        assert receive(channel) == (UID, PROGRESS, "")
        station = to_json({"ScheduledStationNameCodeSequence": [{"CodeValue": "A", "CodingSchemeDesignator": "99X"}]})
        assert send(client, "POST", f"/workitems/{UID}?transaction-uid={MINE}", station).status_code == 200
        assert receive(channel) == (UID, ASSIGNMENT, "")
        reason = to_json({"ReasonForCancellation": "wrong", "ContactDisplayName": "MK"})
        assert send(client, "POST", f"/workitems/{UID}/cancelrequest/SCHEDULER", reason).status_code == 202
        report = json.loads(channel.recv(timeout=60))
        assert report["00001002"]["Value"] == [CANCEL_REQUEST]
        assert report["00741236"]["Value"] == ["SCHEDULER"]
        assert report["00741238"]["Value"] == ["wrong"]
        change(client, "CANCELED")
        report = json.loads(channel.recv(timeout=60))
        assert report["00741000"]["Value"] == ["CANCELED"]
        assert report["0074100E"]["Value"][0]["00080100"]["Value"] == ["110513"]


def test_a_subscriber_to_the_worklist_hears_of_present_and_new_workitems(client: httpx.Client) -> None:
    create(client, "1.2.1")
    address = subscribe(client, ALL)
    create(client, "1.2.2")
    with connect(address, proxy=None) as channel:
        assert [receive(channel)[0] for _ in range(2)] == ["1.2.1", "1.2.2"]
        path = f"/workitems/{ALL}/subscribers/WATCHER"
        assert send(client, "POST", f"{path}/suspend").status_code == 200
        create(client, "1.2.3")
        change(client, "IN PROGRESS", "1.2.1")
        assert receive(channel) == ("1.2.1", STATE, "IN PROGRESS")
        assert send(client, "POST", f"{path}/suspend").status_code == 404
        assert send(client, "DELETE", "/workitems/1.2.1/subscribers/WATCHER").status_code == 200
        change(client, "CANCELED", "1.2.1")
        change(client, "IN PROGRESS", "1.2.2")
        assert receive(channel) == ("1.2.2", STATE, "IN PROGRESS")
        assert send(client, "DELETE", path).status_code == 200
        assert send(client, "DELETE", path).status_code == 404


def test_a_subscriber_to_a_filtered_worklist_hears_of_what_matches(web: Web, client: httpx.Client) -> None:
    address = subscribe(client, MATCHING, query="?PatientID=P-2&deletionlock=true")
    create(client, "1.2.1")
    create(client, "1.2.2", PatientID="P-2")
    create(client, "1.2.3", ProcedureStepLabel="other", PatientID="P-2")
    with connect(address, proxy=None) as channel:
        assert [receive(channel)[0] for _ in range(2)] == ["1.2.2", "1.2.3"]
    assert {each.event for each in web.rows(Event) if each.subject == "workitem_subscriptions"} == {"subscribed"}


def test_reports_wait_for_their_subscriber(web: Web, client: httpx.Client) -> None:
    create(client)
    address = subscribe(client, UID)
    change(client, "IN PROGRESS")
    with connect(address, proxy=None) as channel:
        assert [receive(channel)[2] for _ in range(2)] == ["SCHEDULED", "IN PROGRESS"]
        web.wait_until(lambda: not web.rows(WorkitemEvent))
    change(client, "CANCELED")
    assert len(web.rows(WorkitemEvent)) == 1
    with connect(address, proxy=None) as channel:
        assert receive(channel)[2] == "CANCELED"


def test_a_new_channel_replaces_the_older_one(client: httpx.Client) -> None:
    create(client)
    address = subscribe(client, UID)
    with connect(address, proxy=None) as first:
        assert receive(first)[2] == "SCHEDULED"
        with connect(address, proxy=None) as second:
            with pytest.raises(ConnectionClosed):
                first.recv(timeout=60)
            change(client, "IN PROGRESS")
            assert receive(second)[2] == "IN PROGRESS"


@pytest.mark.parametrize(
    ("uid", "query", "status"),
    [
        ("1.2.99", "", 404), (MATCHING, "", 400), (ALL, "?PatientID=P-1", 400), (UID, "?deletionlock=maybe", 400),
        (UID, f"?PatientID={'x' * 300}", 400),
    ],
)  # fmt: skip
def test_subscriptions_that_cannot_be_are_refused(client: httpx.Client, uid: str, query: str, status: int) -> None:
    create(client)
    assert send(client, "POST", f"/workitems/{uid}/subscribers/WATCHER{query}").status_code == status


def test_titles_and_targets_of_subscriptions_are_checked(client: httpx.Client) -> None:
    create(client)
    assert send(client, "POST", f"/workitems/{UID}/subscribers/{'X' * 17}").status_code == 400
    assert send(client, "POST", f"/workitems/{UID}/subscribers/WATCHER/suspend").status_code == 400
    assert send(client, "DELETE", f"/workitems/{UID}/subscribers/WATCHER").status_code == 404


def test_subscribers_are_few(client: httpx.Client) -> None:
    create(client)
    for at in range(32):
        subscribe(client, UID, f"AE{at}")
    assert send(client, "POST", f"/workitems/{UID}/subscribers/ONEMORE").status_code == 503
    subscribe(client, UID, "AE1")


def test_a_plain_request_learns_that_it_is_a_websocket(client: httpx.Client) -> None:
    assert client.get("/dicom-web/subscribers/WATCHER").status_code == 426


def test_a_page_of_another_site_gets_no_channel(web: Web) -> None:
    address = f"ws://127.0.0.1:{web.port}/dicom-web/subscribers/WATCHER"
    with pytest.raises(InvalidStatus, match="403"):
        connect(address, proxy=None, additional_headers={"Origin": "http://evil.example"}).close()
    with connect(address, proxy=None, additional_headers={"Origin": f"http://127.0.0.1:{web.port}"}):
        pass


def test_a_name_that_leads_here_by_dns_gets_no_channel(web: Web) -> None:
    with (
        socket.create_connection(("127.0.0.1", web.port), timeout=60) as plain,
        pytest.raises(InvalidStatus, match="403"),
    ):
        connect("ws://evil.example/dicom-web/subscribers/WATCHER", proxy=None, sock=plain).close()


def test_a_channel_needs_the_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    with Web(tmp_path / "node", {"token_file": token}, sections={"worklist": {"enabled": True}}) as web:
        address = f"ws://127.0.0.1:{web.port}/dicom-web/subscribers/WATCHER"
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            with pytest.raises(InvalidStatus, match="403"):
                connect(address, proxy=None, additional_headers=headers).close()
        with connect(address, proxy=None, additional_headers={"Authorization": f"Bearer {TOKEN}"}):
            pass


def test_there_is_no_channel_without_the_worklist(tmp_path: Path) -> None:
    with Web(tmp_path) as web, pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{web.port}/dicom-web/subscribers/WATCHER", proxy=None).close()


def test_a_client_that_talks_too_much_is_left(client: httpx.Client) -> None:
    create(client)
    with connect(subscribe(client, UID), proxy=None) as channel:
        assert receive(channel)[2] == "SCHEDULED"
        channel.send("x" * 5000)
        with pytest.raises(ConnectionClosed):
            channel.recv(timeout=60)


def test_the_server_stops_with_an_open_channel(tmp_path: Path) -> None:
    with ExitStack() as left_open:
        with Web(tmp_path, sections={"worklist": {"enabled": True}}) as web:
            address = f"ws://127.0.0.1:{web.port}/dicom-web/subscribers/WATCHER"
            channel = left_open.enter_context(connect(address, proxy=None))
        with pytest.raises(ConnectionClosed):
            channel.recv(timeout=60)
