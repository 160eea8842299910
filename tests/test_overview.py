"""The queries behind the web pages, on both databases."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from db import audit, contents, deliveries, jobs, overview, studies, trail
from db.jobs import OutputFile
from db.models import Job
from db.overview import Stage, StudyFilter
from db.states import DeliveryState, JobState, StudyState
from db.studies import StoredFile
from dicomnode import listings
from tests.rows import add_job

RESULT = OutputFile("1.2.9.1", "1.2.3", "1.2.9", "image", StoredFile("ab" * 32, 10, "ab/x.dcm"), attributes={"Rows": 4})


@pytest.fixture
def job_ids(sessions: sessionmaker[Session], now: datetime) -> dict[str, int]:
    """Add one job for each outcome, each on its own study; return their numbers by outcome."""
    found = {}
    for at, name in enumerate(("done", "held", "dead", "waiting")):
        with sessions.begin() as session:
            found[name] = add_job(session, now + timedelta(minutes=at), study=f"1.2.{at}").id
        if name != "waiting":
            _end_job(sessions, found[name], name, now + timedelta(minutes=at))
    return found


def _end_job(sessions: sessionmaker[Session], id: int, name: str, now: datetime) -> None:
    later: dict[str, Any] = {"job_id": id, "worker": "w", "now": now + timedelta(seconds=40)}
    with sessions.begin() as session:
        assert jobs.claim(session, worker="w", lease_s=60, now=now)
        if name == "dead":
            jobs.fail(session, reason="broken", retry=False, attempts=1, **later)
        else:
            jobs.finish(session, outputs=[RESULT], report={}, held_because="look" if name == "held" else "", **later)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "names"),
    [
        (Stage.RECEIVING, {"done", "held", "dead", "waiting"}), (Stage.HELD, {"held"}), (Stage.FAILED, {"dead"}),
        (Stage.WAITING, {"waiting"}), (Stage.DELIVERING, {"done"}), (Stage.DELIVERED, set()), (Stage.UNROUTED, set()),
        (Stage.REFUSED, set()), (Stage.RUNNING, set()), (Stage.COMPLETE, set()),
    ],
)  # fmt: skip
def test_a_stage_holds_the_studies_that_stand_there(
    sessions: sessionmaker[Session], job_ids: dict[str, int], stage: Stage, names: set[str]
) -> None:
    with sessions() as session:
        found = overview.load_study_page(session, StudyFilter(stage), limit=10, offset=0)
        assert {job.id for tally in found.tallies.values() for job in tally.jobs} == {job_ids[name] for name in names}
        assert overview.count_studies(session, StudyFilter(stage)) == len(names)


def test_counts_and_tallies_add_up(sessions: sessionmaker[Session], job_ids: dict[str, int]) -> None:
    with sessions() as session:
        assert overview.count_needing_attention(session) == {"held": 1, "failed": 1, "quarantined": 0}
        counts = overview.count_stages(session)
        assert (counts[Stage.HELD], counts[Stage.FAILED], counts[Stage.WAITING]) == (1, 1, 1)
        page = overview.load_study_page(session, StudyFilter(), limit=2, offset=1)
        assert [study.study_uid for study in page.studies] == ["1.2.2", "1.2.1"]
        assert {(each.series, each.instances, each.modalities) for each in page.tallies.values()} == {(1, 1, ("MR",))}
        assert overview.estimate_durations_s(session) == {"nothing": 40.0}


def test_a_search_takes_signs_of_patterns_as_they_are(sessions: sessionmaker[Session], job_ids: dict[str, int]) -> None:
    with sessions() as session:
        for sign in ("%", "_", "\\", "'"):
            assert overview.count_studies(session, StudyFilter(patient=sign, by_name=True)) == 0
            assert overview.count_studies(session, StudyFilter(description=sign)) == 0


def test_a_job_that_was_replaced_is_no_part_of_the_study(
    sessions: sessionmaker[Session], job_ids: dict[str, int], now: datetime
) -> None:
    with sessions.begin() as session:
        old = session.get_one(Job, job_ids["dead"])
        key, study = "f" * 64, old.study_id
        session.add(
            Job(
                key=key,
                study_id=study,
                revision=2,
                supersedes_id=old.id,
                route="r",
                pipeline="p",
                options={},
                destinations=[],
                not_before=now,
                report={},
                created_at=now,
            )
        )
    with sessions() as session:
        assert [job.key for job in overview.load_tallies(session, [study])[study].jobs] == [key]


def test_what_was_made_and_where_it_is_told_by_series_and_destination(
    sessions: sessionmaker[Session], job_ids: dict[str, int], now: datetime
) -> None:
    with sessions.begin() as session:
        due = deliveries.claim_due(session, worker="w", lease_s=60, limit=9, now=now + timedelta(hours=1))
        deliveries.mark_failed(session, due[0].delivery_id, worker="w", reason="away", retry_at=None, now=now)
    with sessions() as session:
        done = session.get_one(Job, job_ids["done"])
        assert [each.series_uid for each in contents.list_results(session, [done.id])[done.id]] == ["1.2.9"]
        parcel = contents.summarize_deliveries(session, [done.id])[done.id][0]
        assert (parcel.states, parcel.reason) == ({DeliveryState.GIVEN_UP: 1}, "away")
        assert contents.list_input_series(session, [done.id])[done.id][0][1].series_uid == "1.2.0.1"
        assert [each.instances for each in contents.list_received_series(session, done.study_id, limit=9)] == [1]
        assert contents.list_files(session, done.id, "1.2.9") == [("image", "ab" * 32)]
        assert len(contents.find_middle_files(session, done.study_id)) == 2
        assert len(contents.find_middle_files(session, done.study_id, "1.2.0.1")) == 1
        assert [job.id for job in contents.list_jobs(session, (JobState.HELD,), limit=5)] == [job_ids["held"]]


def test_the_trail_tells_what_is_new_and_what_happened_to_a_study(
    sessions: sessionmaker[Session], job_ids: dict[str, int], now: datetime
) -> None:
    with sessions() as session:
        before = trail.read_head(session)
        assert trail.find_subjects_since(session, before) == frozenset()
    with sessions.begin() as session:
        study = studies.find_by_uid(session, "1.2.0")
        assert study is not None
        studies.close(session, study, reason="quiet", now=now)
        audit.transition(session, study, StudyState.ROUTED, reason="", now=now)
    with sessions() as session:
        assert trail.find_subjects_since(session, before) == {"studies"}
        events = trail.list_study_events(session, study.id)
        assert {each.subject for each in events} == {"studies", "jobs"}
        assert [each.seq for each in events] == sorted((each.seq for each in events), reverse=True)
        assert trail.list_latest(session, before=before, limit=1)[0].seq == before - 1


def test_listings_name_no_patient_and_ask_in_few_queries(
    sessions: sessionmaker[Session], job_ids: dict[str, int]
) -> None:
    with sessions() as session:
        rows = listings.list_studies(session)
        assert [row["instances"] for row in rows] == [1, 1, 1, 1]
        assert not {"patient_id", "patient_name"} & rows[0].keys()
        facts = listings.describe_study(session, listings.find_study(session, "1.2.0"))
        assert (facts["series"][0]["instances"], facts["jobs"][0]["delivered"]) == (1, "0/1")
        assert (
            listings.describe_job(session, listings.find_job(session, job_ids["done"]))["outputs"][0]["kind"] == "image"
        )
