"""The reading page in a real browser: by keyboard alone, on a phone, without scripts. Screenshots under build/."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from db.models import Reading
from dicomnode.config import Config
from dicomnode.web import ohif
from tests.chromium import SCREENSHOTS, launch_browser, wait_for_count, wait_until_true
from tests.test_dashboard_browser import PHONE, BrowserPage, tab_to, wait_until
from tests.web_node import Web
from tests.web_readings import SLICE_OF_LESION_2, make_reading, study_page
from tests.web_studies import PEERS, ROUTES, study_uid

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.peers, pytest.mark.timeout(300), pytest.mark.slow]

_ALL_AT = "(at) => [...document.querySelectorAll('img[data-picture]')].every((one) => one.src.includes(`at=${at}&`))"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_browser() as running:
        yield running


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    folder = str(ohif.viewer_folder(Config().web))
    with Web(tmp_path, {"viewer_dir": folder}, sections={"routes": ROUTES, "peers": PEERS}) as running:
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
        wait_until(page, "() => document.querySelector('tr.here')?.textContent.includes('Lesion 2')")
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
        wait_for_count(page.locator("img[data-picture][src*='at=6&']"), 5)
        with page.expect_navigation():
            page.get_by_role("button", name="Show").click()
        wait_for_count(page.locator("img[data-picture][src*='at=6&']"), 5)


def test_the_viewer_opens_source_beside_result_at_the_slice_with_the_masks(browser: Browser, web: Web) -> None:
    if ohif.find_installed(ohif.viewer_folder(Config().web)) is None:
        pytest.skip("the viewer is not installed: 'dicomnode viewer install' (needs npm)")
    with BrowserPage(browser, web) as view:
        page = view.page
        page.goto(study_page())
        page.locator(f"tbody button[value='{SLICE_OF_LESION_2}']").click()
        page.get_by_role("link", name="Viewer", exact=True).click()
        wait_for_count(page.get_by_text("1 (7/9)"), 1)  # the seventh frame of the result
        wait_for_count(page.get_by_text("7 (3/9)"), 1)  # instance 7: OHIF counts a series from its other end
        wait_for_count(page.get_by_text("FLAIR 3D", exact=True), 2)  # its thumbnail and its pane
        wait_until_true(page, lambda: count_orange(page)[1] > 50, "the lesion of the slice on the result")
        page.screenshot(path=str(SCREENSHOTS / "viewer-reading.png"))
        assert count_orange(page)[0] < 50
        wait_for_count(page.get_by_text("SYN Lesions by location"), 1)
        assert page.get_by_text("SYN Measurements").count() == 0, "OHIF would show a black pane for the report"


def count_orange(page: Page) -> list[int]:
    """Return the number of pixels in the colour of the lesion, in the left and the right pane."""
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), int)[100:850]
    is_orange = (pixels[..., 0] - pixels[..., 2] > 80) & (pixels[..., 0] > 180)
    middle = (280 + pixels.shape[1]) // 2
    return [int(is_orange[:, 280:middle].sum()), int(is_orange[:, middle:-40].sum())]


def test_the_viewer_opens_a_study_by_its_uid_with_both_sides_named(browser: Browser, web: Web) -> None:
    if ohif.find_installed(ohif.viewer_folder(Config().web)) is None:
        pytest.skip("the viewer is not installed: 'dicomnode viewer install' (needs npm)")
    with BrowserPage(browser, web) as view:
        view.page.goto(f"/viewer?StudyInstanceUIDs={study_uid('reading')}")
        panes = [
            view.page.get_by_text(words, exact=True).first for words in ("Acquired", "SYNTHETIC: research use only")
        ]
        for pane in panes:
            pane.wait_for(timeout=90_000)
        wait_until_true(view.page, lambda: is_beside(*panes), "the source beside the marked result")
        view.page.screenshot(path=str(SCREENSHOTS / "viewer-by-uid.png"))


def is_beside(left: Locator, right: Locator) -> bool:
    first, second = left.bounding_box(), right.bounding_box()
    return first is not None and second is not None and first["x"] < second["x"]
