"""Logging in by name, a refusal, and forms that name their account, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.account_node import NODE_TOKEN, PASSWORD, run_node
from tests.axe import find_violations, read_axe
from tests.chromium import launch_browser
from tests.test_accessibility_browser import walk_by_keyboard
from tests.test_dashboard_browser import DESK, PHONE, BrowserPage
from tests.web_node import Web
from tests.web_studies import PEERS, ROUTES, make_all_states

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.peers, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_browser() as running:
        yield running


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with run_node(tmp_path_factory.mktemp("accounts"), routes=ROUTES, peers=PEERS) as web:
        web.client.headers["Authorization"] = f"Bearer {NODE_TOKEN}"
        make_all_states(web)
        yield web


def log_in(page: Page, name: str, path: str) -> None:
    page.goto(path)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").press("Enter")
    page.locator("footer", has_text=f"{name} (").wait_for()


@pytest.mark.parametrize(("size", "scheme"), [("desk", "light"), ("phone", "dark")])
def test_no_page_of_accounts_breaks_a_rule_of_axe(browser: Browser, node: Web, size: str, scheme: str) -> None:
    axe, found = read_axe(), {}
    viewport = DESK if size == "desk" else PHONE
    with BrowserPage(browser, node, viewport=viewport, color_scheme=scheme, bypass_csp=True) as view:
        page = view.page
        page.goto("/login")
        found["login"] = find_violations(page, axe)
        page.get_by_label("Name").fill("vera")
        page.get_by_label("Password").fill("wrong password")
        page.get_by_role("button", name="Log in").press("Enter")
        page.get_by_role("alert").wait_for()
        found["wrong"] = find_violations(page, axe)
        log_in(page, "vera", "/hold")
        found["hold"] = find_violations(page, axe)
        page.get_by_label("Reason").first.fill("looks right")
        page.get_by_role("button", name="Release").first.press("Enter")
        page.get_by_role("heading", name="This needs the role operator").wait_for()
        found["refused"] = find_violations(page, axe)
    assert {name: broken for name, broken in found.items() if broken} == {}


def test_the_form_is_used_by_keyboard_alone(browser: Browser, node: Web) -> None:
    with BrowserPage(browser, node) as view:
        view.page.goto("/login")
        assert walk_by_keyboard(view.page) == []


def test_a_person_logs_in_decides_and_logs_out(browser: Browser, node: Web) -> None:
    with BrowserPage(browser, node) as view:
        page = view.page
        log_in(page, "otto", "/hold")
        page.get_by_text("Decided by otto").first.wait_for()
        assert page.get_by_label("Your initials").count() == 0
        page.get_by_label("Reason").first.fill("looks right")
        page.get_by_role("button", name="Release").first.press("Enter")
        page.get_by_text("released for delivery").wait_for()
        page.get_by_role("button", name="Log out").click()
        page.get_by_role("heading", name="Log in").wait_for()
        page.goto("/hold")
        page.get_by_role("heading", name="Log in").wait_for()
        assert view.console_errors == []
