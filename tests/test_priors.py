"""The prior examination that a route compares with: of which patient, which one, and its explanation."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from pydicom.datadict import dictionary_description
from pydicom.dataset import Dataset
from pydicom.uid import MultiFrameGrayscaleWordSecondaryCaptureImageStorage
from sqlalchemy import Engine, event, select
from sqlalchemy.orm import Session, sessionmaker

from db import retrievals, studies
from db.models import Event, Job, Retrieval, Study
from db.states import JobState, RetrievalState, StudyState
from db.studies import Arrival
from dicomnode import results
from dicomnode.config import Config, Peer, Route
from dicomnode.config.results import ResultsConfig
from dicomnode.errors import InputRefused
from dicomnode.routing import completion, prefetch, routing
from tests.findings import NOW, PROVENANCE, grid, make_findings, source
from tests.peers import free_port
from tests.rows import make_arrival

FLAIR = {"Modality": "MR", "SeriesDescription": "~(?i)flair"}
T1W = {"Modality": "MR", "SeriesDescription": "~(?i)mprage"}
PATIENT = {"PatientID": "4711-geheim", "IssuerOfPatientID": "HOSPITAL", "PatientBirthDate": "19700131"}

Sessions = sessionmaker[Session]


def make_config(**route_studies: Any) -> Config:
    values: dict[str, Any] = {
        "name": "dir",
        "pipeline": "p",
        "match": FLAIR,
        "prior": {"prior_flair": FLAIR, "prior_t1w": T1W},
    }
    config = Config(routes=(Route.model_validate(values | route_studies),))
    return config.model_copy(update={"peers": (Peer(name="pacs", ae_title="PACS", port=free_port()),)})


def make_image(study: str, date: str, *, series: str = "1", number: int = 1, **attributes: str) -> Arrival:
    """Return an image of the patient, a FLAIR at noon unless attributes say otherwise."""
    values = {"Modality": "MR", "SeriesDescription": "AX FLAIR", "StudyDate": date, "StudyTime": "120000"}
    values |= PATIENT | attributes
    arrival = make_arrival(study, series, number, attributes=values)
    facts = replace(arrival.facts, patient_id=values["PatientID"], study_date=values["StudyDate"])
    return replace(arrival, facts=facts)


def arrive(sessions: Sessions, now: datetime, *arrivals: Arrival, complete: bool = True) -> None:
    with sessions.begin() as session:
        studies.register_instances(session, arrivals, now=now)
    if complete:
        with sessions.begin() as session:
            completion.close_study(session, arrivals[0].facts.study_uid, now=now)


def route_studies(sessions: Sessions, config: Config, now: datetime) -> int:
    return routing.route_complete_studies(sessions, config, now=lambda: now)


def find_job_inputs(sessions: Sessions, study: str) -> dict[str, list[str]]:
    """Return the instances of each input of the study's newest job."""
    with sessions() as session:
        job = session.scalars(select(Job).join(Study).where(Study.study_uid == study).order_by(Job.id.desc())).first()
        found: dict[str, list[str]] = {}
        for each in job.inputs if job else []:
            found.setdefault(each.name, []).append(each.instance.sop_instance_uid)
        return found


def explain_route(sessions: Sessions, config: Config, study: str) -> str:
    with sessions() as session:
        row = studies.find_by_uid(session, study)
        assert row is not None
        return routing.explain_study(session, row, config.routes)[0].why


def find_state(sessions: Sessions, study: str) -> StudyState:
    with sessions() as session:
        row = studies.find_by_uid(session, study)
        assert row is not None
        return row.state


def test_the_newest_earlier_study_is_an_input_of_the_job(sessions: Sessions, now: datetime) -> None:
    config = make_config()
    for study, date in (("1.1", "20230101"), ("1.2", "20250101"), ("1.3", "20240101")):
        arrive(sessions, now, make_image(study, date), make_image(study, date, number=2))
    route_studies(sessions, config, now)
    arrive(sessions, now, make_image("1.9", "20260101"))
    assert route_studies(sessions, config, now) == 1
    assert find_job_inputs(sessions, "1.9") == {"match": ["1.9.1.1"], "prior_flair": ["1.2.1.1", "1.2.1.2"]}
    assert "prior: study 1.2 for prior_flair" in explain_route(sessions, config, "1.9")
    assert "no prior: no earlier study of the patient is here" in explain_route(sessions, config, "1.1")


