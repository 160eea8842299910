"""Results of trials: marked as such, and never taken for those of a route."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from db import learning, readings, studies
from db.models import Job, Study
from db.states import ReadingVerdict
from dicomnode.bids import study_files
from dicomnode.errors import NotFound
from dicomnode.execution import job_run, stored
from tests.web_node import Web
from tests.web_readings import make_lesion_results, make_reading, study_page
from tests.web_studies import (
    PEERS,
    ROUTES,
    claim_job,
    finish_job,
    make_series,
    receive,
    route_study,
    study_uid,
)

TRIAL = "trial:synthetic_dir:0b2a7f31"
WORDS = "It is no result of a route of this node."


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with Web(tmp_path, sections={"routes": ROUTES, "peers": PEERS}) as running:
        yield running


def find_study(web: Web, name: str) -> int:
    with web.sessions() as session:
        study = studies.find_by_uid(session, study_uid(name))
        assert study is not None
        return study.id


def add_trial(web: Web, study_id: int, name: str = "reading", held_because: str = "") -> int:
    """Add a finished trial on the study; return the job's number."""
    job = route_study(web, study_id, route=TRIAL, destinations=())
    assert claim_job(web) == job
    images = make_series(name, description="FLAIR 3D", PatientID="P-471")
    finish_job(web, job, make_lesion_results(images), held_because=held_because)
    return job


def accept(web: Web, job_id: int) -> None:
    with web.sessions.begin() as session:
        job = session.get_one(Job, job_id)
        readings.record(
            session, job, verdict=ReadingVerdict.ACCEPTED, who="MK", reason="fits", sentence="", now=web.now
        )


def test_the_reading_page_opens_with_the_result_of_a_route(web: Web) -> None:
    routed = make_reading(web)
    trial = add_trial(web, find_study(web, "reading"))
    page = web.get(study_page()).text
    assert f'href="?job={routed}" aria-current="page"' in page
    assert WORDS not in page
    assert f"trial, job {trial}" in page
    assert WORDS in web.get(f"{study_page()}?job={trial}").text


def test_a_study_with_trials_only_shows_none_unasked(web: Web) -> None:
    study_id = receive(web, make_series("reading", PatientID="P-471"))
    trial = add_trial(web, study_id)
    assert web.get(study_page()).status_code == 404
    assert web.get(f"{study_page()}?job={trial}").status_code == 200
    study = web.get(f"/studies/{study_uid('reading')}").text
    assert "trial, of no route" in study
    assert "/reading" not in study, "no link to a result of the study"
    assert f"/studies/{study_uid('reading')}/reading?job={trial}" in web.get(f"/jobs/{trial}").text
    assert web.get(f"/studies/{study_uid('reading')}/report.png").status_code == 404


def test_every_list_of_jobs_says_that_it_is_a_trial(web: Web) -> None:
    trial = add_trial(web, receive(web, make_series("reading")), held_because="look at it")
    for page in ("/hold", "/jobs", f"/jobs/{trial}"):
        assert "trial, of no route" in web.get(page).text, page


def test_a_trial_is_the_result_of_a_study_by_its_number_only(web: Web) -> None:
    routed = make_reading(web)
    trial = add_trial(web, find_study(web, "reading"))
    other = receive(web, make_series("other"))
    add_trial(web, other, "other")
    with web.sessions() as session:
        study = session.get_one(Study, find_study(web, "reading"))
        assert (stored.choose_job(study, None).id, stored.choose_job(study, trial).id) == (routed, trial)
        with pytest.raises(NotFound, match="no result of any route"):
            stored.choose_job(session.get_one(Study, other), None)


def test_the_objects_and_the_page_of_a_trial_say_so(web: Web) -> None:
    routed = make_reading(web)
    trial = add_trial(web, find_study(web, "reading"))
    with web.sessions() as session:
        notes = {id: job_run.build_task(session.get_one(Job, id), web.config).notes for id in (routed, trial)}
    assert notes[routed] == ()
    assert WORDS in notes[trial][0].text


def test_decisions_on_trials_are_listed_with_their_route_and_are_no_cases(web: Web) -> None:
    routed = make_reading(web)
    trial = add_trial(web, find_study(web, "reading"))
    accept(web, routed)
    accept(web, trial)
    rows = list(csv.DictReader(io.StringIO(web.get("/readings.csv").text)))
    assert [row["route"] for row in rows] == ["flair-to-dir", TRIAL]
    with web.sessions() as session:
        assert [each.job.id for each in learning.list_decisions(session, "synthetic_dir")] == [routed]


def test_a_trial_is_no_part_of_a_dataset(web: Web) -> None:
    images = make_series("reading")
    trial = add_trial(web, receive(web, images))
    with web.sessions() as session:
        made = {output.sop_instance_uid for output in session.get_one(Job, trial).outputs}
    receive(web, [ds for ds in make_lesion_results(images) if ds.SOPInstanceUID in made][:1])  # from an archive
    with web.sessions() as session:
        found = study_files.find_study_files(session, study_uid("reading"), web.config.spool_dir)
    assert len(found.paths) == len(images)
    assert [(each.series, each.left_out) for each in found.left_out] == [
        (f"job {trial} synthetic_dir", "a trial, of no route")
    ]
