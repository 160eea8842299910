"""The web application: access, security headers and errors of every answer, and the node's health."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from dicomnode import config as configuration
from dicomnode.config.spool import SpoolConfig
from dicomnode.config.web import WebConfig
from dicomnode.errors import ConfigError
from dicomnode.web import server
from dicomnode.web.access import OPEN_PATHS
from tests.peers.nodes import Node, write_config
from tests.web_node import Web, web

pytestmark = pytest.mark.slow

__all__ = ["web"]

TOKEN = "0123456789abcdef-not-guessed"
_CLIENTS = ("httpx", "httpcore", "asyncio")
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Web]:
    """Yield a node's web that requires a token."""
    (tmp_path / "web.token").write_text(f"{TOKEN}\n")
    with Web(tmp_path, {"token_file": "web.token"}) as running:
        yield running


def log_in(guarded: Web) -> str:
    answer = guarded.client.post("/login", data={"token": TOKEN, "next": "/"})
    assert answer.status_code == 303
    return answer.headers["set-cookie"]


@pytest.mark.parametrize("path", ["/", "/dicom-web/studies", "/review/dicom-web/studies", "/viewer/", "/nothing"])
def test_without_the_token_nothing_is_told(guarded: Web, path: str) -> None:
    answer = guarded.get(path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert "token" in answer.text


def test_storing_needs_the_token_too(guarded: Web) -> None:
    assert guarded.client.post("/dicom-web/studies", content=b"x").status_code == 401


@pytest.mark.parametrize("credential", [f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer ümlaut"])
def test_a_wrong_token_is_refused(guarded: Web, credential: str) -> None:
    assert guarded.client.get("/", headers={b"Authorization": credential.encode()}).status_code == 401


def test_the_token_opens_everything(guarded: Web) -> None:
    assert guarded.client.get("/", headers=BEARER).status_code == 200
    assert guarded.client.get("/dicom-web/studies", headers=BEARER).status_code == 204


@pytest.mark.parametrize("path", sorted(OPEN_PATHS - {"/metrics"}))
def test_health_and_the_form_need_no_token(guarded: Web, path: str) -> None:
    assert guarded.get(path).status_code == 200


def test_a_browser_is_led_to_the_form_and_back(guarded: Web) -> None:
    answer = guarded.get("/studies/1.2?a=b", "text/html")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/login?next=%2Fstudies%2F1.2%3Fa%3Db"
    answer = guarded.client.post("/login", data={"token": TOKEN, "next": "/studies/1.2?a=b"})
    assert answer.headers["location"] == "/studies/1.2?a=b"


def test_the_cookie_is_not_the_token_and_scripts_cannot_read_it(guarded: Web) -> None:
    cookie = log_in(guarded)
    assert TOKEN not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie


def test_the_cookie_opens_until_its_time_is_over(guarded: Web) -> None:
    log_in(guarded)
    assert guarded.get("/").status_code == 200
    guarded.now += timedelta(hours=13)
    assert guarded.get("/").status_code == 401


def test_a_cookie_of_ones_own_making_opens_nothing(guarded: Web) -> None:
    name, _, value = log_in(guarded).partition(";")[0].partition("=")
    guarded.client.cookies.clear()
    for forged in (f"{value}0", value[:-1], "x.y", "", "9" * 5000, f"{TOKEN}"):
        assert guarded.get("/", Cookie=f"{name}={forged}").status_code == 401
    assert guarded.get("/", Cookie=f"{name}={value}").status_code == 200


def test_a_cookie_opens_nothing_after_logging_out_and_others_stay(guarded: Web) -> None:
    mine, other = (log_in(guarded).partition(";")[0] for _ in range(2))
    assert guarded.get("/", Cookie=mine).status_code == 200
    guarded.client.cookies.clear()
    guarded.client.post("/logout", headers={"Cookie": mine})
    assert guarded.get("/", Cookie=mine).status_code == 401
    assert guarded.get("/", Cookie=other).status_code == 200


@pytest.mark.parametrize("host", ["[", "[::1", "localhost:x", "localhost:99999", "[zz]"])
def test_a_host_that_is_none_is_refused(web: Web, guarded: Web, host: str) -> None:
    for running, more in ((web, ""), (guarded, f"Authorization: Bearer {TOKEN}\r\n")):
        answer = send_raw(running, f"GET / HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400"), answer[:80]


@pytest.mark.parametrize("origin", ["http://[", "[", "://", "null"])
def test_an_origin_that_is_none_changes_nothing(web: Web, origin: str) -> None:
    assert web.client.post("/dicom-web/studies", content=b"", headers={"Origin": origin}).status_code == 403


def test_a_wrong_token_in_the_form_says_so(guarded: Web) -> None:
    answer = guarded.client.post("/login", data={"token": "something else"})
    assert answer.status_code == 401
    assert "not the token" in answer.text
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "there", ["//evil.example/", "/\\evil.example", "https://evil.example/", "javascript:alert(1)"]
)
def test_the_form_leads_to_no_other_site(guarded: Web, there: str) -> None:
    answer = guarded.client.post("/login", data={"token": TOKEN, "next": there})
    assert answer.headers["location"] == "/"


def test_the_form_shows_what_came_in_as_text(guarded: Web) -> None:
    answer = guarded.client.get("/login", params={"next": '/"><script>alert(1)</script>'})
    assert "<script>" not in answer.text


def test_logging_out_takes_the_cookie_away(guarded: Web) -> None:
    log_in(guarded)
    guarded.client.post("/logout")
    assert guarded.get("/").status_code == 401


def test_a_long_form_is_refused(guarded: Web) -> None:
    assert guarded.client.post("/login", data={"token": "x" * 10_000}).status_code == 413


def test_without_a_token_only_this_machine_is_answered(web: Web) -> None:
    assert web.get("/", Host="rebound.example").status_code == 403
    assert web.get("/", Host=f"localhost:{web.port}").status_code == 200
    assert web.get("/", Host=f"[::1]:{web.port}").status_code == 200


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}]
)
def test_a_page_of_another_site_changes_nothing(web: Web, headers: dict[str, str]) -> None:
    answer = web.client.post("/dicom-web/studies", content=b"", headers=headers)
    assert answer.status_code == 403


