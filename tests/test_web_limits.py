"""Limits of the web for one client: connections, time, listeners, numbers and lists."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from dicomnode.web import connections, events, stow
from dicomnode.web.connections import HttpConnectionLimiter
from tests.peers.files import write_instance
from tests.peers.process import wait_for
from tests.web_node import BOUNDARY, DICOM, Web, encode_multipart, web

__all__ = ["web"]


@contextmanager
def send_text(running: Web, text: str) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as sock:
        sock.sendall(text.encode())
        yield sock


def is_closed_by_server(sock: socket.socket) -> bool:
    """Return whether the server closes the connection, after any last answer."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def test_a_broken_chunk_after_head_closes_the_connection(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    """uvicorn answers 400 with a body, which h11 refuses to send after HEAD."""
    text = "HEAD /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno length\r\n"
    with send_text(web, text) as sock:
        assert is_closed_by_server(sock)
    assert [each.getMessage() for each in caplog.records if each.levelname == "ERROR"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "", "GET / HTTP/1.1\r\nHost: a\r\nX-Slow:", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea",
    ],
)  # fmt: skip
def test_a_head_has_its_time(web: Web, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.2)
    with send_text(web, text) as sock:
        assert is_closed_by_server(sock)


def test_a_body_that_trickles_is_given_up(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "BODY_S", 0.2)
    head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: {DICOM['Content-Type']}\r\n"
    with send_text(web, f"{head}Content-Length: 100000\r\n\r\n--{BOUNDARY}\r\n") as sock:
        assert is_closed_by_server(sock)
    web.wait_until(lambda: not web.files_left())


@pytest.mark.slow
def test_a_body_that_is_fast_enough_is_waited_for(web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(connections, "BODY_S", 1.0)
    monkeypatch.setattr(connections, "LEAST_BODY_BYTES", 100)
    write_instance(tmp_path / "a.dcm")
    content = encode_multipart([(tmp_path / "a.dcm").read_bytes()])
    size = len(content) // 10  # over 100 bytes, and more than two limits of time for the whole
    assert size > 100

    def slowly() -> Iterator[bytes]:
        never = threading.Event()
        for at in range(0, len(content), size):
            never.wait(0.25)
            yield content[at : at + size]

    assert web.client.post("/dicom-web/studies", content=slowly(), headers=DICOM).status_code == 200


@pytest.mark.slow
def test_a_client_that_takes_nothing_is_given_up(web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(connections, "DRAIN_S", 0.3)
    ds = write_instance(tmp_path / "a.dcm", frames_bytes=20_000_000, Rows=4000, Columns=2500)
    assert web.store([tmp_path / "a.dcm"]).status_code == 200
    path = f"/dicom-web/studies/{ds.StudyInstanceUID}"
    ask = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"
    with send_text(web, ask) as sock:
        # another connection is that of the client that stored
        wait_for(lambda: web.server.connection_count == 2, "it is asked")
        wait_for(lambda: web.server.connection_count == 1, "it is given up")
        sock.settimeout(10)
        assert is_closed_by_server(sock)


class IdleConnection:
    """An idle connection that records whether it is closed."""

    def __init__(self) -> None:
        self.transport = self
        self.is_away = False

    def abort(self) -> None:
        self.is_away = True


def test_who_rests_longest_makes_room_and_who_works_stays() -> None:
    callers = HttpConnectionLimiter(4)
    here = [IdleConnection() for _ in range(2 + connections.HEALTH_RESERVE_PER_HOST)]
    for each in here:
        assert callers.enter("10.0.0.1")
        callers.mark_idle(each, "10.0.0.1")  # type: ignore[arg-type]
    callers.mark_busy(here[0])  # type: ignore[arg-type]
    assert callers.is_over_limit("10.0.0.1")
    assert callers.enter("::ffff:10.0.0.1"), "the same machine"
    assert [each.is_away for each in here[:3]] == [False, True, False]
    for each in here:
        callers.mark_busy(each)  # type: ignore[arg-type]
    assert not callers.enter("10.0.0.1"), "all of them work"
    assert callers.enter("10.0.0.2"), "another machine has its own share"


def test_above_the_limit_only_health_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("dicomnode.web.server.connection_limit", lambda: 8)
    with Web(tmp_path) as running, ExitStack() as stack:
        for _ in range(4):
            listening = stack.enter_context(httpx.stream("GET", f"{running.address}/events", timeout=20))
            assert listening.status_code == 200
        answer = httpx.get(f"{running.address}/")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert httpx.get(f"{running.address}/healthz").status_code == 200
        assert httpx.get(f"{running.address}/readyz").status_code == 200


@pytest.mark.slow
def test_those_that_listen_at_once_are_counted(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_LISTENERS", 3)

    def listen(_: int) -> int:
        answer = stack.enter_context(httpx.stream("GET", f"{web.address}/events", timeout=20))
        return answer.status_code

    with ExitStack() as stack, ThreadPoolExecutor(12) as at_once:
        statuses = list(at_once.map(listen, range(12)))
    assert sorted(statuses) == [200] * 3 + [503] * 9

    def listens_again() -> bool:
        with httpx.stream("GET", f"{web.address}/events", timeout=20) as answer:
            return answer.status_code == 200

    wait_for(listens_again, "those that have gone make room")


PATHS = [
    "/jobs/{}", "/jobs/{}/depth", "/jobs/{}/pictures/1.2", "/jobs/1/pictures/1.2?at={}", "/?page={}",
    "/jobs/1/pictures/1.2?at=-{}", "/jobs/1/pictures/1.2?size={}", "/jobs?page={}", "/hold?page={}",
    "/system?before={}", "/failures?page={}", "/system?before=-{}", "/?done=release-{}", "/studies/{}",
    "/studies/{}/thumbnail",
    "/api/jobs/{}", "/api/jobs?limit={}", "/api/jobs?offset={}", "/api/studies?limit={}", "/api/studies?offset={}",
    "/api/studies/{}", "/models/x?page={}",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", ["9" * 19, "9" * 30, "9" * 5000], ids=len)
def test_numbers_of_any_length_are_answered(web: Web, number: str) -> None:
    answers = {path: web.get(path.format(number)).status_code for path in PATHS}
    assert {path: status for path, status in answers.items() if status not in (200, 400, 404)} == {}
    assert web.client.post(f"/jobs/{number}/release").status_code == 404


def test_a_body_has_so_many_parts(web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stow, "MOST_PARTS", 3)
    for name in "abcd":
        write_instance(tmp_path / name)
    answer = web.store([tmp_path / name for name in "abcd"])
    assert answer.status_code == 413
    assert "3 whole instances are stored" in answer.text
    assert len(web.rows()) == 3
    assert web.store([tmp_path / "d"]).status_code == 200


@pytest.mark.slow
def test_a_study_of_many_series_is_a_page_of_some(web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("dicomnode.web.study_page.MOST_SERIES", 2)
    monkeypatch.setattr("dicomnode.web.api.MOST_ROWS", 2)
    made = [write_instance(tmp_path / str(n), series_uid=f"1.2.3.{n}") for n in range(3)]
    study = made[0].StudyInstanceUID
    web.store(tmp_path / str(n) for n in range(2))
    assert "the viewer has all" not in web.get(f"/studies/{study}").text
    web.store([tmp_path / "2"])
    page = web.get(f"/studies/{study}").text
    assert "The first 2; the viewer has all." in page
    assert page.count('data-key="series-') == 2
    assert len(web.get(f"/api/studies/{study}").json()["series"]) == 2
