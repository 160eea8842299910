"""Every page in a real browser for people who use a keyboard or assistive technology: axe-core, and the Tab key.

Pages are listed in ``tests.web_pages``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from starlette.responses import HTMLResponse

from dicomnode.report import html
from dicomnode.web import pages
from tests.axe import find_violations, read_axe
from tests.chromium import SCREENSHOTS, launch_browser
from tests.test_dashboard_browser import DESK, PHONE, BrowserPage
from tests.test_report import compose_example
from tests.web_node import Web
from tests.web_pages import PAGES, TOKEN, run_node

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.peers, pytest.mark.timeout(300)]

_LOGGED_IN = {"Authorization": f"Bearer {TOKEN}"}
_MOST_STOPS = 400
_NOT_SEEN = {"base.html", "page.html", "macros.html", "sr.html"} | {
    "login_account.html", "login_done.html", "refused.html", "try_confirm.html", "try_options.html", "try_outcome.html",
    "try_written.html",
}  # fmt: skip
"""Parts of pages, the report, which a process of its own renders, and what tests/test_try_browser.py and
tests/test_account_pages_browser.py look at. login_done.html leads on at once (tests/test_oidc.py)."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_browser() as running:
        yield running


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Web, Mapping[str, str]]]:
    """Yield a node with something on every page, and the addresses of its pages by name."""
    with run_node(tmp_path_factory.mktemp("pages")) as running:
        yield running


@pytest.fixture(scope="module")
def axe() -> str:
    return read_axe()


@pytest.mark.parametrize(("size", "scheme"), [("desk", "light"), ("phone", "dark")])
def test_no_page_breaks_a_rule_of_axe(
    browser: Browser, node: tuple[Web, Mapping[str, str]], axe: str, size: str, scheme: str
) -> None:
    web, addresses = node
    found: dict[str, list[str]] = {}
    with open_pages(browser, web, viewport=DESK if size == "desk" else PHONE, color_scheme=scheme) as view:
        for name, address in addresses.items():
            view.page.goto(address)
            open_details(view.page)
            found[name] = find_violations(view.page, axe)
    assert {name: broken for name, broken in found.items() if broken} == {}


