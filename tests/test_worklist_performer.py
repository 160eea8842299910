"""The node as performer of workitems: claims, jobs, progress, results, cancellation, and a restart in the middle."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import dcmread

from db import jobs, studies
from db.models import Event, Job, Study
from db.states import JobState
from dicomnode.config.routes import Route
from dicomnode.datasets import objects
from dicomnode.execution import job_run
from dicomnode.results.provenance import read_record
from dicomnode.worklist.performing import Performer
from tests.peers import Node, StoreScp, wait_for, write_config
from tests.peers.kspaces import acquisitions
from tests.web_node import Web
from tests.web_studies import (
    PEERS,
    ROUTES,
    claim_job,
    finish_job,
    make_results,
    make_series,
    receive,
    report_progress,
)
from tests.work_orders import UID, code, create, make_study, option, order, progress, run_to_canceled, step
from tests.workitems import make_workitem, read, send, to_json


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    sections = {"worklist": {"enabled": True}, "routes": ROUTES, "peers": PEERS}
    with Web(tmp_path, {"public_url": "https://node.example"}, sections=sections) as running:
        yield running


@pytest.fixture
def performer(web: Web) -> Performer:
    return Performer(web.sessions, web.config)


def test_a_workitem_goes_from_claim_to_results(web: Web, performer: Performer) -> None:
    images = make_study(web)
    create(web, order("synthetic_dir"))
    step(web, performer)
    found = read(web.client, UID)
    (performed,) = found.UnifiedProcedureStepPerformedProcedureSequence
    assert found.ProcedureStepState == "IN PROGRESS"
    assert performed.PerformedStationNameCodeSequence[0].CodeValue == "DICOMNODE"
    (job,) = web.rows(Job)
    assert (job.route, job.pipeline, job.destinations) == (f"workitem:{UID}", "synthetic_dir", [])
    assert claim_job(web) == job.id
    report_progress(web, job.id, 0.42, "sampling 17 of 40")
    step(web, performer)
    assert progress(web).ProcedureStepProgress == 42
    assert step(web, performer) == 0, "nothing is new"
    results = make_results(images)
    finish_job(web, job.id, results)
    step(web, performer)
    found = read(web.client, UID)
    (performed,) = found.UnifiedProcedureStepPerformedProcedureSequence
    assert (found.ProcedureStepState, progress(web).ProcedureStepProgress) == ("COMPLETED", 100)
    assert performed.PerformedWorkitemCodeSequence[0].CodeValue == "synthetic_dir"
    assert performed.PerformedProcedureStepStartDateTime < performed.PerformedProcedureStepEndDateTime
    series = {item.SeriesInstanceUID: item for item in performed.OutputInformationSequence}
    assert set(series) == {ds.SeriesInstanceUID for ds in results}
    item = series[results[0].SeriesInstanceUID]
    assert item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == results[0].SOPInstanceUID
    assert item.DICOMRetrievalSequence[0].RetrieveAETitle == "DICOMNODE"
    path = item.WADORSRetrievalSequence[0].RetrieveURL.removeprefix("https://node.example")
    assert web.get(f"{path}/metadata", "application/dicom+json").status_code == 200
    moved = [each.detail["to"] for each in web.rows(Event) if each.subject == "workitems" and each.event == "moved"]
    assert moved == ["IN PROGRESS", "COMPLETED"]


def test_options_priority_and_destination_are_those_of_the_workitem(web: Web, performer: Performer) -> None:
    make_study(web)
    changes: dict[str, Any] = {
        "ScheduledProcedureStepPriority": "HIGH",
        "ScheduledProcessingParametersSequence": [
            option("passes", NumericValue="3"), option("threshold", TextValue="0.4"),
        ],
        "OutputDestinationSequence": [{"DICOMStorageSequence": [{"DestinationAE": "ARCHIVE"}]}],
    }  # fmt: skip
    create(web, order("ms_lesions", **changes))
    reason = run_to_canceled(web, performer)
    assert "no route runs ms_lesions" in reason
    (series,) = {ds.SeriesInstanceUID for ds in make_series("a")}
    create(web, order("flair-to-dir", series=series, OutputDestinationSequence=changes["OutputDestinationSequence"],
                      ScheduledProcedureStepPriority="HIGH"), "1.2.9")  # fmt: skip
    step(web, performer)
    (job,) = web.rows(Job)
    assert (job.pipeline, job.priority, job.destinations) == ("synthetic_dir", 1000, ["research"])


def test_the_options_of_a_workitem_are_checked(web: Web, performer: Performer) -> None:
    make_study(web)
    create(web, order("flair-to-dir", ScheduledProcessingParametersSequence=[option("nonsense", TextValue="true")]))
    assert "nonsense" in run_to_canceled(web, performer)
    assert web.rows(Job) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "magic"}, "'magic' is neither a route nor a pipeline of this node"),
        ({"InputInformationSequence": []}, "names no study; one is a must"),
        ({"InputInformationSequence": [{"StudyInstanceUID": "1.2"}, {"StudyInstanceUID": "1.3"}]}, "several studies"),
        ({"PatientID": "P-2"}, "another Patient ID than its study"),
        (
            {"OutputDestinationSequence": [{"DICOMStorageSequence": [{"DestinationAE": "NOWHERE"}]}]},
            "the destination 'NOWHERE' is none of this node's peers",
        ),
        ({"OutputDestinationSequence": [{}]}, "DICOM application entities only"),
        (
            {"ScheduledProcessingParametersSequence": [option("passes")]},
            "'passes' has neither a Text Value nor a Numeric Value",
        ),
    ],
)
def test_what_this_node_cannot_do_is_canceled_with_the_reason(
    web: Web, performer: Performer, changes: dict[str, Any], message: str
) -> None:
    make_study(web)
    create(web, order(**{"name": "flair-to-dir"} | changes))
    assert message in run_to_canceled(web, performer)
    assert web.rows(Job) == []


def test_a_study_without_a_matching_series_is_canceled(web: Web, performer: Performer) -> None:
    images = make_series("a", description="localizer")
    study_id = receive(web, images)
    with web.sessions.begin() as session:
        studies.close(session, session.get_one(Study, study_id), reason="quiet", now=web.now)
    create(web, order("flair-to-dir"))
    assert "no series matches" in run_to_canceled(web, performer)


@pytest.mark.parametrize(
    "changes",
    [
        {"InputReadinessState": "INCOMPLETE"},
        {"ScheduledProcedureStepStartDateTime": "20261120090000+0000"},
        {"ScheduledProcedureStepStartDateTime": "20261121"},
        {"ScheduledStationNameCodeSequence": [{"CodeValue": "OTHER", "CodingSchemeDesignator": "99X"}]},
        {"ScheduledWorkitemCodeSequence": [{"CodeValue": "flair-to-dir", "CodingSchemeDesignator": "99OTHER"}]},
        {"ScheduledWorkitemCodeSequence": []},
    ],
)
def test_what_is_not_due_or_not_for_this_node_stays_scheduled(
    web: Web, performer: Performer, changes: dict[str, Any]
) -> None:
    make_study(web)
    create(web, order("flair-to-dir", **changes))
    assert step(web, performer) == 0
    assert read(web.client, UID).ProcedureStepState == "SCHEDULED"


def test_a_workitem_waits_for_its_study_and_no_longer_than_it_may(web: Web, performer: Performer) -> None:
    create(web, order("flair-to-dir"))
    create(web, order("flair-to-dir", "b"), "1.2.9")
    receive(web, make_series("b"))
    assert step(web, performer) == 0, "one is not here, the other is still arriving"
    make_study(web)
    step(web, performer)
    assert read(web.client, UID).ProcedureStepState == "IN PROGRESS"
    web.now += timedelta(hours=25)
    step(web, performer)
    found = read(web.client, "1.2.9")
    (item,) = found.ProcedureStepProgressInformationSequence
    assert (found.ProcedureStepState, "waited 24 h: the study is still arriving" in item.ReasonForCancellation) == (
        "CANCELED", True,
    )  # fmt: skip


def test_a_held_result_stays_in_progress_until_a_person_decides(web: Web, performer: Performer) -> None:
    images = make_study(web)
    create(web, order("flair-to-dir"))
    step(web, performer)
    job_id = claim_job(web)
    finish_job(web, job_id, make_results(images), held_because="low confidence")
    step(web, performer)
    item = progress(web)
    assert read(web.client, UID).ProcedureStepState == "IN PROGRESS"
    assert "held for a person's decision: low confidence" in item.ProcedureStepProgressDescription
    assert item.ProcedureStepCommunicationsURISequence[0].ContactURI == "https://node.example/hold"
    assert step(web, performer) == 0
    with web.sessions.begin() as session:
        jobs.release(session, session.get_one(Job, job_id), reason="seen", now=web.now)
    step(web, performer)
    assert read(web.client, UID).ProcedureStepState == "COMPLETED"


@pytest.mark.parametrize("how", ["refused", "dead", "discarded", "cancelled"])
def test_what_fails_is_canceled_with_the_reason(web: Web, performer: Performer, how: str) -> None:
    images = make_study(web)
    create(web, order("flair-to-dir"))
    step(web, performer)
    job_id, words = claim_job(web), "slices are missing"
    if how == "discarded":
        finish_job(web, job_id, make_results(images), held_because="low confidence")
    with web.sessions.begin() as session:
        job = session.get_one(Job, job_id)
        who: dict[str, Any] = {"job_id": job_id, "worker": "w:1", "reason": words, "now": web.now}
        if how == "refused":
            jobs.refuse(session, report={}, **who)
        elif how == "dead":
            jobs.fail(session, retry=False, attempts=3, **who)
        elif how == "discarded":
            jobs.discard(session, job, reason=words, now=web.now)
        else:
            jobs.cancel(session, job, reason=words, now=web.now)
    assert run_to_canceled(web, performer) == f"job {job_id} is {how}: {words}"
    reason = progress(web).ProcedureStepDiscontinuationReasonCodeSequence[0].CodeValue
    assert reason == ("110501" if how == "dead" else "110513")


def test_a_request_to_cancel_stops_the_job(web: Web, performer: Performer) -> None:
    make_study(web)
    create(web, order("flair-to-dir"))
    step(web, performer)
    job_id = claim_job(web)
    reason = to_json({"ReasonForCancellation": "wrong protocol"})
    assert send(web.client, "POST", f"/workitems/{UID}/cancelrequest", reason).status_code == 202
    assert read(web.client, UID).ProcedureStepState == "IN PROGRESS"
    assert run_to_canceled(web, performer) == "wrong protocol"
    (job,) = web.rows(Job)
    assert (job.id, job.state) == (job_id, JobState.CANCELLED)


def test_another_performer_keeps_its_workitem(web: Web, performer: Performer) -> None:
    make_study(web)
    create(web, order("flair-to-dir"))
    mine = to_json({"ProcedureStepState": "IN PROGRESS", "TransactionUID": "1.9"})
    assert send(web.client, "PUT", f"/workitems/{UID}/state", mine).status_code == 200
    assert step(web, performer) == 0
    assert web.rows(Job) == []


def test_nobody_else_ends_what_this_node_performs(web: Web, performer: Performer) -> None:
    make_study(web)
    create(web, order("flair-to-dir"))
    step(web, performer)
    other = to_json({"ProcedureStepState": "CANCELED", "TransactionUID": "1.9"})
    assert send(web.client, "PUT", f"/workitems/{UID}/state", other).status_code == 400
    assert "TransactionUID" not in read(web.client, UID)


def test_a_route_cannot_have_the_name_of_a_workitem(tmp_path: Path) -> None:
    from dicomnode.config import references

    route = Route(name="workitem:1.2", pipeline="anatomy", match={})
    with Web(tmp_path, sections={"routes": [route]}) as web:
        assert [reason for _, reason in references.find_violations(web.config)] == [
            "route 'workitem:1.2': names that begin with 'workitem:' are of workitems"
        ]


def test_the_job_knows_its_workitem(web: Web, performer: Performer) -> None:
    make_study(web)
    create(web, order("flair-to-dir"))
    step(web, performer)
    with web.sessions() as session:
        (job,) = session.query(Job)
        assert job_run.build_task(job, web.config).workitem_uid == UID


def client_of(node: Node) -> httpx.Client:
    address = re.findall(r"web (http://[^/]+)/", node.log)[-1]
    return httpx.Client(base_url=address, timeout=300)


def state_of(client: httpx.Client) -> str:
    return str(read(client, UID).ProcedureStepState)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_workitem_survives_the_death_of_the_node(storescp: StoreScp, tmp_path: Path) -> None:
    """k-space comes by C-STORE, a workitem orders its reconstruction, the node is killed, and all ends well."""
    sent = acquisitions(tmp_path / "kspace")["axial"]
    source = dcmread(sent.path)
    sections: dict[str, Any] = {
        "worklist": {"enabled": True}, "routes": [], "peers": [storescp.peer], "worker": {"lease_s": 15},
    }  # fmt: skip
    with Node(write_config(tmp_path / "node", **sections)) as node:
        with client_of(node) as client:
            values = {
                "PatientID": source.PatientID,
                "ScheduledWorkitemCodeSequence": [code("mri_reconstruction")],
                "ScheduledProcedureStepStartDateTime": "20200101",
                "ScheduledProcessingParametersSequence": [
                    option(name, NumericValue=str(value))
                    for name, value in {"steps": 3, "mean_steps": 3, "samples": 2}.items()
                ],
                "InputInformationSequence": [
                    {"StudyInstanceUID": source.StudyInstanceUID, "SeriesInstanceUID": source.SeriesInstanceUID}
                ],
                "OutputDestinationSequence": [{"DICOMStorageSequence": [{"DestinationAE": storescp.peer.ae_title}]}],
            }
            assert send(client, "POST", f"/workitems?workitem={UID}", make_workitem(**values)).status_code == 201
            assert node.command("send", str(sent.path), "--to", f"127.0.0.1:{node.port}:DICOMNODE").returncode == 0
            wait_for(lambda: state_of(client) == "IN PROGRESS", "the node has claimed it", within_s=400)
        node.kill()
        node.start()
        with client_of(node) as client:
            wait_for(lambda: state_of(client) != "IN PROGRESS", "the workitem has ended", within_s=600)
            found = read(client, UID)
            assert found.ProcedureStepState == "COMPLETED", found
            (performed,) = found.UnifiedProcedureStepPerformedProcedureSequence
        node.wait_until_delivered()
        outputs = {
            each.ReferencedSOPInstanceUID
            for item in performed.OutputInformationSequence
            for each in item.ReferencedSOPSequence
        }
        delivered = storescp.datasets()
        assert {ds.SOPInstanceUID for ds in delivered} == outputs
        for ds in delivered:
            (reference,) = ds.ReferencedPerformedProcedureStepSequence
            assert reference.ReferencedSOPInstanceUID == UID
            assert reference.ReferencedSOPClassUID == "1.2.840.10008.5.1.4.34.6.1"
            assert objects.kind_of(ds)
            assert read_record(ds)["pipeline"] == "mri_reconstruction"
        assert len(node.jobs()) == 1
