"""Debian's Chromium without a window, driven by Playwright; skips where something of it is missing."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.peers.process import require_program

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

__all__ = ["SCREENSHOTS", "launch_browser", "open_page", "wait_for_count", "wait_until_true"]

SCREENSHOTS = Path(__file__).resolve().parents[1] / "build" / "screenshots"
_LONGEST_WAIT_S = 90
# WebGL in software: there is no GPU to ask for.
_ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]


@contextmanager
def launch_browser() -> Iterator[Browser]:
    """Run a browser until the block ends."""
    program = require_program("/usr/bin/chromium", "chromium")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is missing: install the extra 'test'")
    from playwright.sync_api import sync_playwright

    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: Browser, problems: list[str]) -> Iterator[Page]:
    """Open a page; collect its errors, refused answers and breaches of the policy in ``problems``."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on(
        "response", lambda answer: problems.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None
    )
    page.set_default_timeout(_LONGEST_WAIT_S * 1000)
    try:
        yield page
    finally:
        page.close()


def wait_for_count(found: Locator, number: int) -> None:
    """Wait until a page shows so many elements, no more and no fewer."""
    from playwright.sync_api import expect

    expect(found).to_have_count(number, timeout=_LONGEST_WAIT_S * 1000)


def wait_until_true(page: Page, condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds that only a look from outside can tell, as the pixels of a canvas can."""
    end = time.monotonic() + _LONGEST_WAIT_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        page.wait_for_timeout(200)
