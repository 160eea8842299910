"""The way of a person who tries a pipeline, in a real browser: from dropped files to a route that works."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydicom import dcmread

from db.models import Event, Job, Study
from db.states import StudyState
from dicomnode.config import load
from dicomnode.results import marking
from pipelines.contract import Grid
from tests.axe import find_violations, read_axe
from tests.bundles import SPACING_MM, phantom, write_anatomy_bundle
from tests.chromium import SCREENSHOTS, launch_browser, wait_for_count
from tests.installed import deploy_installed
from tests.nifti_files import write_nifti
from tests.peers import Node, StoreScp, wait_for, write_config
from tests.series import write_slices
from tests.test_try_page import FILE, add_study
from tests.web_node import Web
from tests.web_studies import PEERS, ROUTES, make_series, receive, study_uid

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = [pytest.mark.peers, pytest.mark.timeout(600)]

DROP = """([name, files]) => {
  const transfer = new DataTransfer();
  for (const [path, text] of files) {
    const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
    transfer.items.add(new File([bytes], path));
  }
  const form = document.getElementById(name);
  for (const kind of ["dragenter", "dragover", "drop"]) {
    form.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_browser() as running:
        yield running


def open_context(
    browser: Browser, address: str, *, is_phone: bool = False, scripts: bool = True, bypass_csp: bool = False
) -> BrowserContext:
    context = browser.new_context(
        base_url=address,
        viewport={"width": 390, "height": 844} if is_phone else {"width": 1280, "height": 900},
        color_scheme="dark" if is_phone else "light",
        java_script_enabled=scripts,
        bypass_csp=bypass_csp,
    )
    context.set_default_timeout(120_000)
    return context


def watch(page: Page) -> list[str]:
    """Return a list that collects the errors of the page's console."""
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    return problems


def drop(page: Page, paths: list[Path]) -> None:
    files = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in paths]
    page.evaluate(DROP, ["drop", files])
    page.get_by_role("button", name="Store the files").click()


def write_head(folder: Path) -> list[Path]:
    data, _ = phantom()
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    return write_slices(folder, Grid(data.shape, affine), np.round(data * 2300).astype(np.uint16))


def read_address(node: Node) -> str:
    return str(re.findall(r"web (http://[^/]+)/", node.log)[-1])


def is_routed(node: Node, uid: str) -> bool:
    with node.sessions() as session:
        study = session.query(Study).filter_by(study_uid=uid).one_or_none()
        return study is not None and study.state is StudyState.ROUTED


def test_from_a_dropped_file_to_a_route_that_takes_a_study(
    browser: Browser, storescp: StoreScp, tmp_path: Path
) -> None:
    sent = write_head(tmp_path / "in")
    uid = str(dcmread(sent[0], stop_before_pixels=True).StudyInstanceUID)
    write_anatomy_bundle(tmp_path / "node" / "data" / "models")
    path = deploy_installed(
        write_config(tmp_path / "node", peers=[storescp.peer], routes=[], web={"may_write_routes": True})
    )
    before = path.read_text()
    with Node(path) as node:
        with open_context(browser, read_address(node)) as context:
            page = context.new_page()
            problems = watch(page)
            page.goto("/try")
            drop(page, sent)
            page.get_by_text(f"{len(sent)} files are stored.").wait_for()
            wait_for(lambda: is_routed(node, uid), "the study is complete")
            page.get_by_role("link", name="Try a pipeline on this study").click()
            edit_route(page)
            block = wait_for(lambda: read_block(page, "hippocampus"), "the block has the option")
            page.screenshot(path=str(SCREENSHOTS / "try-study.png"), full_page=True)
            address = page.url
            sign(page)
            page.get_by_role("button", name="Run on this study").click()
            page.get_by_text("a trial, which waits for a worker").wait_for()
            check_trial(node, node.wait_for_job("done", "held", "dead", "refused"))
            assert storescp.files() == [], "a trial delivers nothing"
            page.goto(address)
            edit_route(page)
            sign(page)
            page.get_by_role("button", name="Show the change").click()
            page.get_by_text('+name = "heads"').wait_for()
            assert path.read_text() == before
            page.get_by_role("button", name="Write node.toml").click()
            page.get_by_text("Restart the node").wait_for()
            assert problems == []
        assert path.read_text().startswith(before)
        assert path.read_text().endswith(block)
        assert [route.name for route in load(path).routes] == ["heads"]
        node.stop()
        node.start()
        job = wait_for(lambda: find_job(node, "heads"), "the route takes the study", within_s=120)
        assert job is not None
        node.wait_for_job("done")
        node.wait_until_delivered()
    delivered = storescp.datasets()
    assert "SEG" in {ds.Modality for ds in delivered}
    for ds in delivered:
        marking.check_marks(ds)


def edit_route(page: Page) -> None:
    """Write the route: first with a mistake, which is named, then right."""
    page.fill("input[name=name]", "heads")
    page.select_option("select[name=pipeline]", "anatomy")
    page.fill("textarea[name=match]", 'Modalty = "MR"')
    page.locator("#outcome .fault", has_text="'Modalty' is no DICOM keyword").wait_for()
    page.fill("textarea[name=match]", 'Modality = "MR"')
    page.locator(".match-count", has_text="1 of 1 studies held").wait_for()
    page.check("input[name='to.storescp']")
    page.get_by_role("button", name="Show the options of anatomy").click()
    page.fill("[name='option.structures']", '["hippocampus", "lateral ventricles"]')


def read_block(page: Page, part: str) -> str:
    """Return the block that the page shows, or "" while it lacks a part."""
    found = page.locator("#block")
    text = found.input_value() if found.count() else ""
    return text if part in text else ""


def sign(page: Page) -> None:
    page.fill("input[name=reason]", "structures of the phantom")
    page.fill("input[name=who]", "MK")


def check_trial(node: Node, job: Job) -> None:
    assert job.state == "done", job.reason
    assert job.route.startswith("trial:anatomy:")
    assert job.options == {"structures": ["hippocampus", "lateral ventricles"]}
    assert job.model == "anatomy@0.0.1", "the deployed version"
    assert node.deliveries() == []
    with node.sessions() as session:
        (event,) = session.query(Event).filter_by(event="trial")
        assert event.detail["reason"] == "tried by MK: structures of the phantom"


def find_job(node: Node, route: str) -> Job | None:
    return next((job for job in node.jobs() if job.route == route), None)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with Web(tmp_path, {"may_write_routes": True}, sections={"routes": ROUTES, "peers": PEERS}) as running:
        running.config.path.write_text(FILE)
        add_study(running, "a")
        add_study(running, "b", description="T1 MPRAGE")
        yield running


@pytest.mark.parametrize("is_phone", [False, True])
def test_the_pages_fit_a_phone_and_a_desk_and_label_every_field(browser: Browser, web: Web, is_phone: bool) -> None:
    with open_context(browser, web.address, is_phone=is_phone) as context:
        page = context.new_page()
        problems = watch(page)
        kind = "phone" if is_phone else "desk"
        for name, path in (("choose", "/try"), ("study", f"/try/{study_uid('a')}")):
            page.goto(path)
            if name == "study":
                page.get_by_role("button", name="Show the options of synthetic DIR").click()
                page.locator("#options summary:focus").wait_for()
                page.locator(".match-count", has_text="1 of 2 studies held").wait_for()
            page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
            page.screenshot(path=str(SCREENSHOTS / f"try-{name}-{kind}.png"), full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            unlabelled = "[...document.querySelectorAll('input:not([type=hidden]), select, textarea')]"
            assert page.evaluate(f"{unlabelled}.filter((each) => !each.labels.length).map((each) => each.name)") == []
        sign(page)
        page.get_by_role("button", name="Show the change").click()
        page.get_by_text('+name = "flair-to-dir-2"').wait_for()
        page.screenshot(path=str(SCREENSHOTS / f"try-confirm-{kind}.png"), full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert problems == []


def test_no_state_of_the_pages_breaks_a_rule_of_axe(browser: Browser, web: Web) -> None:
    """The states that tests.web_pages does not reach: a checked route with options, the confirmation, its end."""
    axe = read_axe()
    with open_context(browser, web.address, bypass_csp=True) as context:
        page = context.new_page()
        page.goto(f"/try/{study_uid('a')}?route=flair-to-dir&options=1")
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert find_violations(page, axe) == []
        sign(page)
        page.get_by_role("button", name="Show the change").click()
        page.get_by_role("button", name="Write node.toml").wait_for()
        assert find_violations(page, axe) == []
        page.get_by_role("button", name="Write node.toml").click()
        page.get_by_text("Restart the node").wait_for()
        assert find_violations(page, axe) == []


def test_a_trial_is_started_by_keyboard_alone(browser: Browser, web: Web) -> None:
    with open_context(browser, web.address) as context:
        page = context.new_page()
        page.goto(f"/try/{study_uid('a')}")
        tab_to(page, "textarea[name=match]")
        page.keyboard.press("Control+A")
        page.keyboard.type('Modality = "MR"')
        page.locator(".match-count", has_text="2 of 2 studies held").wait_for()
        tab_to(page, "input[name=reason]")
        page.keyboard.type("keyboard")
        tab_to(page, "input[name=who]")
        page.keyboard.type("MK")
        tab_to(page, "button[formaction$=run]")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        page.get_by_text("a trial, which waits for a worker").wait_for()
    assert [job.route.partition(":")[0] for job in web.rows(Job)] == ["trial"]


def test_without_scripts_the_button_checks_the_route(browser: Browser, web: Web) -> None:
    with open_context(browser, web.address, scripts=False) as context:
        page = context.new_page()
        page.goto(f"/try/{study_uid('a')}")
        page.fill("textarea[name=match]", 'Modality = "MR"')
        page.get_by_role("button", name="Check the route").click()
        page.locator(".match-count", has_text="2 of 2 studies held").wait_for()
        assert page.locator("textarea[name=match]").input_value() == 'Modality = "MR"'
        page.get_by_role("button", name="Show the options").click()
        wait_for_count(page.locator("[name='option.passes']"), 1)


def test_nifti_files_and_others_are_stored_or_refused_by_name(browser: Browser, web: Web, tmp_path: Path) -> None:
    grid = Grid((4, 8, 8), np.diag([2.0, 2.0, 2.0, 1.0]))
    values = np.arange(256, dtype=np.int16).reshape(grid.shape)
    image = write_nifti(tmp_path / "sub-01_T1w.nii.gz", values, grid, facts={"EchoTime": 0.003})
    (tmp_path / "notes.txt").write_text("no image")
    with open_context(browser, web.address) as context:
        page = context.new_page()
        page.goto("/try")
        drop(page, [image, image.with_name("sub-01_T1w.json"), tmp_path / "notes.txt"])
        page.get_by_text("1 not stored: no DICOM file, or a damaged one").wait_for()
        page.get_by_role("link", name="Try a pipeline on this study").click()
        page.get_by_text("the study is still arriving").wait_for()
        page.get_by_role("button", name="Treat as complete now").click()
        page.get_by_text("The study is now treated as complete.").wait_for()
    receive(web, make_series("later")[:1])
    (study,) = [each for each in web.rows(Study) if not each.patient_name]
    assert study.state is StudyState.COMPLETE


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until the element has the focus."""
    for _ in range(120):
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} is not reached by Tab")
