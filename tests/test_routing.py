"""Routes: the studies that they match, those that they do not, and the reason."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from db import studies
from db.models import Job, Output, Study
from db.states import JobState, StudyState
from dicomnode.config import Config, Route, conditions
from dicomnode.routing import completion, routing
from dicomnode.routing.routing import SeriesAttributes
from tests.rows import RAW_DATA_STORAGE, make_arrival

FLAIR = {"Modality": "MR", "SeriesDescription": "AX FLAIR", "SliceThickness": 3.0, "ImageType": ["ORIGINAL", "PRIMARY"]}


def make_route(match: dict[str, Any], **changes: Any) -> Route:
    return Route.model_validate({"name": "r", "pipeline": "p", "match": match} | changes)


@pytest.mark.parametrize(
    ("condition", "value", "holds"),
    [
        ("MR", "MR", True),
        ("MR", "CT", False),
        ("MR", None, False),
        ("PRIMARY", ["ORIGINAL", "PRIMARY"], True),
        (["MR", "PT"], "PT", True),
        (["MR", "PT"], "CT", False),
        ("~(?i)flair", "AX FLAIR 3D", True),
        ("~^flair", "AX FLAIR", False),
        ("<3", 2.9, True),
        ("< 3", 3, False),
        ("<= 3", "3", True),
        ("> 3", "four", False),
        (">= 3", [1, 5], True),
        (">= 3", None, False),
        (5, "5", True),
        (5, 5.0, True),
        (5, "x", False),
        ("exists", "x", True),
        ("exists", "", False),
        ("exists", [], False),
        ("absent", None, True),
        ("absent", "x", False),
    ],
)
def test_condition(condition: Any, value: Any, holds: bool) -> None:
    assert conditions.parse(condition).holds(value) is holds


@pytest.mark.parametrize("condition", ["~(", "< three", [], [["a"]], {"a": 1}, None])
def test_bad_condition_is_refused(condition: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        conditions.parse(condition)


def test_all_conditions_must_hold_on_one_series() -> None:
    route = make_route({"Modality": "MR", "SeriesDescription": "~FLAIR"})
    assert conditions.matches(route.match, FLAIR)
    series = [
        SeriesAttributes("1", {"Modality": "MR"}),
        SeriesAttributes("2", {"Modality": "CT", "SeriesDescription": "FLAIR"}),
    ]
    assert routing.explain_routes([route], series)[0].matched == ()


def test_explain_names_the_attributes_that_matched() -> None:
    route = make_route({"Modality": "MR", "SeriesDescription": "~(?i)flair"})
    verdict = routing.explain_routes([route], [SeriesAttributes("1.2", FLAIR)])[0]
    assert verdict.matched == ("1.2",)
    assert "SeriesDescription is 'AX FLAIR' (wanted ~(?i)flair)" in verdict.why


def test_explain_names_what_the_nearest_series_failed_on() -> None:
    route = make_route({"Modality": "MR", "SliceThickness": "< 2", "EchoTime": "exists"})
    verdict = routing.explain_routes(
        [route], [SeriesAttributes("1", {"Modality": "CT"}), SeriesAttributes("2", FLAIR)]
    )[0]
    assert verdict.matched == ()
    assert "Modality" not in verdict.why
    assert "SliceThickness is 3.0 (wanted < 2), EchoTime is absent (wanted exists)" in verdict.why


def test_explain_says_which_further_series_is_missing() -> None:
    route = make_route({"Modality": "MR"}, **{"with": {"t1w": {"SeriesDescription": "~T1"}}})
    assert "no series for t1w" in routing.explain_routes([route], [SeriesAttributes("1", FLAIR)])[0].why


def arrive(sessions: sessionmaker[Session], now: datetime, *arrivals: studies.Arrival) -> None:
    """Arrive, complete."""
    with sessions.begin() as session:
        studies.register_instances(session, arrivals, now=now)
    with sessions.begin() as session:
        completion.close_study(session, arrivals[0].facts.study_uid, now=now)


def list_jobs(sessions: sessionmaker[Session]) -> list[Job]:
    with sessions() as session:
        found = session.query(Job).order_by(Job.id).all()
        for job in found:
            assert job.inputs
        return found


def test_study_may_satisfy_several_routes(sessions: sessionmaker[Session], now: datetime) -> None:
    config = Config(
        routes=(make_route({"Modality": "MR"}, name="a"), make_route({"SeriesDescription": "~FLAIR"}, name="b"))
    )
    arrive(sessions, now, make_arrival(number=1), make_arrival(number=2))
    assert routing.route_complete_studies(sessions, config, now=lambda: now) == 2
    assert [(job.route, len(job.inputs)) for job in list_jobs(sessions)] == [("a", 2), ("b", 2)]


def test_study_without_a_match_is_routed_to_nothing(sessions: sessionmaker[Session], now: datetime) -> None:
    arrive(sessions, now, make_arrival())
    assert (
        routing.route_complete_studies(sessions, Config(routes=(make_route({"Modality": "CT"}),)), now=lambda: now) == 0
    )
    with sessions() as session:
        assert session.query(Study).one().state is StudyState.ROUTED


def test_further_series_come_under_their_names(sessions: sessionmaker[Session], now: datetime) -> None:
    route = make_route({"SeriesDescription": "~FLAIR"}, **{"with": {"t1w": {"SeriesDescription": "~T1"}}})
    t1w = make_arrival(series="2", attributes={"Modality": "MR", "SeriesDescription": "T1 MPRAGE"})
    arrive(sessions, now, make_arrival(), t1w)
    routing.route_complete_studies(sessions, Config(routes=(route,)), now=lambda: now)
    assert [each.name for each in list_jobs(sessions)[0].inputs] == ["match", "t1w"]


def test_each_raw_data_object_is_a_job_of_its_own(sessions: sessionmaker[Session], now: datetime) -> None:
    raw = [make_arrival(number=n, sop_class_uid=RAW_DATA_STORAGE) for n in (1, 2, 3)]
    arrive(sessions, now, *raw)
    assert (
        routing.route_complete_studies(sessions, Config(routes=(make_route({"Modality": "MR"}),)), now=lambda: now) == 3
    )


def test_late_image_supersedes_the_job_that_lacked_it(sessions: sessionmaker[Session], now: datetime) -> None:
    config = Config(routes=(make_route({"Modality": "MR"}),))
    arrive(sessions, now, make_arrival(number=1))
    routing.route_complete_studies(sessions, config, now=lambda: now)
    arrive(sessions, now, make_arrival(number=2))
    routing.route_complete_studies(sessions, config, now=lambda: now)
    first, second = list_jobs(sessions)
    assert (first.state, first.reason) == (JobState.CANCELLED, f"superseded by job {second.id}")
    assert (second.revision, second.supersedes_id, len(second.inputs)) == (2, first.id, 2)


def test_late_raw_data_does_not_repeat_the_work_that_is_done(sessions: sessionmaker[Session], now: datetime) -> None:
    config = Config(routes=(make_route({"Modality": "MR"}),))
    arrive(sessions, now, make_arrival(number=1, sop_class_uid=RAW_DATA_STORAGE))
    routing.route_complete_studies(sessions, config, now=lambda: now)
    arrive(sessions, now, make_arrival(number=2, sop_class_uid=RAW_DATA_STORAGE))
    assert routing.route_complete_studies(sessions, config, now=lambda: now) == 1
    first, second = list_jobs(sessions)
    assert (first.state, second.state, second.supersedes_id) == (JobState.READY, JobState.READY, None)


def test_own_result_that_comes_back_starts_nothing(sessions: sessionmaker[Session], now: datetime) -> None:
    config = Config(routes=(make_route({"Modality": "MR"}),))
    arrive(sessions, now, make_arrival())
    routing.route_complete_studies(sessions, config, now=lambda: now)
    result = make_arrival(series="9", number=1)
    with sessions.begin() as session:
        job = session.query(Job).one()
        job.outputs.append(
            Output(
                sop_instance_uid=result.facts.sop_instance_uid,
                sop_class_uid="1.2",
                series_uid="1.3",
                kind="image",
                sha256="0" * 64,
                size_bytes=1,
                relative_path="x",
                created_at=now,
            )
        )
    with sessions.begin() as session:
        assert studies.register_instances(session, [result], now=now)[0].kind == "new"
    with sessions() as session:
        assert session.query(Study).one().state is StudyState.ROUTED
    arrive(sessions, now, make_arrival(number=2))
    routing.route_complete_studies(sessions, config, now=lambda: now)
    assert len(list_jobs(sessions)[-1].inputs) == 2