@pytest.mark.parametrize("path", ["/", "/nothing", "/dicom-web/studies", "/healthz", "/static/node.css", "/viewer/"])
def test_every_answer_has_the_security_headers(web: Web, path: str) -> None:
    headers = web.get(path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-embedder-policy"] == "require-corp"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers


def test_what_is_not_there_is_said_in_text(web: Web) -> None:
    answer = web.get("/nothing/../../etc/passwd")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/plain")
    assert web.client.delete("/dicom-web/studies").status_code == 405


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py"])
def test_static_files_lead_nowhere_else(web: Web, path: str) -> None:
    assert send_raw(web, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").startswith(
        b"HTTP/1.1 404"
    )


def test_what_breaks_is_one_sentence_and_names_nobody(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    web.engine.dispose()
    for path in Path(web.config.data_dir).glob("node.sqlite*"):
        path.unlink()
    with caplog.at_level(logging.INFO):
        answer = web.get("/dicom-web/studies?PatientName=Geheim")
    assert answer.status_code == 503
    assert answer.text == "the database does not answer\n"
    said = node_log(caplog)
    assert "OperationalError in" in said
    assert "Geheim" not in said


def test_search_keys_stay_out_of_the_log(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="uvicorn"):
        web.get("/dicom-web/studies?PatientName=Geheim")
    assert "Geheim" not in node_log(caplog)


def test_health_needs_nothing(web: Web) -> None:
    assert web.get("/healthz").json() == {"status": "ok"}


def test_ready_is_who_has_database_spool_and_disk(web: Web) -> None:
    answer = web.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "database": "ok", "spool": "ok", "disk": "ok"}


def test_a_lost_database_is_not_ready(web: Web) -> None:
    web.engine.dispose()
    for path in Path(web.config.data_dir).glob("node.sqlite*"):
        path.unlink()
    answer = web.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["database"] == "failed"


def test_a_full_disk_is_not_ready(tmp_path: Path) -> None:
    with Web(tmp_path, limits=SpoolConfig(min_free_gb=1e9)) as running:
        answer = running.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"status": "failed", "database": "ok", "spool": "ok", "disk": "failed"}


def test_a_spool_that_cannot_be_written_is_not_ready(web: Web) -> None:
    incoming = web.config.spool_dir / "incoming"
    incoming.rmdir() if incoming.is_dir() else None
    incoming.write_text("in the way")
    assert web.get("/readyz").json()["spool"] == "failed"


def test_beyond_loopback_a_token_is_a_must(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('[web]\nhost = "0.0.0.0"\n')
    with pytest.raises(ConfigError, match=r"line 1: web: beyond loopback the web asks for a token"):
        configuration.load(path)
    path.write_text('[web]\nhost = "0.0.0.0"\ntoken_file = "web.token"\n')
    assert not configuration.load(path).web.on_loopback
    path.write_text('[web]\nhost = "0.0.0.0"\nenabled = false\n')
    configuration.load(path)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_loopback_needs_none(host: str) -> None:
    assert WebConfig(host=host).on_loopback


@pytest.mark.parametrize(("content", "said"), [("short", "at least 16"), ("", "is empty"), (None, "cannot be read")])
def test_a_token_that_is_none_is_said(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "web.token").write_text(content)
    with pytest.raises(ConfigError, match=said), Web(tmp_path, {"token_file": "web.token"}):
        pass


def test_a_port_that_is_taken_is_said() -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        port.listen()
        with pytest.raises(ConfigError, match="in use"):
            server.start_server(lambda scope, receive, send: None, "127.0.0.1", port.getsockname()[1])  # type: ignore[arg-type, return-value]


def test_serve_names_the_web_in_its_ready_line_and_ends_cleanly(tmp_path: Path) -> None:
    with Node(write_config(tmp_path), "serve", "--workers", "0") as running:
        address = running.log.split("web ")[1].split(",")[0]
        assert httpx.get(f"{address}readyz").json()["status"] == "ok"
        assert running.stop() == 0
    assert "Traceback" not in running.log


def test_serve_without_web_listens_to_dicom_only(tmp_path: Path) -> None:
    with Node(write_config(tmp_path, web={"enabled": False}), "serve", "--workers", "0") as running:
        assert ", web " not in running.log
        assert running.stop() == 0


def test_the_web_needs_no_torch() -> None:
    names = "'torch', 'highdicom', 'monai', 'scipy'"
    code = f"import sys, dicomnode.web.app; print([m for m in ({names}) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def node_log(caplog: pytest.LogCaptureFixture) -> str:
    """Return the log without the lines of the test's own HTTP client."""
    return "\n".join(record.getMessage() for record in caplog.records if record.name.partition(".")[0] not in _CLIENTS)


def send_raw(web: Web, request: str) -> bytes:
    """Send a request byte by byte as given and return the answer."""
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as sock:
        sock.sendall(request.encode("latin-1"))
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    return answer
