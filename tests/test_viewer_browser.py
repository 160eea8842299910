"""The viewer in a real browser: it opens the studies of the node, over the node's own DICOMweb.

Each test saves a screenshot under build/screenshots: only a person sees that a canvas shows a head. The tests assert
that it shows more than black, that the right series is open, and that no error occurred.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from dicomnode.config import Config
from dicomnode.web import ohif
from dicomnode.web.viewer import viewer_url
from tests.chromium import SCREENSHOTS, launch_browser, open_page, wait_for_count, wait_until_true
from tests.viewing import make_results, write_head_series
from tests.web_node import Web
from tests.web_studies import make_series, receive, study_uid

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.peers, pytest.mark.timeout(600)]

SYNTHETIC, MAP, STRUCTURES = "SYN Synthetic image", "SYN Standard deviation", "SYN Structures"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_browser() as running:
        yield running


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Web, str]]:
    """Yield a node with a head, its results and held results, and the study's UID."""
    where = ohif.viewer_folder(Config().web)
    if ohif.find_installed(where) is None:
        pytest.skip(f"the viewer is not installed in {where}: 'dicomnode viewer install' (needs npm)")
    folder = tmp_path_factory.mktemp("viewed")
    with Web(folder, {"viewer_dir": str(where)}) as web:
        sources, grid = write_head_series(folder / "sources")
        assert web.store(sources).status_code == 200
        results = make_results(sources, grid)
        web.add_results(results)
        yield web, str(results[0].StudyInstanceUID)


def open_study(page: Page, web: Web, path: str) -> None:
    """Open a study and wait for its series and its first image."""
    page.goto(web.address + path)
    page.get_by_text(STRUCTURES).first.wait_for()
    wait_until_drawn(page)


def wait_until_drawn(page: Page) -> None:
    """Wait until a viewport shows more than black, by screenshots."""
    wait_until_true(page, lambda: measure_brightness(page) > 1.0, "a viewport shows something")


def read_pixels(page: Page) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return the pixels of all viewports, (row, column, RGB), without the side panels."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return np.asarray(picture)[100:850, 300:1350]


def measure_brightness(page: Page) -> float:
    return float(read_pixels(page).mean())


def measure_colour_share(page: Page) -> float:
    """Return the share of pixels that are not grey."""
    values = read_pixels(page).astype(int)
    return float((values.max(axis=-1) - values.min(axis=-1) > 40).mean())


def read_window_widths(page: Page) -> list[int]:
    """Return the width of the window that each viewport states."""
    return [int(width) for width in re.findall(r"W:\s*(-?\d+)\b", page.inner_text("body"))]


def save_screenshot(page: Page, name: str) -> None:
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def test_the_study_list_shows_the_study(browser: Browser, node: tuple[Web, str]) -> None:
    errors: list[str] = []
    with open_page(browser, errors) as page:
        page.goto(f"{node[0].address}/viewer")
        page.get_by_text("Head", exact=True).wait_for()
        save_screenshot(page, "viewer-list")
    assert errors == []


def test_a_study_opens_from_its_link(browser: Browser, node: tuple[Web, str]) -> None:
    web, study = node
    errors: list[str] = []
    with open_page(browser, errors) as page:
        open_study(page, web, viewer_url(study))
        save_screenshot(page, "viewer-study")
        assert "Müller" not in page.title() + page.url
        assert page.evaluate("crossOriginIsolated")
    assert errors == []


def test_the_segmentation_lies_over_the_image(browser: Browser, node: tuple[Web, str]) -> None:
    web, study = node
    errors: list[str] = []
    with open_page(browser, errors) as page:
        open_study(page, web, viewer_url(study))
        before = measure_colour_share(page)
        page.get_by_text(STRUCTURES).first.dblclick()
        yes = page.get_by_role("button", name="Yes")
        yes.click()
        yes.wait_for(state="hidden")
        wait_until_true(page, lambda: measure_colour_share(page) > before + 0.0002, "the structures are drawn")
        save_screenshot(page, "viewer-segmentation")
    assert errors == []


def test_the_multiframe_result_is_cut_in_three_planes_and_its_map_lies_over_it(
    browser: Browser, node: tuple[Web, str]
) -> None:
    web, study = node
    errors: list[str] = []
    with open_page(browser, errors) as page:
        open_study(page, web, f"{viewer_url(study)}&hangingProtocolId=mpr")
        page.get_by_text(SYNTHETIC, exact=True).first.dblclick()
        wait_for_count(page.get_by_text(SYNTHETIC, exact=True), 4)  # its thumbnail, and a viewport for each plane
        own = [2000] * 3
        wait_until_true(page, lambda: [round(each, -3) for each in read_window_widths(page)] == own, "its own window")
        wait_until_drawn(page)
        save_screenshot(page, "viewer-mpr")
        before = measure_colour_share(page)
        page.get_by_text(MAP).first.dblclick()
        wait_until_true(page, lambda: measure_colour_share(page) > before + 0.02, "the map lies over it")
        # the map's own window, times 100 by OHIF, and not from 0 to 100
        wait_until_true(page, lambda: min(read_window_widths(page), default=0) > 1000, "the window of the map")
        save_screenshot(page, "viewer-uncertainty")
    assert errors == []


@pytest.mark.parametrize(
    ("study", "header"),
    [
        ("without a window", {}),
        ("with a function", {"WindowCenter": 500, "WindowWidth": 1000, "VOILUTFunction": "LINEAR"}),
    ],
)
def test_a_series_opens_at_its_middle_slice_with_a_window(
    browser: Browser, tmp_path: Path, node: tuple[Web, str], study: str, header: dict[str, Any]
) -> None:
    """The first slice is air: its range would show all others white."""
    slices = make_series(study, **header)
    slices[0].PixelData = bytes(len(slices[0].PixelData))
    errors: list[str] = []
    with Web(tmp_path, {"viewer_dir": str(node[0].config.web.viewer_dir)}) as web, open_page(browser, errors) as page:
        receive(web, slices)
        page.goto(web.address + viewer_url(study_uid(study)))
        wait_for_count(page.get_by_text("(5/9)"), 1)
        wait_until_drawn(page)
        wait_until_true(page, lambda: (read_pixels(page) == 255).mean() < 0.1, "its window shows more than white")
        save_screenshot(page, f"viewer-{study.replace(' ', '-')}")
    assert errors == []


def test_the_viewers_folder_serves_its_files_and_nothing_else(node: tuple[Web, str]) -> None:
    web, _ = node
    index = web.get("/viewer/")
    assert 'src="/viewer/app.bundle' in index.text
    assert "'unsafe-inline'" not in index.headers["content-security-policy"].split("style-src")[0]
    script = next(path.name for path in ohif.viewer_folder(web.config.web).glob("app.bundle.*.js"))
    assert "immutable" in web.get(f"/viewer/{script}").headers["cache-control"]
    wasm = next(path.name for path in ohif.viewer_folder(web.config.web).glob("*.wasm"))
    assert web.get(f"/viewer/{wasm}").headers["content-type"] == "application/wasm"
    assert "/dicom-web" in web.get("/viewer/app-config.js").text
    for path in ("/viewer/nothing.js", "/viewer/viewer.json", "/viewer/..%2f..%2f..%2fetc%2fpasswd.txt"):
        assert web.get(path).status_code == 404
    assert web.get("/viewer/..%2f..%2fetc%2fpasswd").text == index.text
