"""The closed loop on a real node: studies, decisions, training over two nights, comparison, shadow, Deploy, Undo."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from db import deployments
from db.models import Job, LearningRun
from tests.chromium import SCREENSHOTS, launch_browser, open_page
from tests.installed import deploy_installed
from tests.learning_site import LEARNING, ROUTE, find_patients, train_base, write_study
from tests.peers import Node, wait_for, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PATIENTS = find_patients(train=2, validation=1, test=2)
REJECTED = (PATIENTS[1].id, PATIENTS[-1].id)
"""Patients of the training and of the test split whose results a reader rejects."""
OLD = "standard_dose_pet@0.9.0"
NEW = f"{OLD}+site.1"
SETTINGS = {"steps": 24, "checkpoint_every": 2, "validate_every": 24}
ALWAYS = {"start": "00:00", "hours": 24, "new_cases": 5, "test_cases": 2, "set": SETTINGS, "shadow": True}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Yield a node that has processed every patient's study, and whose results were read on its pages."""
    folder = tmp_path_factory.mktemp("loop")
    train_base(folder / "base", folder / "node" / "data" / "models")
    path = write_config(
        folder / "node",
        routes=[ROUTE],
        learning=[LEARNING | ALWAYS],
        completion={"quiet_s": 5},
        worker={"lease_s": 120},
    )
    with Node(deploy_installed(path)) as running:
        for patient in PATIENTS:
            write_study(folder / "in", patient)
        title = running.config.node.ae_title
        sent = running.command("send", str(folder / "in"), "--to", f"127.0.0.1:{running.port}:{title}")
        assert sent.returncode == 0, sent.stderr
        wait_for(lambda: len(find_jobs(running)) == len(PATIENTS) and are_done(running), "results", within_s=600)
        with httpx.Client(base_url=web(running), timeout=60) as client:
            for patient_id, job in find_jobs(running).items():
                read(client, job, "rejected" if patient_id in REJECTED else "accepted")
        running.stop()
        yield running


def are_done(node: Node) -> bool:
    return all(job.state == "done" for job in node.jobs())


def web(node: Node) -> str:
    return str(re.findall(r"web (http://[\d.:]+)/", node.log)[-1])


def find_jobs(node: Node) -> dict[str, int]:
    with node.sessions() as session:
        return {job.study.patient_id: job.id for job in session.query(Job).filter(Job.shadow_of_id.is_(None))}


def read(client: httpx.Client, job: int, verdict: str) -> None:
    form = {"verdict": verdict, "who": "AB", "reason": "looked at every slice"}
    assert client.post(f"/jobs/{job}/reading", data=form).status_code == 303


def find_run(node: Node) -> LearningRun | None:
    with node.sessions() as session:
        return session.query(LearningRun).order_by(LearningRun.id.desc()).first()


def in_force(node: Node) -> dict[str, str]:
    with node.sessions() as session:
        rows = deployments.find_in_force(session, "standard_dose_pet")
        return {str(mode): deployments.format_model(row) for mode, row in rows.items()}


def test_decisions_become_a_better_version_that_a_person_deploys_and_takes_back(node: Node) -> None:
    _begin_and_interrupt(node)
    first = find_run(node)
    assert first is not None
    assert (first.state, first.nights) == ("training", 1)
    assert 0 < first.step < SETTINGS["steps"]
    assert in_force(node) == {"current": OLD}

    node.start()  # within the hours: the node goes on by itself
    wait_for(
        lambda: (run := find_run(node)) and run.state not in ("exporting", "training"), "the run ends", within_s=900
    )
    run = find_run(node)
    assert run is not None
    assert (run.id, run.state, run.nights, run.step) == (1, "evaluated", 2, SETTINGS["steps"]), run.reason
    _check_table_and_cases(node, run)
    _check_comparison(run)
    assert in_force(node) == {"current": OLD, "shadow": NEW}
    _decide_on_the_page(node, run)
    assert node.command("audit", "verify").returncode == 0


def _begin_and_interrupt(node: Node) -> None:
    """Begin a run by hand, and stop it after its first checkpoint."""
    command = [sys.executable, "-m", "dicomnode", "--config", str(node.config.path), "learn", "run", "pet"]
    checkpoint = node.config.learning_dir / "pet" / "1" / "run" / "checkpoint.pt"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: process.poll() is not None or checkpoint.exists(), "the first checkpoint", within_s=600)
            process.terminate()
            printed, messages = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 0, messages
    assert "run 1 of pet: training, step" in printed


def _check_table_and_cases(node: Node, run: LearningRun) -> None:
    folder = node.config.learning_dir / "pet" / "1"
    table = [line.split(",") for line in (folder / "table.csv").read_text().splitlines()]
    assert table[0] == ["subject", "split", "low", "standard", "dose"]
    assert sorted(row[1] for row in table[1:]) == ["test", "test", "train", "validation"]
    jobs = find_jobs(node)
    left_out = {each["job_id"]: each["left_out"] for each in run.cases if each["left_out"]}
    assert set(left_out) == {jobs[REJECTED[0]]}
    assert "a rejected result is a validation or test case only" in left_out[jobs[REJECTED[0]]]
    assert not any(patient.id in json.dumps([run.cases, run.scores]) for patient in PATIENTS)
    wait_for(lambda: not (folder / "cases").exists(), "no image of a patient stays after the run", within_s=60)
    metadata = json.loads(
        (node.config.models_dir / "standard_dose_pet" / "0.9.0+site.1/configs/metadata.json").read_text()
    )
    assert metadata["configuration"]["start"].startswith("standard_dose_pet 0.9.0 (")
    assert "a user's data set" in metadata["trained_on"]


def _check_comparison(run: LearningRun) -> None:
    assert len(run.scores) == 2
    assert {each["verdict"] for each in run.scores} == {"accepted", "rejected"}
    assert [each["is_better"] for each in run.scores] == [each["new"] > each["old"] for each in run.scores]


def _decide_on_the_page(node: Node, run: LearningRun) -> None:
    problems: list[str] = []
    with launch_browser() as browser, open_page(browser, problems) as page:
        page.goto(f"{web(node)}/learning/{run.id}")
        assert re.search(r"The new version is better on [012] of 2 test cases", page.inner_text("#sentence"))
        page.screenshot(path=SCREENSHOTS / "learning-deploy.png", full_page=True)
        _submit(page, "Deploy")
        assert in_force(node) == {"current": NEW}
        page.screenshot(path=SCREENSHOTS / "learning-undo.png", full_page=True)
        _submit(page, "Undo")
        assert in_force(node) == {"current": OLD}
    assert problems == []


def _submit(page: Any, button: str) -> None:
    page.fill("input[name=why]", "looked at each case")
    page.fill("input[name=who]", "AB")
    page.check("input[name=confirm]")
    with page.expect_navigation():
        page.click(f"button:text-is('{button}')")
    page.wait_for_selector(".flash")
