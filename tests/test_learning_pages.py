"""The page of a learning run: the sentence, the cases, Deploy and Undo, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from db import deployments
from db.models import LearningRun
from db.states import DeploymentMode, LearningState
from dicomnode.config import Route
from dicomnode.config.learning import LearningConfig
from model_zoo import registry
from tests.learning_site import find_patients, write_study
from tests.prior_bundle import write_prior_bundle
from tests.web_node import Web

PIPELINE = "mri_reconstruction"
OLD, NEW = "mri_prior@1.0.0", "mri_prior@1.0.0+site.1"
DECISION = {"who": "AL", "why": "less noise", "confirm": "yes"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Web]:
    """Yield a node whose learning run was better on two of three test cases."""
    sections = {
        "routes": (Route(name="kspace", pipeline=PIPELINE, match={"Modality": "MR"}),),
        "learning": (LearningConfig(name="prior", pipeline=PIPELINE),),
    }
    with Web(tmp_path, sections=sections) as web:
        for version in ("1.0.0+site.1", "7.0.0"):
            write_prior_bundle(web.config.models_dir / "mri_prior" / version, version)
        (patient,) = find_patients(test=1)
        web.store(write_study(tmp_path / "in", patient, size=2))
        add_run(web)
        yield web


def add_run(site: Web, state: LearningState = LearningState.EVALUATED) -> None:
    facts = {"study_id": 1, "subject": "s", "verdict": "accepted"}
    scores = [
        facts | {"job_id": 3, "old": 30.0, "new": 29.0, "is_better": False},
        facts | {"job_id": 1, "old": 30.0, "new": 31.0, "is_better": True},
        facts | {"job_id": 2, "old": 30.0, "new": 32.0, "is_better": True, "verdict": "rejected"},
    ]
    case = facts | {"split": "test", "reason": "", "target": "measured", "left_out": ""}
    left_out = case | {"job_id": 9, "left_out": "retention deleted its sources"}
    digest = registry.read_facts(site.config.models_dir / "mri_prior" / "1.0.0+site.1").digest
    with site.sessions.begin() as session:
        session.add(
            LearningRun(
                name="prior", pipeline=PIPELINE, recipe="mri-prior", base=OLD,
                base_digest=registry.find("mri_prior").digest, model=NEW, model_digest=digest,
                state=state, settings={"shadow": False},
                cases=[*(case | {"job_id": n} for n in (1, 2, 3)), left_out],
                scores=scores if state is LearningState.EVALUATED else [], created_at=site.now, begun_at=site.now,
                ended_at=site.now, reason="the reason",
            )
        )  # fmt: skip


def decide(site: Web, action: str, *, run: int = 1, **changes: str) -> httpx.Response:
    return site.client.post(f"/learning/{run}/{action}", data=DECISION | changes)


def current(site: Web) -> str:
    with site.sessions() as session:
        row = deployments.find_in_force(session, PIPELINE).get(DeploymentMode.CURRENT)
        return "" if row is None else deployments.format_model(row)


def test_the_page_states_the_cases_and_names_the_worse_one(site: Web) -> None:
    page = site.get("/learning/1").text
    assert "The new version is better on 2 of 3 test cases; here is the one on which it is worse." in page
    worse = page[page.index(">Worse<") : page.index("All 3 test cases")]
    assert worse.count("<tr>") == 2
    assert 'href="/jobs/3"' in worse
    assert f'href="/studies/{find_patients(test=1)[0].study_uid}"' in worse
    assert "29" in worse
    assert "mean PSNR of denoising, dB, on 3 test cases of 1 patient" in page
    assert "in 50 % of such comparisons" in page
    assert "retention deleted its sources" in page
    assert "earlier run" not in page
    assert "The new version is better on 2 of 3 test cases" in site.get("/learning").text
    assert 'href="/learning"' in site.get("/models").text


def test_deploy_and_undo_need_who_and_why_and_stand_in_the_history(site: Web) -> None:
    assert decide(site, "deploy").headers["location"] == "/learning/1?done=learned"
    assert current(site) == NEW
    page = site.get("/learning/1?done=learned").text
    assert "Deployed: the new version is in use from the next study on." in page
    assert "/learning/1/undo" in page
    assert "/learning/1/deploy" not in page
    assert decide(site, "deploy").status_code == 409
    assert decide(site, "undo", why="too smooth").headers["location"] == "/learning/1?done=unlearned"
    assert current(site) == ""
    assert decide(site, "undo").status_code == 409
    with site.sessions() as session:
        (row,) = deployments.list_history(session, PIPELINE)
        assert (row.who, row.why) == ("AL at the dashboard", "learning run 1: less noise")
        assert row.ended_by == "rolled back by AL at the dashboard: too smooth"


@pytest.mark.parametrize("lacking", [{"who": ""}, {"why": " "}, {"confirm": ""}])
def test_a_decision_without_its_fields_is_refused(site: Web, lacking: dict[str, str]) -> None:
    answer = site.client.post("/learning/1/deploy", data=DECISION | lacking)
    assert answer.status_code == 400
    assert "needs your initials, a reason, and the tick" in answer.text
    assert current(site) == ""


def test_a_comparison_with_a_version_of_the_past_deploys_nothing(site: Web) -> None:
    deploy(site, "7.0.0", "current")
    answer = decide(site, "deploy")
    assert answer.status_code == 409
    assert "uses mri_prior@7.0.0 now; this comparison is with mri_prior@1.0.0" in answer.text
    assert current(site) == "mri_prior@7.0.0"
    assert "/learning/1/deploy" not in site.get("/learning/1").text


def test_other_weights_than_those_that_were_evaluated_are_not_deployed(site: Web) -> None:
    with site.sessions.begin() as session:
        session.get_one(LearningRun, 1).model_digest = "0" * 64
    answer = decide(site, "deploy")
    assert answer.status_code == 409
    assert "does not have the weights that were evaluated" in answer.text
    assert current(site) == ""


def test_undo_takes_back_no_share_of_another_version(site: Web) -> None:
    assert decide(site, "deploy").status_code == 303
    deploy(site, "7.0.0", "share", percent="10")
    answer = decide(site, "undo")
    assert answer.status_code == 409
    assert "A share of mri_reconstruction runs" in answer.text
    assert current(site) == NEW


@pytest.mark.parametrize("state", [LearningState.TRAINING, LearningState.FAILED])
def test_a_run_that_is_not_evaluated_deploys_nothing(site: Web, state: LearningState) -> None:
    add_run(site, state)
    page = site.get("/learning/2").text
    assert f"{str(state).capitalize()}: step 0" in page
    assert "the reason" in page
    assert "/learning/2/deploy" not in page
    assert f"is {state}: nothing to deploy" in decide(site, "deploy", run=2).text
    assert current(site) == ""


def test_a_second_look_at_the_test_cases_is_stated(site: Web) -> None:
    add_run(site)
    assert "1 earlier run looked at test cases of this site" in site.get("/learning/2").text
    found = site.get("/api/learning/2").json()
    assert (found["earlier_looks"], found["better"], found["worse"], found["total"]) == (1, 2, 1, 3)


def test_unknown_runs_are_not_found(site: Web) -> None:
    assert site.get("/learning/77").status_code == 404
    assert site.get("/api/learning/77").status_code == 404
    assert decide(site, "deploy", run=77).status_code == 404


def deploy(site: Web, version: str, mode: str, **fields: str) -> None:
    form = {"pipeline": PIPELINE, "mode": mode, "who": "GH"} | fields
    assert site.client.post(f"/models/mri_prior@{version}/deploy", data=form).status_code == 303
