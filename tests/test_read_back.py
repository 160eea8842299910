"""Search by WADO-RS for what was delivered: only metadata of the instance itself prove that it is there."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dicomnode.commitment import read_back
from dicomnode.config import Peer
from dicomnode.config.node import NodeConfig
from dicomnode.errors import PeerError, PeerRefused, PeerUnreachable
from tests.peers import Orthanc
from tests.receivers import Start, start
from tests.test_commitment_scu import SENT, UNPROVEN, VERIFIED, open_site
from tests.test_dicomweb_orthanc import PLUGIN

__all__ = ["start"]

SERIES = ("1.2.3", "1.2.3.4")
Answer = Callable[[str, Mapping[str, str]], tuple[int, Any]]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """Run an Orthanc with its DICOMweb plug-in."""
    if not PLUGIN.exists():
        pytest.skip(f"{PLUGIN} is missing: install Debian's package orthanc-dicomweb")
    settings = {"Plugins": [str(PLUGIN)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}}
    with Orthanc(tmp_path / "orthanc", settings=settings) as server:
        yield server


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """Run a web server; ``answer`` gives status and content of each path and its headers. Yield its root."""

    class Request(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content = answer(self.path, dict(self.headers))
            body = json.dumps(content).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web/"
    finally:
        server.shutdown()
        server.server_close()


def make_peer(url: str, **values: Any) -> Peer:
    return Peer.model_validate(
        {"name": "pacs", "ae_title": "PACS", "port": 104, "verify": "wado-rs", "dicomweb_url": url} | values
    )


def find(peer: Peer, *uids: str) -> set[str]:
    return read_back.find_instances(peer, NodeConfig(network_timeout_s=30), SERIES, uids)


def describe(uid: str) -> list[dict[str, Any]]:
    return [{"00080018": {"vr": "UI", "Value": [uid]}}]


def test_orthanc_returns_the_metadata_of_what_it_holds(start: Start, orthanc: Orthanc) -> None:
    url = f"http://127.0.0.1:{orthanc.http_port}/dicom-web"
    site = open_site(start, orthanc.peer, commitment=False, verify="wado-rs", dicomweb_url=url)
    orthanc.ask("DELETE", f"/instances/{orthanc.instances()[0]}")
    assert sorted(site.prove()) == [SENT, VERIFIED]
    assert sorted(site.prove(after_h=25)) == [UNPROVEN, VERIFIED]
    (reason,) = site.reasons() - {""}
    assert reason.startswith("WADO-RS at orthanc: 0 of 1 instances")


def test_each_instance_is_asked_for_by_its_own_address_with_the_token(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def answer(path: str, headers: Mapping[str, str]) -> tuple[int, Any]:
        asked.append((path, headers.get("Authorization", "")))
        return (200, describe("1.2.3.4.5")) if "/1.2.3.4.5/" in path else (404, {})

    (tmp_path / "token").write_text("a-secret\n")
    with serving(answer) as url:
        assert find(make_peer(url, dicomweb_token_file=tmp_path / "token"), "1.2.3.4.5", "1.2.3.4.6") == {"1.2.3.4.5"}
    prefix = "/dicom-web/studies/1.2.3/series/1.2.3.4/instances"
    assert asked == [(f"{prefix}/1.2.3.4.{n}/metadata", "Bearer a-secret") for n in (5, 6)]


@pytest.mark.parametrize(
    ("status", "content", "error", "reason"),
    [
        (200, "<html>log in</html>", PeerRefused, "no metadata of the instance"),
        (200, describe("1.2.9"), PeerRefused, "no metadata of the instance"),
        (200, [], PeerRefused, "no metadata of the instance"),
        (302, {}, PeerRefused, "answers 302"),
        (401, {}, PeerRefused, "answers 401"),
        (500, {}, PeerRefused, "answers 500"),
    ],
)
def test_nothing_but_the_metadata_of_the_instance_proves_it(
    status: int, content: Any, error: type[PeerError], reason: str
) -> None:
    with serving(lambda path, headers: (status, content)) as url, pytest.raises(error, match=reason):
        find(make_peer(url), "1.2.3.4.5")


def test_a_fault_at_one_instance_does_not_lose_what_was_found() -> None:
    def answer(path: str, headers: Mapping[str, str]) -> tuple[int, Any]:
        uid = path.split("/")[-2]
        return (503, {}) if uid.endswith(".5") else (200, describe("1.2.9" if uid.endswith(".6") else uid))

    with serving(answer) as url:
        assert find(make_peer(url), *(f"1.2.3.4.{n}" for n in (4, 5, 6, 7))) == {"1.2.3.4.4", "1.2.3.4.7"}


def test_a_destination_that_refuses_all_is_not_asked_for_each() -> None:
    asked: list[str] = []

    def answer(path: str, headers: Mapping[str, str]) -> tuple[int, Any]:
        asked.append(path)
        return 503, {}

    with serving(answer) as url, pytest.raises(PeerRefused, match="answers 503"):
        find(make_peer(url), *(f"1.2.3.4.{n}" for n in range(1, 31)))
    assert len(asked) == 10


@contextmanager
def dripping(head: bytes, body: bytes) -> Iterator[str]:
    """Run a server that sends a head at once and a right answer by the byte, each well within the time limit."""
    ended = threading.Event()

    def drip(server: socket.socket) -> None:
        with server.accept()[0] as connection, contextlib.suppress(OSError):
            connection.recv(4096)
            connection.sendall(head)
            for byte in body:
                if ended.wait(0.02):
                    return
                connection.sendall(bytes([byte]))

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/dicom-web/"
        ended.set()
        thread.join()


@pytest.mark.parametrize("is_head", [True, False])
def test_an_answer_that_comes_in_drops_ends_at_the_deadline(is_head: bool) -> None:
    body = json.dumps(describe("1.2.3.4.5")).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    with (
        dripping(*((b"", head + body) if is_head else (head, body))) as url,
        pytest.raises(PeerUnreachable, match=r"WADO-RS at 127.*: TimeoutError"),
    ):
        read_back.find_instances(make_peer(url), NodeConfig(network_timeout_s=0.4), SERIES, ["1.2.3.4.5"])


def test_an_answer_that_is_too_long_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_back, "MOST_BYTES", 10)
    monkeypatch.setattr(read_back, "PIECE_BYTES", 8)
    with (
        serving(lambda path, headers: (200, describe("1.2.3.4.5"))) as url,
        pytest.raises(PeerRefused, match="no metadata of the instance"),
    ):
        find(make_peer(url), "1.2.3.4.5")


def test_a_server_that_is_not_there_or_a_missing_file_may_be_mended(tmp_path: Path) -> None:
    with serving(lambda path, headers: (404, {})) as url:
        missing = make_peer(url, dicomweb_token_file=tmp_path / "none")
        with pytest.raises(PeerUnreachable, match="dicomweb_token_file"):
            find(missing, "1.2.3.4.5")
    with pytest.raises(PeerUnreachable, match="WADO-RS at 127"):
        find(make_peer(url), "1.2.3.4.5")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"dicomweb_url": None}, "needs dicomweb_url"),
        ({"dicomweb_url": None, "verify": "", "dicomweb_ca_file": "ca.crt"}, "begins with dicomweb_ needs"),
        ({"dicomweb_url": "http://pacs.example/", "dicomweb_token_file": "t"}, "a token is not sent without TLS"),
        ({"dicomweb_url": "https://me:secret@pacs.example/"}, "holds no user and no password"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        make_peer("https://pacs.example/", **values)