@pytest.mark.parametrize(("size", "scheme"), [("desk", "light"), ("phone", "dark")])
def test_the_page_of_a_run_breaks_no_rule_and_keeps_its_mark_in_sight(
    browser: Browser, axe: str, tmp_path: Path, size: str, scheme: Literal["light", "dark"]
) -> None:
    file = tmp_path / "page.html"
    file.write_text(html.render_html(compose_example()))
    page = browser.new_page(viewport=DESK if size == "desk" else PHONE, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(file.as_uri())
    page.screenshot(path=SCREENSHOTS / f"run-page-{size}-{scheme}.png", full_page=True)
    assert find_violations(page, axe) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert walk_by_keyboard(page) == []
    page.get_by_role("heading", name="Provenance").scroll_into_view_if_needed()
    assert page.locator("header").bounding_box()["y"] == 0  # type: ignore[index]
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_tab_reaches_every_control_and_enter_sends_every_form(
    browser: Browser, node: tuple[Web, Mapping[str, str]], name: str
) -> None:
    web, addresses = node
    with open_pages(browser, web) as view:
        view.page.goto(addresses[name])
        problems = walk_by_keyboard(view.page)
    assert problems == []


def test_every_page_of_the_node_is_listed(node: tuple[Web, Mapping[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    web, addresses = node
    seen: set[str] = set()
    render = pages.render

    def note(template: str, status: int = 200, /, **values: Any) -> HTMLResponse:
        seen.add(template)
        return render(template, status, **values)

    monkeypatch.setattr(pages, "render", note)
    for address in addresses.values():
        web.get(address, "text/html")
    templates = {path.name for path in Path(pages.__file__).with_name("templates").glob("*.html")}
    assert templates - seen - _NOT_SEEN == set(), "add a line to PAGES in tests/web_pages.py"


def open_pages(browser: Browser, web: Web, **options: Any) -> BrowserPage:
    """Open a page as somebody logged in; without the policies, since that of reports lets no script look at them."""
    return BrowserPage(browser, web, extra_http_headers=_LOGGED_IN, bypass_csp=True, **options)


def open_details(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")


def walk_by_keyboard(page: Page) -> list[str]:
    """Press Tab through the page, use each control by keyboard, and return what does not work.

    A field may have the focus at first: the controls before it come after the end of the page.
    """
    page.evaluate(_WATCH)
    problems: list[str] = []
    begins_again = True
    for number in range(_MOST_STOPS):
        stop = page.evaluate(_LOOK)
        if stop is None and number > 0:
            missed = page.evaluate(_MISSED)
            if not missed or not begins_again:
                return problems + [f"Tab never comes to {each}" for each in missed]
            begins_again = False
        if stop is not None:
            problems += [
                f"{stop['what']}: {problem}" for problem in [*stop["problems"], *use_control(page, stop["kind"])]
            ]
        page.keyboard.press("Tab")
    return [*problems, f"Tab does not leave the page within {_MOST_STOPS} stops"]


def use_control(page: Page, kind: str) -> list[str]:
    if kind in _TEXTS:
        page.keyboard.type(_TEXTS[kind])
    elif kind in _KEYS:
        page.keyboard.press(_KEYS[kind])
    problems: list[str] = page.evaluate(_CHECK)
    return [*problems, "Escape does not close its dialog"] if is_dialog_left_open(page) else problems


def is_dialog_left_open(page: Page) -> bool:
    is_open = "Boolean(document.querySelector('dialog[open]'))"
    if page.evaluate(is_open):
        page.keyboard.press("Escape")
    return bool(page.evaluate(is_open))


_KEYS = {"select": "ArrowDown", "checkbox": "Space", "closed": "Enter", "submit": "Enter", "button": "Enter"}
_TEXTS = {"text": "7", "date": "11202026"}
"""What a person presses and writes on a kind of control."""

_WATCH = """
() => {
  window.sent = [];
  addEventListener('submit', (event) => {
    event.preventDefault();
    event.stopImmediatePropagation();
    window.sent.push(event.submitter);
  }, true);
}
"""
"""Keep what is sent, and send nothing."""

_LOOK = """
() => {
  const at = document.activeElement;
  const again = at.dataset.reached && at !== window.last;
  if (at === document.body || again) return null;
  const first = !at.dataset.reached;
  at.dataset.reached = 'yes';
  window.last = at;
  const problems = [];
  const style = getComputedStyle(at);
  if (first && (style.outlineStyle === 'none' || parseFloat(style.outlineWidth) < 1)) problems.push('no visible focus');
  const box = at.getClientRects()[0] ?? new DOMRect();
  const places = [[0.5, 0.5], [0.1, 0.5], [0.9, 0.5], [0.5, 0.1], [0.5, 0.9]];
  const seen = places.some(([across, down]) => {
    const top = document.elementFromPoint(box.x + across * box.width, box.y + down * box.height);
    return top && (at.contains(top) || top.contains(at));
  });
  if (!seen) problems.push('out of sight or covered when focused');
  const kind = !first ? 'seen'
    : at.matches('summary') ? (at.parentElement.open ? 'open' : 'closed')
    : at.matches('select') ? 'select'
    : at.matches('button') || ['date', 'checkbox'].includes(at.type) ? at.type
    : at.matches('textarea, input:not([type=range], [type=checkbox], [type=radio], [type=file])') ? 'text' : 'other';
  const words = (at.getAttribute('aria-label') ?? at.textContent.trim()) || at.name;
  return { what: `${at.tagName.toLowerCase()} "${words.replace(/\\s+/g, ' ').slice(0, 60)}"`, kind, problems };
}
"""

_CHECK = """
() => {
  const at = window.last;
  const problems = [];
  if (at.matches('summary') && !at.parentElement.open) problems.push('Enter does not open it');
  if (at.type === 'submit' && at.form && !window.sent.includes(at)) problems.push('Enter does not send its form');
  return problems;
}
"""

_MISSED = """
() => {
  const wanted = 'a[href], button, input:not([type=hidden]), select, textarea, summary, iframe, [tabindex]';
  return [...document.querySelectorAll(wanted)]
    .filter((each) => each.tabIndex >= 0 && !each.disabled && !each.dataset.reached)
    .filter((each) => each.checkVisibility({ visibilityProperty: true }) && !each.closest('[inert]'))
    .map((each) => each.outerHTML.slice(0, 120));
}
"""