def test_routing_a_study_asks_the_database_once_for_each_fact(
    engine: Engine, sessions: Sessions, now: datetime
) -> None:
    """Three routes and three earlier studies took 77 queries before StudySnapshot, 19 of them of series."""
    both = [make_config(name=name).routes[0] for name in ("dir", "lesions")]
    further = make_config(name="registration", with_={"t1w": T1W}, with_from="pacs", prior={}).routes[0]
    config = make_config().model_copy(update={"routes": (*both, further)})
    for study, date in (("1.1", "20230101"), ("1.2", "20250101"), ("1.3", "20240101")):
        arrive(sessions, now, make_image(study, date), make_image(study, date, series="2", SeriesDescription="MPRAGE"))
    route_studies(sessions, config, now)
    arrive(
        sessions,
        now,
        make_image("1.9", "20260101"),
        make_image("1.9", "20260101", series="2", SeriesDescription="MPRAGE"),
    )
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    assert route_studies(sessions, config, now) == 3
    selects = [statement for statement in statements if statement.startswith("SELECT")]
    assert len(selects) <= 43
    of_series = [statement for statement in selects if "FROM series JOIN instances" in statement]
    assert len(of_series) == 4, "the study's own series and those of each earlier study, once each"


def test_every_series_comes_from_one_study(sessions: Sessions, now: datetime) -> None:
    config = make_config()
    older = make_image("1.1", "20230101"), make_image("1.1", "20230101", series="2", SeriesDescription="MPRAGE")
    arrive(sessions, now, *older)
    arrive(sessions, now, make_image("1.2", "20240101"))
    arrive(sessions, now, make_image("1.3", "20250101", SeriesDescription="MPRAGE"))
    arrive(sessions, now, make_image("1.9", "20260101"))
    route_studies(sessions, config, now)
    assert set(find_job_inputs(sessions, "1.9")) == {"match", "prior_flair"}
    assert find_job_inputs(sessions, "1.2") == {
        "match": ["1.2.1.1"],
        "prior_flair": ["1.1.1.1"],
        "prior_t1w": ["1.1.2.1"],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [
        {"PatientID": "4712"},
        {"IssuerOfPatientID": "CLINIC"},
        {"IssuerOfPatientID": ""},
        {"PatientBirthDate": "19700201"},
        {"StudyDate": "20260102"},
        {"StudyDate": "20260101", "StudyTime": "120000"},
        {"StudyDate": "20260101", "StudyTime": ""},
        {"StudyDate": ""},
        {"SyntheticData": "YES"},
        {"SeriesDescription": "T2"},
    ],
)
def test_no_prior_is_another_patient_or_not_earlier_or_not_measured(
    sessions: Sessions, now: datetime, other: dict[str, Any]
) -> None:
    config = make_config()
    arrive(sessions, now, make_image("1.1", "20250101", **other))
    arrive(sessions, now, make_image("1.9", "20260101"))
    route_studies(sessions, config, now)
    assert set(find_job_inputs(sessions, "1.9")) == {"match"}
    assert "; no prior: no earlier study" in explain_route(sessions, config, "1.9")


@pytest.mark.parametrize(
    "same",
    [
        {"PatientBirthDate": ""},
        {"StudyDate": "20260101", "StudyTime": "115959.5"},
        {"StudyDate": "2025.12.31"},
    ],
)
def test_what_is_not_stated_does_not_speak_against_a_prior(
    sessions: Sessions, now: datetime, same: dict[str, Any]
) -> None:
    arrive(sessions, now, make_image("1.1", "20250101", **same))
    arrive(sessions, now, make_image("1.9", "20260101"))
    route_studies(sessions, make_config(), now)
    assert find_job_inputs(sessions, "1.9")["prior_flair"] == ["1.1.1.1"]


