"""Debian's Chromium without a window, driven by Playwright; skips where something of it is missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.peers.process import require_program

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["SCREENSHOTS", "launch_browser", "open_page"]

SCREENSHOTS = Path(__file__).resolve().parents[1] / "build" / "screenshots"
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
    page.set_default_timeout(90_000)
    try:
        yield page
    finally:
        page.close()
