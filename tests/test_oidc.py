"""Log-in through a provider of OpenID Connect: the whole way over HTTP, and what is refused on it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from db import accounts
from db.models import Account
from db.states import Role
from dicomnode.accounts.oidc import Provider
from dicomnode.config.oidc import OidcConfig
from dicomnode.config.web import WebConfig
from dicomnode.errors import ProviderUnreachable
from tests.account_node import cookie_of, find_events, log_in, run_node
from tests.oidc_provider import CLIENT_ID, SECRET, IdentityProvider, run_provider
from tests.web_node import Web

pytestmark = pytest.mark.slow

PUBLIC = "https://node.example"
ROLES = {"viewer": ["readers"], "operator": ["technicians"], "administrator": ["chiefs"]}
NOW = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    with run_provider(lambda: NOW) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, provider: IdentityProvider) -> Iterator[Web]:
    (tmp_path / "oidc.secret").write_text(SECRET)
    oidc = {"issuer": provider.issuer, "client_id": CLIENT_ID, "client_secret_file": "oidc.secret", "roles": ROLES}
    with run_node(tmp_path, {"oidc": oidc, "public_url": PUBLIC}) as web:
        yield web


def begin(web: Web, target: str = "/jobs") -> tuple[str, dict[str, str]]:
    """Begin a log-in; return the provider's address and the header of the cookie."""
    web.client.cookies.clear()
    answer = web.client.get("/login/provider", params={"next": target})
    assert answer.status_code == 303, answer.text
    web.client.cookies.clear()
    return answer.headers["location"], {"Cookie": answer.headers["set-cookie"].partition(";")[0]}


def enter(web: Web, **changed: str) -> httpx.Response:
    """Go the whole way of a browser; ``changed``: parameters of the provider's answer."""
    address, cookie = begin(web)
    back = httpx.get(address).headers["location"]
    assert back.startswith(f"{PUBLIC}/login/return?")
    query = {name: values[0] for name, values in parse_qs(urlsplit(back).query).items()} | changed
    answer = web.client.get("/login/return", params=query, headers=cookie)
    web.client.cookies.clear()
    return answer


def session_of(answer: httpx.Response) -> dict[str, str]:
    [cookie] = [each for each in answer.headers.get_list("set-cookie") if each.startswith("dicomnode=")]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    return {"Cookie": cookie.partition(";")[0]}


def accounts_of(web: Web) -> dict[str, Account]:
    return {each.name: each for each in web.rows(Account) if each.issuer}


def test_a_person_logs_in_through_the_provider(site: Web, provider: IdentityProvider) -> None:
    assert "Log in through 127.0.0.1" in site.get("/login", "text/html").text
    answer = enter(site)
    assert answer.status_code == 200
    assert '<meta http-equiv="refresh" content="0; url=/jobs">' in answer.text
    page = site.client.get("/jobs", headers=session_of(answer) | {"Accept": "text/html"})
    assert "Anna Beta (viewer)" in page.text
    account = accounts_of(site)["oidc:4711"]
    assert (account.display_name, account.role, account.issuer) == ("Anna Beta", Role.VIEWER, provider.issuer)
    [event] = find_events(site, "accounts", "logged_in")
    assert event.detail["account"] == "oidc:4711"
    assert provider.seen_methods == ["client_secret_basic"]


def test_the_request_to_the_provider_has_pkce_state_and_nonce_of_its_own(site: Web) -> None:
    first, second = (parse_qs(urlsplit(begin(site)[0]).query) for _ in range(2))
    for name in ("state", "nonce", "code_challenge"):
        assert len(first[name][0]) == 43
        assert first[name] != second[name]
    assert first["scope"] == ["openid profile"]
    assert first["prompt"] == ["select_account"]


def test_the_cookie_on_the_way_is_for_the_return_only(site: Web) -> None:
    cookie = site.client.get("/login/provider").headers["set-cookie"]
    for part in ("dicomnode-login=", "HttpOnly", "Max-Age=600", "Path=/;", "SameSite=lax"):
        assert part in cookie


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"nonce": "another"}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"aud": "another"}, "aud"),
        ({"aud": [CLIENT_ID, "another"], "azp": "another"}, "azp"),
        ({"iss": "https://evil.example"}, "iss"),
        ({"exp": int((NOW - timedelta(minutes=5)).timestamp())}, "expired"),
        ({"exp": None}, "exp"),
        ({"sub": None}, "sub"),
        ({"sub": "ä"}, "sub"),
        ({"roles": ["cooks"]}, "'roles' of the provider names none of [web.oidc.roles]"),
        ({"roles": None}, "no role on this node"),
        ({"roles": 7}, "no role on this node"),
        ({"roles": [["readers"], 7]}, "no role on this node"),
    ],
)
def test_a_token_with_a_wrong_claim_is_refused_by_name(
    site: Web, provider: IdentityProvider, changed: dict[str, Any], fault: str
) -> None:
    provider.changed = changed
    assert_refused(site, enter(site), fault)