@pytest.mark.parametrize(
    ("mine", "reason"),
    [
        ({"PatientID": ""}, "the study states no Patient ID"),
        ({"StudyDate": ""}, "the study states no Study Date"),
    ],
)
def test_a_study_of_nobody_has_no_prior(sessions: Sessions, now: datetime, mine: dict[str, Any], reason: str) -> None:
    config = make_config(prior_from="pacs")
    other: dict[str, Any] = {name: "" for name in mine if name == "PatientID"}
    arrive(sessions, now, make_image("1.1", "20250101", **other))
    arrive(sessions, now, make_image("1.9", "20260101", **mine))
    route_studies(sessions, config, now)
    assert set(find_job_inputs(sessions, "1.9")) == {"match"}
    assert reason in explain_route(sessions, config, "1.9")


def test_an_earlier_study_that_is_arriving_is_waited_for(sessions: Sessions, now: datetime) -> None:
    config = make_config()
    arrive(sessions, now, make_image("1.1", "20250101"), complete=False)
    arrive(sessions, now, make_image("1.9", "20260101"))
    arrive(sessions, now, make_image("1.8", "20260101", PatientID="OTHER"))
    assert route_studies(sessions, config, now) == 1
    assert (find_state(sessions, "1.8"), find_state(sessions, "1.9")) == (StudyState.ROUTED, StudyState.COMPLETE)
    with sessions.begin() as session:
        completion.close_study(session, "1.1", now=now)
    assert route_studies(sessions, config, now) == 2
    assert find_job_inputs(sessions, "1.9")["prior_flair"] == ["1.1.1.1"]


def test_nothing_waits_for_ever(sessions: Sessions, now: datetime) -> None:
    config = make_config(prior_wait_s=10)
    arrive(sessions, now, make_image("1.1", "20250101"), complete=False)
    arrive(sessions, now, make_image("1.9", "20260101"))
    assert route_studies(sessions, config, now + timedelta(seconds=9)) == 0
    assert route_studies(sessions, config, now + timedelta(seconds=10)) == 1
    with sessions() as session:
        (event,) = session.scalars(select(Event).where(Event.event == "moved", Event.subject_id == "2")).all()[1:]
        assert event.detail["reason"].endswith("no prior: study 1 was still arriving)")


def test_a_late_prior_opens_no_work_but_a_new_revision_takes_it(sessions: Sessions, now: datetime) -> None:
    config = make_config()
    arrive(sessions, now, make_image("1.9", "20260101"))
    route_studies(sessions, config, now)
    arrive(sessions, now, make_image("1.1", "20250101"))
    assert route_studies(sessions, config, now) == 1  # its own
    assert set(find_job_inputs(sessions, "1.9")) == {"match"}
    assert "came too late" in explain_route(sessions, config, "1.9")
    arrive(sessions, now, make_image("1.9", "20260101", number=2))
    route_studies(sessions, config, now)
    assert find_job_inputs(sessions, "1.9")["prior_flair"] == ["1.1.1.1"]
    with sessions() as session:
        first = session.scalars(select(Job).order_by(Job.id)).first()
        assert first is not None
        assert first.state is JobState.CANCELLED


@pytest.mark.slow
def test_a_peer_that_is_down_means_no_prior(sessions: Sessions, now: datetime) -> None:
    config = make_config(prior_from="pacs")
    arrive(sessions, now, make_image("1.9", "20260101"))
    assert route_studies(sessions, config, now) == 0
    assert prefetch.run_pending_retrievals(sessions, config, now=lambda: now) == 0
    assert route_studies(sessions, config, now) == 1
    assert set(find_job_inputs(sessions, "1.9")) == {"match"}
    reason = explain_route(sessions, config, "1.9")
    assert "no prior: no earlier study of the patient is here; peer pacs: " in reason
    assert "cannot be reached" in reason
    assert PATIENT["PatientID"] not in reason
    with sessions() as session:
        (search,) = session.scalars(select(Retrieval)).all()
        assert search.state is RetrievalState.ENDED


def test_a_study_waits_no_longer_for_a_peer_than_it_may(sessions: Sessions, now: datetime) -> None:
    config = make_config(prior_from="pacs", prior_wait_s=10)
    arrive(sessions, now, make_image("1.9", "20260101"))
    assert route_studies(sessions, config, now) == 0
    assert route_studies(sessions, config, now + timedelta(seconds=10)) == 1
    prefetch.run_pending_retrievals(sessions, config, now=lambda: now + timedelta(seconds=11))
    assert "peer pacs: study 1 waits no longer" in explain_route(sessions, config, "1.9")


