"""Delivery of trials and workitems on a node with accounts: an operator delivers with models in use only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import httpx
import pytest

from db import deployments
from db.models import Job
from db.states import DeploymentMode
from dicomnode.deployment import deploying, in_use
from dicomnode.errors import NotAllowed
from dicomnode.worklist.performing import Performer
from tests.account_node import bearer_of, run_node
from tests.prior_bundle import write_prior_bundle
from tests.web_node import Web
from tests.web_studies import PEERS, make_series, receive, study_uid
from tests.work_orders import create, make_study, option, order, run_to_canceled, step

PIPELINE, VERSION = "mri_reconstruction", "10.0.0"
MODEL = f"mri_prior@{VERSION}"
OTHERS = {"name": "head", "pipeline": "anatomy", "match": {"Modality": "MR"}}


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with run_node(tmp_path, routes=[OTHERS], peers=PEERS, worklist={"enabled": True}) as running:
        write_prior_bundle(running.config.models_dir / "mri_prior" / VERSION, VERSION)
        yield running


def add_study(web: Web) -> None:
    receive(web, make_series("a")[:1])
    assert web.client.post(f"/studies/{study_uid('a')}/close", headers=bearer_of(web, "otto")).status_code == 303


def try_it(web: Web, name: str, model: str = MODEL, pipeline: str = PIPELINE, **fields: str) -> httpx.Response:
    draft = {"name": "mine", "pipeline": pipeline, "match": 'Modality = "MR"', "to.pacs": "1", "reason": "to see it"}
    draft |= {"more": f'model = "{model}"'} if model else {}
    return web.client.post(f"/try/{study_uid('a')}/run", data=draft | fields, headers=bearer_of(web, name))


def deploy(web: Web, mode: DeploymentMode = DeploymentMode.CURRENT) -> None:
    percent = 10.0 if mode is DeploymentMode.SHARE else None
    with web.sessions.begin() as session:
        deploying.deploy(
            session, web.config, model=MODEL, pipeline=PIPELINE, mode=mode, percent=percent, who="anna", now=web.now
        )


def is_in_use(web: Web, model: str, pipeline: str = PIPELINE) -> bool:
    try:
        with web.sessions() as session:
            in_use.check_in_use(session, web.config, pipeline, model)
    except NotAllowed:
        return False
    return True


def test_an_operator_delivers_no_trial_of_a_model_that_is_not_deployed(web: Web) -> None:
    add_study(web)
    for fields in ({"deliver": "1"}, {"deliver": "1", "confirm": "1"}):
        answer = try_it(web, "otto", **fields)
        assert answer.status_code == 409
        assert f"{MODEL} is not in use for {PIPELINE}" in unescape(answer.text)
    assert web.rows(Job) == []
    assert try_it(web, "otto").status_code == 303
    assert [(job.model, job.destinations) for job in web.rows(Job)] == [(MODEL, [])]


def test_an_administrator_delivers_any_trial(web: Web) -> None:
    add_study(web)
    assert try_it(web, "anna", deliver="1", confirm="1").status_code == 303
    assert [(job.model, job.destinations) for job in web.rows(Job)] == [(MODEL, ["pacs"])]


def test_an_operator_delivers_a_trial_of_what_is_deployed(web: Web) -> None:
    add_study(web)
    assert try_it(web, "otto", "", deliver="1", confirm="1").status_code == 409, "nothing uses the pipeline"
    assert try_it(web, "otto", "", "anatomy", deliver="1", confirm="1").status_code == 303, "a route uses it"
    deploy(web)
    assert try_it(web, "otto", deliver="1", confirm="1").status_code == 303
    assert [(job.pipeline, job.destinations) for job in web.rows(Job)] == [("anatomy", ["pacs"]), (PIPELINE, ["pacs"])]


@pytest.mark.parametrize(("mode", "delivers"), [("current", True), ("share", True), ("shadow", False)])
def test_results_of_a_shadow_do_not_leave(web: Web, mode: str, delivers: bool) -> None:
    deploy(web, DeploymentMode(mode))
    assert is_in_use(web, MODEL) == delivers
    assert not is_in_use(web, "mri_prior@9.9.9")
    with web.sessions.begin() as session:
        if mode == "shadow":
            deployments.end_shadow(session, pipeline=PIPELINE, who="anna", now=web.now)
        else:
            deployments.rollback(session, pipeline=PIPELINE, who="anna", now=web.now)
    assert not is_in_use(web, MODEL)


def test_other_weights_under_the_deployed_name_are_not_in_use(web: Web) -> None:
    deploy(web)
    path = web.config.models_dir / "mri_prior" / VERSION
    shutil.rmtree(path)
    write_prior_bundle(path, VERSION, seed=1)
    assert not is_in_use(web, MODEL)


def test_the_model_that_a_route_names_is_in_use(web: Web) -> None:
    route = web.config.routes[0].model_copy(update={"pipeline": PIPELINE, "model": MODEL})
    web.config = web.config.model_copy(update={"routes": (route,)})
    assert is_in_use(web, MODEL)
    assert not is_in_use(web, ""), "no route uses the default version"


def test_a_workitem_delivers_no_result_of_a_model_that_is_not_deployed(web: Web) -> None:
    make_study(web)
    web.client.headers.update(bearer_of(web, "otto"))
    (series,) = {ds.SeriesInstanceUID for ds in make_series("a")}
    changes = {
        "series": series,
        "ScheduledProcessingParametersSequence": [option("model", TextValue=MODEL)],
        "OutputDestinationSequence": [{"DICOMStorageSequence": [{"DestinationAE": "ARCHIVE"}]}],
    }
    performer = Performer(web.sessions, web.config)
    create(web, order(PIPELINE, **changes))
    assert f"{MODEL} is not in use for {PIPELINE}" in run_to_canceled(web, performer)
    assert web.rows(Job) == []
    deploy(web)
    create(web, order(PIPELINE, **changes), "1.2.9")
    step(web, performer)
    assert [(job.model, job.destinations) for job in web.rows(Job)] == [(MODEL, ["research"])]
