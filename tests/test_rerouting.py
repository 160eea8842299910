"""Studies that no route took are routed later: by hand, and when the routes change."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.orm import Session, sessionmaker

from db import audit, jobs, studies
from db import engine as engines
from db.models import Event, Job, Study
from db.states import StudyState
from dicomnode import cli
from dicomnode.config import Config, Route
from dicomnode.config.completion import CompletionConfig
from dicomnode.errors import NotAllowed, NotFound
from dicomnode.routing import completion, rerouting, routing
from tests import databases
from tests.peers import Node, write_config
from tests.receivers import Receiver, an_instance, receiver, start
from tests.rows import make_arrival
from tests.sending import Encoded, store_all
from tests.web_node import Web

__all__ = ["an_instance", "receiver", "start"]  # fixtures

UID = "1.2.1"


def make_config(*modalities: str, **completion_settings: float) -> Config:
    routes = [
        Route.model_validate({"name": f"r{each}", "pipeline": "p", "match": {"Modality": each}}) for each in modalities
    ]
    return Config(routes=tuple(routes), completion=CompletionConfig(**completion_settings))


def arrive(sessions: sessionmaker[Session], config: Config, now: datetime) -> None:
    """Let an MR study arrive, become complete and be routed."""
    with sessions.begin() as session:
        studies.register_instances(session, [make_arrival(UID)], now=now)
        completion.close_study(session, UID, now=now)
    routing.route_complete_studies(sessions, config, now=lambda: now)


def route_again(sessions: sessionmaker[Session], config: Config, now: datetime) -> list[str]:
    """Route the study again; return the routes of its jobs."""
    with sessions.begin() as session:
        rerouting.route_again(session, UID, config, reason="by hand", now=now)
    return sweep(sessions, config, now)


def sweep(sessions: sessionmaker[Session], config: Config, now: datetime) -> list[str]:
    routing.route_complete_studies(sessions, config, now=lambda: now)
    with sessions() as session:
        return [job.route for job in session.query(Job).order_by(Job.id)]


def test_a_study_that_no_route_took_is_routed_by_hand(sessions: sessionmaker[Session], now: datetime) -> None:
    arrive(sessions, make_config("CT"), now)
    assert route_again(sessions, make_config("CT", "MR"), now) == ["rMR"]
    with sessions() as session:
        assert session.query(Study).one().state is StudyState.ROUTED
        moved = [each.detail["reason"] for each in session.query(Event).filter_by(event="moved", subject="studies")]
        assert moved[-2:] == ["by hand", "rMR (job 1)"]
        assert audit.verify(session) is None


def test_work_that_was_done_is_not_repeated(sessions: sessionmaker[Session], now: datetime) -> None:
    arrive(sessions, make_config("MR"), now)
    assert route_again(sessions, make_config("MR"), now) == ["rMR"]


def test_the_waits_of_a_study_begin_again(sessions: sessionmaker[Session], now: datetime) -> None:
    arrive(sessions, make_config("CT"), now)
    later = now + timedelta(days=1)
    with sessions.begin() as session:
        study = rerouting.route_again(session, UID, make_config("MR"), reason="by hand", now=later)
        assert study.completed_at == later, "prior_wait_s and with_wait_s count from here"


def test_it_says_why_a_study_cannot_be_routed(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session, pytest.raises(NotFound, match="no study"):
        rerouting.route_again(session, UID, make_config(), reason="", now=now)
    with sessions.begin() as session:
        studies.register_instances(session, [make_arrival(UID)], now=now)
    for words in ("still receiving: 'dicomnode studies close'", "about to be routed"):
        with sessions.begin() as session, pytest.raises(NotAllowed, match=words):
            rerouting.route_again(session, UID, make_config("MR"), reason="", now=now)
        with sessions.begin() as session:
            if session.query(Study).one().state is StudyState.RECEIVING:
                completion.close_study(session, UID, now=now)
    routing.route_complete_studies(sessions, make_config("CT"), now=lambda: now)
    with sessions.begin() as session, pytest.raises(NotAllowed, match=r"no route matches .* rCT: .* Modality is 'MR'"):
        rerouting.route_again(session, UID, make_config("CT"), reason="", now=now)


@pytest.mark.parametrize(
    ("days_later", "after", "expected"),
    [
        (6, make_config("CT", "MR"), ["rMR"]),
        (8, make_config("CT", "MR"), []),
        (8, make_config("CT", "MR", offer_again_days=30), ["rMR"]),
        (1, make_config("CT", "MR", offer_again_days=0), []),
        (1, make_config("CT"), []),
        (1, make_config("CT", "PT"), []),
    ],
)
def test_changed_routes_are_offered_recent_studies_that_no_route_took(
    sessions: sessionmaker[Session], now: datetime, days_later: int, after: Config, expected: list[str]
) -> None:
    before, later = make_config("CT"), now + timedelta(days=days_later)
    assert rerouting.offer_unrouted(sessions, before, now=lambda: now) == 0
    arrive(sessions, before, now)
    assert rerouting.offer_unrouted(sessions, before, now=lambda: later) == 0, "the routes are the same"
    assert rerouting.offer_unrouted(sessions, after, now=lambda: later) == len(expected)
    assert rerouting.offer_unrouted(sessions, after, now=lambda: later) == 0
    assert sweep(sessions, after, later) == expected


def test_a_study_with_a_job_is_not_offered_again(sessions: sessionmaker[Session], now: datetime) -> None:
    arrive(sessions, make_config("MR"), now)
    with sessions.begin() as session:
        jobs.cancel(session, session.query(Job).one(), reason="not wanted", now=now)
    assert rerouting.offer_unrouted(sessions, make_config("CT", "MR"), now=lambda: now) == 0


def test_a_study_whose_job_a_workitem_ordered_is_offered(sessions: sessionmaker[Session], now: datetime) -> None:
    arrive(sessions, make_config("MR"), now)
    with sessions.begin() as session:
        session.query(Job).one().route = "workitem:1.2.9:rMR"
    assert rerouting.offer_unrouted(sessions, make_config("CT", "MR"), now=lambda: now) == 1


def test_the_page_offers_a_study_whose_routes_have_changed(tmp_path: Path) -> None:
    with Web(tmp_path, sections={"routes": ()}) as web:
        arrive(web.sessions, web.config, web.now)
        page = _get_page(web)
        assert "No route is configured" in page
        assert "sending it again changes nothing" in page
        assert "Route again" not in page
        assert web.client.post(f"/studies/{UID}/route").status_code == 409
    with Web(tmp_path, sections={"routes": make_config("MR").routes}) as web:
        page = _get_page(web)
        assert "No job: no route took this study when it was routed. Today rMR matches" in page
        assert "no route matches" not in page
        answer: httpx.Response = web.client.post(f"/studies/{UID}/route")
        assert answer.status_code == 303
        page = web.get(answer.headers["location"], "text/html").text
        assert "The study is offered to the routes again." in page
        assert "Complete, waiting for routing" in page


def _get_page(web: Web) -> str:
    return web.get(f"/studies/{UID}", "text/html").text


def test_a_study_that_no_route_matches_is_told_what_to_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], now: datetime
) -> None:
    node = Node(write_config(tmp_path))
    databases.prepare(node.config)
    sessions = engines.sessions(engines.connect(node.config.database_url))
    arrive(sessions, make_config("CT"), now)
    assert cli.main(["--config", str(node.config.path), "studies", "route", UID]) == 1
    assert "Change a match in node.toml and restart the node" in capsys.readouterr().err


def test_the_commands_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str], now: datetime) -> None:
    route: dict[str, Any] = {"name": "r", "pipeline": "anatomy", "match": {"Modality": "MR"}}
    node = Node(write_config(tmp_path, routes=[route]))
    databases.prepare(node.config)
    engine = engines.connect(node.config.database_url)
    sessions = engines.sessions(engine)
    arrive(sessions, make_config("CT"), now)
    words = ["--config", str(node.config.path), "studies"]
    assert cli.main([*words, "replay", UID]) == 1
    assert (
        "no route took it; 'dicomnode studies explain' says why, 'dicomnode studies route'" in capsys.readouterr().err
    )
    assert cli.main([*words, "route", UID]) == 0
    told = capsys.readouterr().out
    assert "offered to the routes again; of node.toml these match: r\n" in told
    assert "'dicomnode serve' does. 'dicomnode studies show 1' lists its jobs." in told
    assert cli.main([*words, "route", UID]) == 1
    assert "about to be routed" in capsys.readouterr().err
    assert sweep(sessions, node.config, now) == ["r"]
    engine.dispose()


def test_sending_again_says_once_what_to_do(
    receiver: Receiver, an_instance: Encoded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for number in range(3):
        assert [each.Status for each in store_all(receiver.port, [an_instance], tmp_path / str(number))] == [0]
    lines = [each.getMessage() for each in caplog.records if "here already" in each.getMessage()]
    assert lines == [
        "127.0.0.1: an instance was sent that is here already, which starts no work; 'dicomnode studies route' "
        "offers a study to the routes again"
    ]