@pytest.mark.parametrize("kind", ["other key", "secret", "nothing"])
def test_a_token_without_the_providers_signature_is_refused(site: Web, provider: IdentityProvider, kind: str) -> None:
    provider.signs_with = kind
    assert_refused(site, enter(site), "id token")


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"state": "another"}, "state"),
        ({"state": ""}, "state"),
        ({"code": "another"}, "invalid_grant"),
        ({"iss": "https://evil.example"}, "another provider"),
        ({"error": "access_denied"}, "access_denied"),
    ],
)
def test_an_answer_that_is_not_to_this_log_in_is_refused(site: Web, changed: dict[str, str], fault: str) -> None:
    assert_refused(site, enter(site, **changed), fault)


def assert_refused(site: Web, answer: httpx.Response, fault: str) -> None:
    assert answer.status_code == 403
    assert fault.replace("'", "&#39;") in answer.text
    assert "set-cookie" not in answer.headers
    assert accounts_of(site) == {}


def test_an_answer_counts_once_in_time_and_in_its_own_browser(site: Web) -> None:
    address, cookie = begin(site)
    query = parse_qs(urlsplit(httpx.get(address).headers["location"]).query)
    assert site.client.get("/login/return", params=query).status_code == 400
    assert site.client.get("/login/return", params=query, headers=cookie).status_code == 200
    assert site.client.get("/login/return", params=query, headers=cookie).status_code == 400
    address, cookie = begin(site)
    query = parse_qs(urlsplit(httpx.get(address).headers["location"]).query)
    site.now += timedelta(minutes=11)
    assert site.client.get("/login/return", params=query, headers=cookie).status_code == 400


def test_the_highest_role_counts_and_a_new_one_ends_the_sessions(site: Web, provider: IdentityProvider) -> None:
    before = session_of(enter(site))
    assert site.client.get("/", headers=before).status_code == 200
    provider.claims["roles"] = ["readers", "chiefs"]
    after = session_of(enter(site))
    assert site.client.get("/", headers=before).status_code == 401
    assert site.client.get("/", headers=after).status_code == 200
    assert accounts_of(site)["oidc:4711"].role is Role.ADMINISTRATOR


def test_a_disabled_person_is_refused_by_name(site: Web) -> None:
    cookie = session_of(enter(site))
    with site.sessions.begin() as session:
        account = accounts.find(session, "oidc:4711")
        assert account is not None
        accounts.disable(session, account, by="root", now=site.now)
    assert site.client.get("/", headers=cookie).status_code == 401
    answer = enter(site)
    assert answer.status_code == 403
    assert "the account of Anna Beta is disabled" in answer.text


def test_an_account_of_another_provider_is_not_taken_over(site: Web) -> None:
    with site.sessions.begin() as session:
        accounts.add(
            session, name="oidc:4711", display_name="X", role=Role.ADMINISTRATOR, issuer="https://old.example",
            by="root", now=site.now,
        )  # fmt: skip
    answer = enter(site)
    assert answer.status_code == 403
    assert "is of another provider, https://old.example" in answer.text


@pytest.mark.parametrize("status", [500, 302, 0])
def test_a_provider_that_is_down_refuses_log_ins_and_ends_no_session(
    site: Web, provider: IdentityProvider, status: int
) -> None:
    cookie = session_of(enter(site))
    address, pending = begin(site)
    provider.fails_with = status
    site.now += timedelta(minutes=6)  # metadata count no longer
    if status == 0:
        provider.stop()
    answer = site.client.get("/login/provider")
    assert answer.status_code == 503
    assert f"the provider {provider.issuer} does not answer" in answer.text
    query = {"code": "x", "state": parse_qs(urlsplit(address).query)["state"][0]}
    assert site.client.get("/login/return", params=query, headers=pending).status_code == 503
    assert site.client.get("/", headers=cookie).status_code == 200
    assert log_in(site, "otto").status_code == 303


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        ({"issuer": "https://evil.example"}, "another issuer"),
        ({"token_endpoint": "http://evil.example/"}, "no addresses with https://"),
        ({"jwks_uri": None}, "no addresses with https://"),
    ],
)
def test_metadata_that_lead_elsewhere_are_refused(
    site: Web, provider: IdentityProvider, metadata: dict[str, Any], fault: str
) -> None:
    provider.metadata = metadata
    answer = site.client.get("/login/provider")
    assert answer.status_code == 503
    assert fault in answer.text


def test_a_provider_that_takes_the_secret_in_the_form_only_gets_it_there(site: Web, provider: IdentityProvider) -> None:
    provider.methods = ("client_secret_post",)
    assert enter(site).status_code == 200
    assert provider.seen_methods == ["client_secret_post"]


