"""The web over HTTPS: clients that trust its certificate, clients that do not, and the headers for browsers."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from dicomnode.config.web import WebConfig
from dicomnode.errors import ConfigError
from tests.certificates import Authority, IssuedCertificate
from tests.peers.process import require_program
from tests.web_node import Web

TOKEN = "0123456789abcdef-not-guessed"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def issued(authority: Authority) -> IssuedCertificate:
    return authority.issue("web")


@pytest.fixture
def secure(tmp_path: Path, issued: IssuedCertificate) -> Iterator[Web]:
    """Serve HTTPS with a token."""
    (tmp_path / "web.token").write_text(TOKEN)
    settings = {"token_file": "web.token", "certificate_file": issued.certificate, "key_file": issued.key}
    with Web(tmp_path, settings) as running:
        yield running


def browser(secure: Web, authority: Authority, context: ssl.SSLContext | None = None) -> httpx.Client:
    context = context or ssl.create_default_context(cafile=authority.file)
    return httpx.Client(base_url=secure.address, verify=context, timeout=20)


def test_who_trusts_the_authority_is_served(secure: Web, authority: Authority) -> None:
    assert secure.address.startswith("https://")
    with browser(secure, authority) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/dicom-web/studies").status_code == 401  # the token is asked for all the same
        answer = client.get("/dicom-web/studies", headers=BEARER)
        assert answer.status_code in (200, 204)
        assert answer.headers["strict-transport-security"] == "max-age=31536000"


def test_who_does_not_trust_the_authority_sends_nothing(secure: Web, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "other", "other")
    with browser(secure, stranger) as client, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        client.get("/healthz")


def test_plain_http_at_the_https_port_gets_no_answer(secure: Web, authority: Authority) -> None:
    with httpx.Client(timeout=20) as plain, pytest.raises(httpx.TransportError):
        plain.get(secure.address.replace("https://", "http://") + "/healthz")
    with browser(secure, authority) as client:
        assert client.get("/healthz").status_code == 200


@pytest.mark.slow
def test_old_tls_and_other_suites_are_refused(secure: Web, authority: Authority) -> None:
    program = require_program("/usr/bin/openssl", "openssl")
    for version, is_accepted in (("-tls1_1", False), ("-tls1_2", True)):
        command = [program, "s_client", "-connect", f"127.0.0.1:{secure.port}", version, "-cipher", "ALL:@SECLEVEL=0"]
        done = subprocess.run(command, capture_output=True, input=b"", timeout=60, check=False)
        assert (done.returncode == 0) is is_accepted
    weak = ssl.create_default_context(cafile=authority.file)
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("ECDHE-RSA-AES256-SHA384:AES256-SHA")
    with browser(secure, authority, weak) as client, pytest.raises(httpx.ConnectError, match="SSL"):
        client.get("/healthz")
    weak.set_ciphers("ECDHE-RSA-AES256-GCM-SHA384")
    with browser(secure, authority, weak) as client:
        assert client.get("/healthz").status_code == 200


def test_the_cookie_is_for_https_only(secure: Web, authority: Authority) -> None:
    with browser(secure, authority) as client:
        answer = client.post("/login", data={"token": TOKEN, "next": "/"})
        assert answer.status_code == 303
        assert "Secure" in answer.headers["set-cookie"]
        assert client.get("/").status_code == 200


def test_plain_http_does_not_claim_https(tmp_path: Path) -> None:
    with Web(tmp_path) as plain:
        assert "strict-transport-security" not in plain.get("/healthz").headers


def test_a_certificate_that_changes_is_shown_without_a_restart(secure: Web, authority: Authority) -> None:
    first = _read_serial_number(secure, authority)
    renewed = authority.issue("web")
    assert _read_serial_number(secure, authority) == renewed.serial != first


@pytest.mark.slow
def test_a_certificate_that_cannot_be_used_is_named(
    tmp_path: Path, issued: IssuedCertificate, authority: Authority
) -> None:
    settings = {"certificate_file": issued.certificate, "key_file": authority.issue("y").key}
    with pytest.raises(ConfigError, match=r"^web\.key_file: .*y\.key is not the key of"), Web(tmp_path, settings):
        pass


def test_certificate_and_key_belong_together(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="belong together"):
        WebConfig(certificate_file=tmp_path / "web.crt")


def _read_serial_number(secure: Web, authority: Authority) -> int:
    context = ssl.create_default_context(cafile=authority.file)
    with (
        socket.create_connection(("127.0.0.1", secure.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as sock,
    ):
        certificate = sock.getpeercert()
        assert certificate
        return int(str(certificate["serialNumber"]), 16)
