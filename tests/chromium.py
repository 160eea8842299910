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

__all__ = ["SCREENSHOTS", "browsing", "page_of"]

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
def browsing() -> Iterator[Browser]:
    """A browser until the block ends."""
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
def page_of(browser: Browser, wrong: list[str]) -> Iterator[Page]:
    """A page whose errors, refused answers and breaches of the policy are collected in ``wrong``."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("response", lambda answer: wrong.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    page.set_default_timeout(90_000)
    try:
        yield page
    finally:
        page.close()
