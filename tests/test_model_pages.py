"""Deployment and rollback at the dashboard: the same decisions and refusals as on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import pipelines
from db import deployments
from db.models import Event
from db.states import DeploymentMode
from dicomnode.config import Route
from tests.prior_bundle import write_prior_bundle
from tests.web_node import Web

PIPELINE = "mri_reconstruction"
ROUTES = (Route(name="kspace", pipeline=PIPELINE, match={"Modality": "MR"}, destinations=()),)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Web]:
    with Web(tmp_path, sections={"routes": ROUTES}) as web:
        for version in ("10.0.0", "11.0.0"):
            write_prior_bundle(web.config.models_dir / "mri_prior" / version, version)
        yield web


def deploy(site: Web, version: str, mode: str = "current", **fields: str) -> httpx.Response:
    form = {"pipeline": PIPELINE, "mode": mode, "who": "AL", "why": "better"} | fields
    return site.client.post(f"/models/mri_prior@{version}/deploy", data=form)


def test_deploying_and_rolling_back_are_shown_with_who_and_why(site: Web) -> None:
    page = site.get("/models", "text/html").text
    assert "mri_prior@1.0.0" in page
    assert "default version, nothing is deployed" in page
    for version in ("10.0.0", "11.0.0"):
        assert deploy(site, version).status_code == 303
    page = site.get("/models?done=deployed", "text/html").text
    assert "Deployed: in use from the next study on." in page
    for text in ("mri_prior@11.0.0", "AL at the dashboard", "better", "mri_prior@11.0.0 deployed as current"):
        assert text in page
    answer = site.client.post(f"/models/rollback/{PIPELINE}", data={"who": "GH"})
    assert answer.headers["location"] == "/models?done=rollback"
    with site.sessions() as session:
        current = deployments.find_in_force(session, PIPELINE)[DeploymentMode.CURRENT]
        assert (current.version, current.who) == ("10.0.0", "GH at the dashboard")
        assert session.query(Event).filter_by(subject="deployments").count() == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"mode": "share", "percent": "100"}, 409, "more than 0 and less than 100 percent"),
        ({"mode": "share", "percent": ""}, 409, "more than 0 and less than 100 percent"),
        ({"mode": "all"}, 400, "as the current one"),
        ({"pipeline": "none"}, 409, "no pipeline is named"),
        ({"pipeline": "anatomy"}, 409, "mri_prior is the model of mri_reconstruction, not of anatomy"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(
    site: Web, fields: dict[str, str], status: int, message: str
) -> None:
    answer = deploy(site, "10.0.0", **fields)
    assert answer.status_code == status
    assert message in answer.text
    with site.sessions() as session:
        assert deployments.list_history(session) == []


def test_a_shadow_beside_the_default_version_is_ended_at_the_page(site: Web) -> None:
    assert deploy(site, "10.0.0", "shadow").status_code == 303
    page = site.get("/models", "text/html").text
    assert f"/models/end-shadow/{PIPELINE}" in page
    answer = site.client.post(f"/models/end-shadow/{PIPELINE}", data={"who": "GH"})
    assert answer.headers["location"] == "/models?done=shadow"
    assert "The shadow version is ended." in site.get("/models?done=shadow", "text/html").text
    with site.sessions() as session:
        assert deployments.find_in_force(session, PIPELINE) == {}
    assert site.client.post(f"/models/end-shadow/{PIPELINE}", data={"who": "GH"}).status_code == 409


def test_a_version_is_no_shadow_of_itself(site: Web) -> None:
    answer = site.client.post(
        "/models/mri_prior@1.0.0/deploy", data={"pipeline": PIPELINE, "mode": "shadow", "who": "AL"}
    )
    assert answer.status_code == 409
    assert "mri_prior@1.0.0 is what mri_reconstruction uses already" in answer.text


def test_the_form_offers_only_pipelines_that_the_bundle_is_for(site: Web) -> None:
    page = site.get("/models/mri_prior@10.0.0", "text/html").text
    assert f'<option value="{PIPELINE}">' in page
    assert 'value="anatomy"' not in page
    assert {name: pipelines.load(name).bundle for name in pipelines.MODULES} == dict(pipelines.BUNDLES)


def test_another_site_cannot_deploy(site: Web) -> None:
    answer = site.client.post(
        "/models/mri_prior@10.0.0/deploy", data={"pipeline": PIPELINE, "mode": "current"},
        headers={"Origin": "https://elsewhere.example"},
    )  # fmt: skip
    assert answer.status_code == 403
