"""The dashboard in a real browser: by mouse, by keyboard alone, on a phone, light and dark, with and without scripts.

Each test saves a screenshot under build/screenshots for review.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from db.models import Job
from db.states import JobState
from model_zoo import registry
from tests.chromium import SCREENSHOTS, launch_browser, wait_for_count
from tests.web_node import Web
from tests.web_studies import make_series, receive, report_progress, run_all_states, study_uid

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.peers, pytest.mark.timeout(300)]

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
ANATOMY = f"/models/anatomy@{registry.find('anatomy').version}"
PATHS = ("/", "/hold", "/failures", "/jobs", "/models", ANATOMY, "/peers", "/senders", "/system")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_browser() as running:
        yield running


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[Web, Mapping[str, int]]]:
    """Yield a node with a study in every state, and its jobs by outcome."""
    with run_all_states(tmp_path) as running:
        yield running


class BrowserPage:
    """A page of the browser, with the errors of its console."""

    def __init__(self, browser: Browser, web: Web, **options: Any) -> None:
        self.context = browser.new_context(base_url=web.address, **({"viewport": DESK} | options))
        self.page: Page = self.context.new_page()
        self.console_errors: list[str] = []
        self.page.on(
            "console", lambda message: self.console_errors.append(message.text) if message.type == "error" else None
        )
        self.page.on("pageerror", lambda error: self.console_errors.append(str(error)))

    def __enter__(self) -> BrowserPage:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def save_screenshot(self, name: str) -> None:
        """Save a screenshot of the complete page once its pictures are drawn."""
        self.page.evaluate("document.querySelectorAll('img').forEach((image) => { image.loading = 'eager'; })")
        wait_until(self.page, "() => [...document.images].every((image) => image.complete)")
        self.page.screenshot(path=str(SCREENSHOTS / f"dashboard-{name}.png"), full_page=True)


def test_the_list_of_studies_shows_their_way(browser: Browser, node: tuple[Web, Mapping[str, int]]) -> None:
    web, _ = node
    for scheme in ("light", "dark"):
        with BrowserPage(browser, web, color_scheme=scheme) as view:
            view.page.goto("/")
            wait_for_count(view.page.locator("li.study"), 12)
            view.page.get_by_role("link", name="Held for your decision").wait_for()
            view.page.locator("#live", has_text="live").wait_for()
            view.save_screenshot(f"studies-{scheme}")
            view.page.get_by_role("link", name="Failed 2").click()
            wait_for_count(view.page.locator("li.study"), 2)
            assert view.console_errors == []


def test_a_held_result_is_released_by_keyboard_alone(browser: Browser, node: tuple[Web, Mapping[str, int]]) -> None:
    web, made = node
    with BrowserPage(browser, web) as view:
        page = view.page
        page.goto("/hold")
        page.locator(".slices").wait_for()
        view.save_screenshot("hold")
        wait_for_count(page.locator(".figures img"), 4)
        tab_to(page, "input[type=range]")
        before = page.locator(".figures img").first.get_attribute("src")
        page.keyboard.press("ArrowRight")
        changed = "(before) => document.querySelector('.figures img').getAttribute('src') !== before"
        wait_until(page, changed, before)
        page.locator(".slices output", has_text="6 of 9").wait_for()
        tab_to(page, "input[name=reason]")
        page.keyboard.type("ventricles as in the source")
        page.keyboard.press("Enter")
        assert _state(web, made["held"]) is JobState.HELD, "Enter in a field decides nothing"
        tab_to(page, "input[name=who]")
        page.keyboard.type("MK")
        tab_to(page, "button[formaction$=release]")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        view.save_screenshot("hold-focus")
        page.keyboard.press("Enter")
        page.get_by_text("its results are released").wait_for()
        page.get_by_text("Nothing waits for a decision").wait_for()
        view.save_screenshot("hold-released")
        assert view.console_errors == []
    assert _state(web, made["held"]) is JobState.DONE


def test_a_reason_is_asked_for(browser: Browser, node: tuple[Web, Mapping[str, int]]) -> None:
    web, made = node
    with BrowserPage(browser, web) as view:
        view.page.goto("/hold")
        view.page.get_by_role("button", name="Discard").click()
        wait_until(view.page, "() => document.activeElement.name === 'reason'")
        assert _state(web, made["held"]) is JobState.HELD


def test_news_come_by_themselves(browser: Browser, node: tuple[Web, Mapping[str, int]]) -> None:
    web, made = node
    with BrowserPage(browser, web) as view:
        page = view.page
        page.goto("/")
        page.locator("#live", has_text="live").wait_for()
        page.evaluate("() => { document.querySelector('li.study').mine = true; }")
        report_progress(web, made["running"], 0.77, "writing")
        wait_until(page, "() => document.querySelector('progress').value === 77")
        page.locator("[data-job-words]", has_text="77 %").first.wait_for()
        receive(web, make_series("new")[:3])
        page.locator("li.study", has_text="P-new-00471").wait_for()
        wait_for_count(page.locator("li.study"), 13)
        field = page.evaluate("() => [...document.querySelectorAll('li.study')].filter((row) => row.mine).length")
        assert field == 1, "what did not change stays the same element"
        assert view.console_errors == []


def test_what_a_person_writes_is_not_lost_to_news(browser: Browser, node: tuple[Web, Mapping[str, int]]) -> None:
    web, made = node
    with BrowserPage(browser, web) as view:
        page = view.page
        page.goto("/hold")
        page.locator("#live", has_text="live").wait_for()
        page.locator("input[name=reason]").fill("half a sen")
        web.client.post(f"/jobs/{made['dead']}/retry")
        page.locator("#pages .count.bad", has_text="2").wait_for()
        assert page.locator("input[name=reason]").input_value() == "half a sen"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(browser: Browser, node: tuple[Web, Mapping[str, int]], scheme: str) -> None:
    web, made = node
    with BrowserPage(browser, web, viewport=PHONE, color_scheme=scheme, has_touch=True, is_mobile=True) as view:
        for path in (
            *PATHS,
            f"/jobs/{made['held']}",
            f"/studies/{study_uid('held')}",
            f"/studies/{study_uid('unrouted')}",
        ):
            view.page.goto(path)
            assert view.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path
            name = path.strip("/").partition("/")[0] or "studies"
            if path in ("/", "/hold", f"/studies/{study_uid('held')}"):
                view.save_screenshot(f"phone-{name}{'-one' if path.count('/') > 1 else ''}-{scheme}")
        assert view.console_errors == []


def test_all_pages_work_without_scripts(browser: Browser, node: tuple[Web, Mapping[str, int]]) -> None:
    web, made = node
    with BrowserPage(browser, web, java_script_enabled=False) as view:
        page = view.page
        page.goto("/")
        page.get_by_label("Patient ID or name").fill("p-held")
        page.get_by_role("button", name="Search").last.click()
        page.get_by_text("1 study").wait_for()
        page.get_by_role("link", name="MR head, follow-up").first.click()
        page.get_by_role("link", name="Decide in the hold queue").click()
        page.get_by_label("Reason").fill("no scripts here")
        page.get_by_label("Your initials").fill("MK")
        page.get_by_role("button", name="Discard").click()
        page.get_by_text(f"Job {made['held']}: its results are discarded").wait_for()
    assert _state(web, made["held"]) is JobState.CANCELLED


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground(browser: Browser, node: tuple[Web, Mapping[str, int]], scheme: str) -> None:
    web, _ = node
    with BrowserPage(browser, web, color_scheme=scheme) as view:
        for path in ("/", "/hold", "/failures", "/jobs", "/peers", "/system"):
            view.page.goto(path)
            assert view.page.evaluate(_FAINT) == [], path


def wait_until(page: Page, script: str, argument: Any = None) -> None:
    """Wait until a function of the page is true, polled from outside: the policy forbids pages to evaluate text."""
    for _ in range(300):
        if page.evaluate(script, argument):
            return
        page.wait_for_timeout(50)
    raise TimeoutError(script)


def _state(web: Web, id: int) -> JobState:
    found: Job = next(row for row in web.rows(Job) if row.id == id)
    return found.state


def tab_to(page: Page, selector: str) -> None:
    for _ in range(60):
        if page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab never comes to {selector}")


_FAINT = """
() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = rgba(getComputedStyle(at).backgroundColor);
      if (found[3] > 250) return found;
    }
    return [255, 255, 255, 255];
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest('.hidden, .off, .skip')) continue;
    const [a, b] = [rgba(getComputedStyle(element).color), ground(element)].map(light).sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(walker.currentNode.data.trim());
  }
  return faint;
}
"""
"""Texts whose contrast is below 4.5 to 1 (WCAG 2.2, 1.4.3)."""
