"""The reading page in a real browser: by keyboard alone, on a phone, without scripts. Screenshots under build/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from db.models import Reading
from tests.chromium import launch_browser
from tests.test_dashboard_browser import PHONE, BrowserPage, tab_to, wait_until
from tests.web_node import Web
from tests.web_readings import SLICE_OF_LESION_2, make_reading, study_page
from tests.web_studies import PEERS, ROUTES

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.peers, pytest.mark.timeout(300), pytest.mark.slow]

_ALL_AT = "(at) => [...document.querySelectorAll('img[data-picture]')].every((one) => one.src.includes(`at=${at}&`))"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_browser() as running:
        yield running


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with Web(tmp_path, sections={"routes": ROUTES, "peers": PEERS}) as running:
        make_reading(running)
        yield running


def test_a_result_is_read_and_rejected_by_keyboard_alone(browser: Browser, web: Web) -> None:
    with BrowserPage(browser, web) as view:
        page = view.page
        page.goto(study_page())
        pictures = page.locator("img[data-picture]")
        assert pictures.count() == 5
        tab_to(page, "#slice")
        page.keyboard.press("ArrowRight")
        wait_until(page, "() => document.querySelector('output').textContent === '5 of 9'")
        wait_until(
            page, "() => [...document.querySelectorAll('img[data-picture]')].every((i) => i.src.includes('at=4'))"
        )
        page.keyboard.press("PageDown")
        wait_until(page, "() => document.querySelector('output').textContent === '1 of 9'")
        tab_to(page, f"tbody button[value='{SLICE_OF_LESION_2}']")
        page.keyboard.press("Enter")
        wait_until(page, "() => document.querySelector('tr.here').textContent.includes('Lesion 2')")
        wait_until(page, _ALL_AT, SLICE_OF_LESION_2)
        view.save_screenshot("reading")
        tab_to(page, "input[name=reason]")
        page.keyboard.type("motion artefact")
        tab_to(page, "input[name=who]")
        page.keyboard.type("MK")
        tab_to(page, "button[value=rejected]")
        page.keyboard.press("Enter")
        page.get_by_text("Rejected").first.wait_for()
        assert view.console_errors == []
    assert web.rows(Reading)[0].reason == "motion artefact"


def test_the_marking_stays_in_sight_on_a_phone(browser: Browser, web: Web) -> None:
    with BrowserPage(browser, web, viewport=PHONE, has_touch=True, is_mobile=True, color_scheme="dark") as view:
        page = view.page
        page.goto(study_page())
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        view.save_screenshot("phone-reading")
        page.locator("button[value=accepted]").scroll_into_view_if_needed()
        assert page.locator(".marks").bounding_box()["y"] >= 0  # type: ignore[index]
        assert view.console_errors == []


def test_slices_change_without_scripts(browser: Browser, web: Web) -> None:
    with BrowserPage(browser, web, java_script_enabled=False) as view:
        page = view.page
        page.goto(study_page())
        page.locator(f"tbody button[value='{SLICE_OF_LESION_2}']").click()
        assert "at=6&" in (page.locator("img[data-picture]").first.get_attribute("src") or "")
        page.get_by_role("button", name="Show").click()
        assert "at=6&" in (page.locator("img[data-picture]").first.get_attribute("src") or "")
