"""The web behind a proxy that speaks HTTPS: cookies, pages of other schemes, and the node's own machine beside it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.web_node import Web

pytestmark = pytest.mark.fast

TOKEN, HOST = "0123456789abcdef-not-guessed", "node.example"
COOKIE = "__Host-dicomnode"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """Yield a node whose public address has HTTPS."""
    folder = tmp_path_factory.mktemp("proxy")
    (folder / "web.token").write_text(TOKEN)
    settings = {"token_file": "web.token", "public_url": f"https://{HOST}/"}
    with Web(folder, settings) as running:
        yield running


def log_in(web: Web, host: str, **headers: str) -> httpx.Response:
    web.client.cookies.clear()
    answer = web.client.post("/login", data={"token": TOKEN, "next": "/"}, headers={"Host": host} | headers)
    web.client.cookies.clear()
    return answer


def test_the_cookie_of_the_public_address_is_of_this_host_and_for_https_only(web: Web) -> None:
    answer = log_in(web, HOST)
    parts = answer.headers["set-cookie"].split("; ")
    assert parts[0].startswith(f"{COOKIE}=")
    assert {"Secure", "HttpOnly", "Path=/"} <= set(parts)
    assert not any(part.startswith("Domain") for part in parts)
    assert "strict-transport-security" in answer.headers
    value = parts[0].partition("=")[2]
    assert web.get("/", Host=HOST, Cookie=f"{COOKIE}={value}").status_code == 200
    assert web.get("/", Host=HOST, Cookie=f"dicomnode={value}").status_code == 401, "another host may have put it there"
    left = web.client.post("/logout", headers={"Host": HOST, "Cookie": f"{COOKIE}={value}"})
    assert left.headers["set-cookie"].startswith(f'{COOKIE}="";')
    assert "Secure" in left.headers["set-cookie"]
    assert web.get("/", Host=HOST, Cookie=f"{COOKIE}={value}").status_code == 401


@pytest.mark.parametrize("host", ["127.0.0.1:8104", "localhost"])
def test_the_machine_of_the_node_logs_in_without_https(web: Web, host: str) -> None:
    answer = log_in(web, host, Origin=f"http://{host}")
    cookie = answer.headers["set-cookie"]
    assert (cookie.startswith("dicomnode="), "Secure" in cookie) == (True, False)
    assert "strict-transport-security" not in answer.headers
    assert web.get("/", Host=host, Cookie=cookie.partition(";")[0]).status_code == 200


def test_a_page_of_the_same_name_without_https_changes_nothing(web: Web) -> None:
    assert log_in(web, HOST, Origin=f"https://{HOST}").status_code == 303
    assert log_in(web, HOST, Origin=f"http://{HOST}").status_code == 403
