"""Trials of a route: how many studies it would take, and jobs that no route of node.toml made."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from db import audit, retrievals, studies
from db.models import Event, Instance, Job, Study
from db.states import JobState, StudyState
from dicomnode.cli import main
from dicomnode.config import Route, route_blocks
from dicomnode.decoding.pool import Pool
from dicomnode.errors import ConfigError, NodeBusy, NodeError, NotAllowed, NotFound
from dicomnode.execution import option_process
from dicomnode.routing import match_counts, rerouting, route_addition, routing, trials
from tests.web_node import Web
from tests.web_studies import PEERS, ROUTES, make_results, make_series, receive, route_study, study_uid

FLAIR: dict[str, Any] = {
    "name": "mine",
    "pipeline": "ms_lesions",
    "match": {"Modality": "MR", "SeriesDescription": "~(?i)flair"},
    "with": {"t1w": {"SeriesDescription": "~T1"}},
}


def make_route(**changes: Any) -> Route:
    return route_blocks.make_block(FLAIR | changes).route


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with Web(tmp_path, sections={"routes": ROUTES, "peers": PEERS}) as running:
        yield running


def close(web: Web, study_id: int) -> None:
    with web.sessions.begin() as session:
        study = session.get_one(Study, study_id)
        studies.close(session, study, reason="quiet", now=web.now)
        audit.transition(session, study, StudyState.ROUTED, reason="nothing", now=web.now)


def start(web: Web, route: Route, name: str, **changes: Any) -> trials.Trial:
    with web.sessions.begin() as session:
        values: dict[str, Any] = {"who": "MK", "reason": "to see it", "now": web.now} | changes
        return trials.start_trial(session, study_uid(name), route, web.config, **values)


def count(web: Web, route: Route, **options: Any) -> match_counts.MatchCount:
    with web.sessions() as session:
        return match_counts.count_matches(session, route, **options)


def test_the_count_is_what_the_routes_would_take(web: Web) -> None:
    for at in range(3):
        receive(web, make_series(f"flair{at}")[:1])
    receive(web, make_series("t1", description="T1 MPRAGE")[:1])
    both = [*make_series("both")[:1], *make_series("both", number=2, description="T1 MPRAGE")[:1]]
    receive(web, both)
    found = count(web, make_route())
    assert (found.held, found.counted, found.matched) == (5, 5, 4)
    assert (found.recent, found.recent_matched) == (5, 4)
    assert found.further == {"t1w": 1}
    assert [each.study_uid for each in found.first][:2] == [study_uid("both"), study_uid("flair2")]
    assert found.first[0].series == ("FLAIR 3D",)
    assert count(web, make_route(match={"Modality": "PT"})).matched == 0


def test_the_newest_are_counted_by_themselves(web: Web) -> None:
    receive(web, make_series("old")[:1])
    for at in range(match_counts.RECENT):
        receive(web, make_series(f"new{at}", description="T1" if at % 3 else "FLAIR")[:1])
    found = count(web, make_route())
    assert (found.held, found.matched, found.recent, found.recent_matched) == (31, 11, 30, 10)


def test_a_count_that_ends_early_says_over_how_many(web: Web) -> None:
    for at in range(4):
        receive(web, make_series(f"flair{at}")[:1])
    asks = itertools.count()
    found = count(web, make_route(), is_time_up=lambda: next(asks) >= 3)
    assert (found.held, found.counted, found.matched) == (4, 3, 3)


def test_what_the_routes_leave_out_is_not_counted(web: Web) -> None:
    """Own results, deleted files and studies that were fetched for comparison match by their attributes only."""
    images = make_series("own")
    study_id = receive(web, images[:1])
    web.add_results(make_results(images)[:1])
    own = {"match": {"SeriesDescription": "~(?i)dir"}}
    receive(web, make_results(images)[:1])
    assert count(web, make_route(**own)).matched == 0
    assert count(web, make_route()).matched == 1
    with web.sessions.begin() as session:
        session.query(Instance).filter(Instance.series.has(study_id=study_id)).update({"expired_at": web.now})
    assert count(web, make_route()).matched == 0
    receive(web, make_series("fetched")[:1])
    assert count(web, make_route()).matched == 1
    with web.sessions.begin() as session:
        study = session.get_one(Study, study_id)
        sought = retrievals.request(session, study, route="r", peer="pacs", now=web.now)
        sought.prior_study_uid, sought.found_at = study_uid("fetched"), web.now - timedelta(hours=1)
    assert count(web, make_route()).matched == 0


def test_verdict_and_count_leave_out_the_same(web: Web) -> None:
    """Own results, deleted files, fetched studies: no route takes them, and a trial is refused with the reason."""
    images = make_series("own")
    study_id = receive(web, images[:1])
    web.add_results(make_results(images)[:1])
    receive(web, make_results(images)[:1])
    close(web, study_id)
    own = make_route(match={"SeriesDescription": "~(?i)dir"})
    with web.sessions() as session:
        (found,) = routing.explain_study(session, session.get_one(Study, study_id), [own])
    assert found.matched == ()
    with web.sessions.begin() as session:
        session.query(Instance).filter(Instance.series.has(study_id=study_id)).update({"expired_at": web.now})
    with pytest.raises(NotAllowed, match="no series that a job may take: they are results of this node, or arrived"):
        start(web, make_route(), "own")
    close(web, receive(web, make_series("fetched")[:1]))
    with web.sessions.begin() as session:
        sought = retrievals.request(session, session.get_one(Study, study_id), route="r", peer="pacs", now=web.now)
        sought.prior_study_uid, sought.found_at = study_uid("fetched"), web.now - timedelta(hours=1)
    with pytest.raises(NotAllowed, match="the study was fetched to be compared with, not to be worked on"):
        start(web, make_route(), "fetched")


def test_a_database_that_fails_is_not_blamed_on_the_conditions(tmp_path: Path) -> None:
    pool = Pool(children=1, wait_s=60, work_s=60)
    try:
        for _ in range(2):
            with pytest.raises(NodeBusy, match=r"the database did not answer the count \(OperationalError\)"):
                match_counts.examine(make_route(), "", f"sqlite:///{tmp_path}/none/node.db", pool)
    finally:
        pool.close()


def test_few_counts_wait_and_others_are_refused(web: Web) -> None:
    pool = Pool(children=1, wait_s=0.01, work_s=60, most_waiting=0)
    with pytest.raises(NodeBusy, match="other routes are being counted"):
        match_counts.examine(make_route(), "", web.config.database_url, pool)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "nothing@9"}, "model of the route: no bundle nothing@9; installed: anatomy@"),
        ({"model": "anatomy"}, "model of the route: anatomy is no model for ms_lesions"),
        ({"pipeline": "translate:doesnotexist"}, "model of the route: no bundle doesnotexist"),
        ({"pipeline": "magic"}, "no pipeline is named 'magic'"),
    ],
)
def test_a_route_whose_model_is_missing_is_refused(web: Web, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        option_process.check_route(make_route(**changes), web.config)


def test_pipelines_that_are_loaded_for_their_options_do_not_queue_up(web: Web) -> None:
    places = option_process.PLACES
    with places, places, places, pytest.raises(NodeBusy, match="other pipelines are being loaded"):
        option_process.check_route(make_route(options={"passes": 3}), web.config)


def test_a_change_without_its_event_is_undone(web: Web) -> None:
    path = web.config.path
    path.write_text('[node]\nae_title = "A"\n')
    block = route_blocks.make_block(FLAIR)
    values: dict[str, Any] = {"who": "MK", "reason": "lesions", "now": web.now}
    addition = route_addition.plan(path, block, **values)

    def fail(session: Session) -> None:
        raise OSError(5, "no disk")

    event.listen(web.sessions, "before_commit", fail)
    with pytest.raises(OSError, match="no disk"):
        route_addition.write(web.sessions, addition, block, **values)
    event.remove(web.sessions, "before_commit", fail)
    assert path.read_text() == '[node]\nae_title = "A"\n'
    assert [each.name for each in path.parent.glob("node.toml*")] == ["node.toml"]
    assert web.rows(Event) == []


def test_a_command_without_a_reason_is_refused(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    path, block = web.config.path, web.config.data_dir / "route.toml"
    path.write_text(f'[node]\ndata_dir = "{web.config.data_dir}"\n')
    block.write_text(route_blocks.make_block(FLAIR).text)
    before = path.read_text()
    for words in (["add", str(block), "--yes"], ["try", str(block), "1"]):
        assert main(["--config", str(path), "routes", *words]) == 2
        assert "a reason is needed, for the audit trail" in capsys.readouterr().err
    assert path.read_text() == before


@pytest.mark.slow
def test_an_endless_regular_expression_ends_with_a_message(web: Web) -> None:
    receive(web, make_series("long", description="a" * 60 + "!")[:1])
    url = web.config.database_url
    pool = Pool(children=1, wait_s=120, work_s=120)
    try:
        found = match_counts.examine(make_route(), study_uid("long"), url, pool)
        assert found["count"]["matched"] == 0
        assert "SeriesDescription is 'aaaa" in found["explanation"]["why"]
        for _ in range(2):  # the second time without a child
            with pytest.raises(NotAllowed, match="simplify its regular expressions"):
                match_counts.examine(make_route(match={"SeriesDescription": "~^(a+)+$"}), study_uid("long"), url, pool)
        assert match_counts.examine(make_route(match={"Modality": "MR"}), "", url, pool)["count"]["matched"] == 1
    finally:
        pool.close()


def test_a_trial_is_a_job_that_delivers_nothing(web: Web) -> None:
    study_id = receive(web, make_series("a"))
    routed_job_id = route_study(web, study_id, pipeline="ms_lesions")
    found = start(web, make_route(), "a")
    (job,) = [job for job in web.rows(Job) if job.id in found.job_ids]
    assert found.is_new
    assert job.route.startswith("trial:ms_lesions:")
    assert (job.state, job.destinations, job.notify) == (JobState.READY, [], None)
    (other,) = [job for job in web.rows(Job) if job.id == routed_job_id]
    assert other.state is JobState.READY, "the job of the route is not superseded"
    (entry,) = [each for each in web.rows(Event) if each.event == "trial"]
    assert entry.detail == {"who": "MK", "reason": "tried by MK: to see it", "destinations": []}


def test_the_same_trial_runs_once_and_another_beside_it(web: Web) -> None:
    close(web, receive(web, make_series("a")))
    first = start(web, make_route(), "a")
    again = start(web, make_route(name="renamed"), "a")
    assert (again.job_ids, again.is_new) == (first.job_ids, False)
    others = [
        start(web, make_route(**change), "a") for change in ({"options": {"passes": 3}}, {"destinations": ["pacs"]})
    ]
    assert all(each.is_new for each in others)
    jobs = web.rows(Job)
    assert [job.state for job in jobs] == [JobState.READY] * 3, "none supersedes another"
    assert [job.destinations for job in jobs] == [[], [], ["pacs"]]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"match": {"Modality": "PT"}}, NotAllowed, r"Modality is 'MR' \(wanted PT\)"),
        ({"pipeline": "magic"}, ConfigError, "no pipeline is named 'magic'"),
        ({"destinations": ["nowhere"]}, ConfigError, "no peer is named 'nowhere'"),
    ],
)
def test_what_cannot_be_tried_is_refused(
    web: Web, changes: dict[str, Any], error: type[NodeError], message: str
) -> None:
    close(web, receive(web, make_series("a")[:1]))
    with pytest.raises(error, match=message):
        start(web, make_route(**changes), "a")
    assert web.rows(Job) == []


def test_only_a_complete_study_is_tried(web: Web) -> None:
    receive(web, make_series("a")[:1])
    with pytest.raises(NotAllowed, match="the study is still arriving"):
        start(web, make_route(), "a")
    with pytest.raises(NotFound, match="no study with the UID"):
        start(web, make_route(), "b")


def test_a_study_with_a_trial_only_is_offered_to_changed_routes(web: Web) -> None:
    close(web, receive(web, make_series("a")[:1]))
    start(web, make_route(), "a")
    assert rerouting.offer_unrouted(web.sessions, web.config, now=lambda: web.now) == 1


def test_an_added_route_is_in_the_audit_trail(web: Web) -> None:
    path = web.config.path
    path.write_text('[node]\nae_title = "A"\n')
    block = route_blocks.make_block(FLAIR)
    values: dict[str, Any] = {"who": "MK", "reason": "lesions", "now": web.now}
    addition = route_addition.plan(path, block, **values)
    kept_path = route_addition.write(web.sessions, addition, block, **values)
    assert "# Added 2026-11-20 by MK: lesions\n[[routes]]\n" in path.read_text()
    (entry,) = web.rows(Event)
    assert (entry.subject, entry.subject_id, entry.detail["old_file"]) == ("node.toml", "mine", kept_path.name)
    with pytest.raises(ConfigError, match="no pipeline is named 'magic'"):
        route_addition.plan(path, route_blocks.make_block(FLAIR | {"name": "b", "pipeline": "magic"}), **values)