@pytest.mark.slow
def test_a_revision_asks_once(sessions: Sessions, now: datetime) -> None:
    config = make_config(prior_from="pacs")
    for number in (1, 2):
        arrive(sessions, now, make_image("1.9", "20260101", number=number))
        for _ in range(3):
            route_studies(sessions, config, now)
            prefetch.run_pending_retrievals(sessions, config, now=lambda: now)
    with sessions() as session:
        assert [search.revision for search in session.scalars(select(Retrieval))] == [1, 2]


def test_what_is_only_fetched_to_compare_gives_no_work_and_half_of_it_is_no_prior(
    sessions: Sessions, now: datetime
) -> None:
    config = make_config(prior_from="pacs", prior_wait_s=10)
    arrive(sessions, now, make_image("1.9", "20260101"))
    route_studies(sessions, config, now)
    with sessions.begin() as session:
        search = session.scalars(select(Retrieval)).one()
        retrievals.start_fetching(session, search, prior_study_uid="1.1", series_uids=["1.1.1"], now=now)
    arrive(sessions, now, make_image("1.1", "20250101"))  # half of it, and then a long silence
    assert route_studies(sessions, config, now) == 0
    assert (find_state(sessions, "1.1"), find_state(sessions, "1.9")) == (StudyState.ROUTED, StudyState.COMPLETE)
    later = now + timedelta(seconds=10)
    assert route_studies(sessions, config, later) == 1
    assert set(find_job_inputs(sessions, "1.9")) == {"match"}
    with sessions.begin() as session:
        retrievals.mark_ended(session, session.scalars(select(Retrieval)).one(), reason="it broke off", now=later)
    arrive(sessions, later + timedelta(seconds=1), make_image("1.1", "20250101", number=2))  # somebody sends it
    assert route_studies(sessions, config, later) == 0  # a revision of its own: the peer is asked for its prior
    assert find_state(sessions, "1.1") is StudyState.COMPLETE


def find_prior_headers(**values: Any) -> Dataset:
    return source("mr", 7, StudyInstanceUID="1.2.7", SeriesInstanceUID="1.2.7.1", FrameOfReferenceUID="1.2.8", **values)


def test_results_with_a_prior_belong_to_the_present_study() -> None:
    present, prior = source("mr"), find_prior_headers()
    these = make_findings(grid("axial"))
    alone, compared = (
        results.write(these.findings, [present], PROVENANCE, ResultsConfig(), NOW, priors=priors)
        for priors in ([], [prior])
    )
    for ds in compared:
        assert ds.StudyInstanceUID == present.StudyInstanceUID
        assert ds.SOPInstanceUID not in {each.SOPInstanceUID for each in alone}
    for ds in compared[:-1]:
        assert ds.FrameOfReferenceUID == present.FrameOfReferenceUID
        assert prior.SOPInstanceUID in {item.ReferencedSOPInstanceUID for item in ds.SourceImageSequence}
        (study,) = ds.StudiesContainingOtherReferencedInstancesSequence
        assert (study.StudyInstanceUID, study.ReferencedSeriesSequence[0].SeriesInstanceUID) == ("1.2.7", "1.2.7.1")
    report = compared[-1]
    (other,) = report.PertinentOtherEvidenceSequence
    assert other.StudyInstanceUID == "1.2.7"
    (own,) = report.CurrentRequestedProcedureEvidenceSequence
    assert own.StudyInstanceUID == present.StudyInstanceUID
    assert compared[0].SOPClassUID == MultiFrameGrayscaleWordSecondaryCaptureImageStorage


@pytest.mark.parametrize("other", [{"PatientID": "4712"}, {"IssuerOfPatientID": "CLINIC"}])
def test_a_prior_of_another_patient_is_refused(other: dict[str, str]) -> None:
    with pytest.raises(
        InputRefused, match=f"earlier examination differs in {dictionary_description(next(iter(other)))}"
    ) as refused:
        results.write(
            make_findings(grid("axial")).findings,
            [source("mr")],
            PROVENANCE,
            ResultsConfig(),
            NOW,
            priors=[find_prior_headers(**other)],
        )
    assert "471" not in str(refused.value)