def test_local_accounts_log_in_beside_the_provider(site: Web) -> None:
    assert site.client.get("/", headers=cookie_of(site, "anna")).status_code == 200


def test_many_log_ins_from_one_address_wait(site: Web) -> None:
    statuses = {site.client.get("/login/provider").status_code for _ in range(41)}
    assert statuses == {303, 429}


def test_log_ins_that_succeed_do_not_count(site: Web) -> None:
    for _ in range(41):
        address, cookie = begin(site)
        query = parse_qs(urlsplit(httpx.get(address).headers["location"]).query)
        assert site.client.get("/login/return", params=query, headers=cookie).status_code == 200
    site.client.cookies.clear()


@pytest.mark.parametrize("from_where", ["cross-site", "same-site"])
def test_a_page_of_another_site_begins_no_log_in(site: Web, from_where: str) -> None:
    for _ in range(41):
        assert site.client.get("/login/provider", headers={"Sec-Fetch-Site": from_where}).status_code == 403
    for own in ("none", "same-origin"):
        assert site.client.get("/login/provider", headers={"Sec-Fetch-Site": own}).status_code == 303


def test_a_provider_that_never_answers_takes_no_thread_of_the_node(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ExitStack() as stack:
        oidc = {"issuer": f"http://127.0.0.1:{silent.getsockname()[1]}", "client_id": CLIENT_ID, "roles": ROLES}
        web = stack.enter_context(run_node(tmp_path, {"oidc": oidc, "public_url": PUBLIC}))
        pool = stack.enter_context(ThreadPoolExecutor(4))
        with ExitStack() as connections:
            waiting = [pool.submit(httpx.get, f"{web.address}/login/provider", timeout=120) for _ in range(4)]
            for _ in range(4):
                connections.enter_context(silent.accept()[0])
            answer = web.client.get("/login/provider")
            assert (answer.status_code, "others wait for it" in answer.text) == (503, True)
            assert not any(each.done() for each in waiting)
            assert log_in(web, "otto").status_code == 303
        assert {each.result().status_code for each in waiting} == {503}


def test_metadata_count_for_some_minutes(site: Web, provider: IdentityProvider) -> None:
    begin(site)
    provider.metadata = {"issuer": "https://evil.example"}
    begin(site)
    site.now += timedelta(minutes=5)
    assert site.client.get("/login/provider").status_code == 503


def test_a_provider_may_be_asked_without_a_prompt(provider: IdentityProvider) -> None:
    config = OidcConfig.model_validate({
        "issuer": provider.issuer, "client_id": CLIENT_ID, "roles": ROLES, "prompt": "",
    })  # fmt: skip
    assert "prompt" not in Provider(config, f"{PUBLIC}/login/return", lambda: NOW).begin().address


def test_authorities_that_cannot_be_read_are_a_provider_that_cannot_be_reached(tmp_path: Path) -> None:
    config = OidcConfig.model_validate({
        "issuer": "https://127.0.0.1:9", "client_id": CLIENT_ID, "roles": ROLES, "ca_file": tmp_path / "none.crt",
    })  # fmt: skip
    with pytest.raises(ProviderUnreachable, match="does not answer"):
        Provider(config, f"{PUBLIC}/login/return", lambda: NOW).begin()


def test_a_role_inside_another_claim_is_found(tmp_path: Path, provider: IdentityProvider) -> None:
    provider.claims = {"sub": "1", "preferred_username": "olga", "realm_access": {"roles": ["technicians"]}}
    (tmp_path / "oidc.secret").write_text(SECRET)
    oidc = {
        "issuer": provider.issuer, "client_id": CLIENT_ID, "client_secret_file": "oidc.secret", "roles": ROLES,
        "role_claim": "realm_access.roles", "name_claim": "preferred_username",
    }  # fmt: skip
    with run_node(tmp_path, {"oidc": oidc, "public_url": PUBLIC}) as web:
        assert enter(web).status_code == 200
        assert (accounts_of(web)["oidc:1"].display_name, accounts_of(web)["oidc:1"].role) == ("olga", Role.OPERATOR)


def test_settings_that_let_nobody_in_or_everybody_watch_are_refused() -> None:
    right = {"issuer": "https://idp.example", "client_id": "dicomnode", "roles": ROLES}
    assert OidcConfig.model_validate(right).scope == "openid profile"
    for changed, fault in (
        ({"issuer": "http://idp.example"}, "https://"),
        ({"roles": {}}, "nobody could log in"),
        ({"scope": "profile"}, "openid"),
    ):
        with pytest.raises(ValueError, match=fault):
            OidcConfig.model_validate(right | changed)
    for web in ({"accounts": True}, {"public_url": PUBLIC}):
        with pytest.raises(ValueError, match=r"needs accounts = true and public_url"):
            WebConfig.model_validate(web | {"oidc": right})
