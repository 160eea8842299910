"""The worklist by UPS-RS: every transaction and refusal, as PS3.18 chapter 11 and PS3.4 annex CC state them.

The requests and the expected answers are written from the standard. Apart from the node that is started, no code of
the node takes part: data sets are made and read by pydicom, which serves as the second implementation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.web_node import Web
from tests.workitems import JSON, make_workitem, performed, read, send, to_json

UID, MINE, OTHER = "1.2.826.0.1.99.1", "1.2.826.0.1.99.2", "1.2.826.0.1.99.3"
SCHEDULED, IN_PROGRESS, COMPLETED, CANCELED = "SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED"
STATES = (SCHEDULED, IN_PROGRESS, COMPLETED, CANCELED)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with Web(tmp_path, sections={"worklist": {"enabled": True, "performs": False, "most_workitems": 20}}) as running:
        yield running


@pytest.fixture
def client(web: Web) -> httpx.Client:
    return web.client


def create(client: httpx.Client, uid: str = UID, **changes: Any) -> httpx.Response:
    return send(client, "POST", f"/workitems?workitem={uid}", make_workitem(**changes))


def change(client: httpx.Client, state: str, transaction_uid: str | None = MINE, uid: str = UID) -> httpx.Response:
    values = {"ProcedureStepState": state} | ({"TransactionUID": transaction_uid} if transaction_uid else {})
    return send(client, "PUT", f"/workitems/{uid}/state", to_json(values))


def bring_to(client: httpx.Client, state: str) -> None:
    """Create a workitem, and bring it to a state under the Transaction UID MINE."""
    assert create(client).status_code == 201
    if state == SCHEDULED:
        return
    assert change(client, IN_PROGRESS).status_code == 200
    if state == COMPLETED:
        assert send(client, "POST", f"/workitems/{UID}?transaction-uid={MINE}", performed()).status_code == 200
    if state != IN_PROGRESS:
        assert change(client, state).status_code == 200


def test_the_worklist_is_off_by_default(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        assert create(web.client).status_code == 404


def test_a_created_workitem_is_retrieved(client: httpx.Client) -> None:
    answer = create(client)
    assert answer.status_code == 201
    assert answer.headers["content-location"].endswith(f"/dicom-web/workitems/{UID}")
    assert "warning" not in answer.headers
    found = read(client, UID)
    assert (found.SOPInstanceUID, found.SOPClassUID) == (UID, "1.2.840.10008.5.1.4.34.6.1")
    assert (found.ProcedureStepState, found.PatientName, found.WorklistLabel) == (SCHEDULED, "Meier^Erika", "AI")
    assert found.ScheduledProcedureStepModificationDateTime.startswith("20261120080000")
    assert found.ReferencedRequestSequence[0].AccessionNumber == "815"


def test_absent_attributes_of_type_2_are_added_with_a_warning(client: httpx.Client) -> None:
    answer = create(client, AdmissionID=None, WorklistLabel=None)
    assert answer.status_code == 201
    assert answer.headers["warning"] == '299 dicomnode: "The Workitem was created with modifications."'
    found = read(client, UID)
    assert found.AdmissionID in ("", None)
    assert found.WorklistLabel


def test_the_uid_may_be_left_to_the_server(client: httpx.Client) -> None:
    answer = send(client, "POST", "/workitems", [make_workitem()])
    assert answer.status_code == 201
    uid = answer.headers["location"].rpartition("/")[2]
    assert read(client, uid).SOPInstanceUID == uid


@pytest.mark.parametrize(
    "changes",
    [
        {"ScheduledProcedureStepPriority": None},
        {"ProcedureStepLabel": None},
        {"ProcedureStepLabel": ""},
        {"ScheduledProcedureStepStartDateTime": None},
        {"InputReadinessState": None},
        {"ProcedureStepState": None},
        {"ProcedureStepState": IN_PROGRESS},
        {"ScheduledProcedureStepPriority": "URGENT"},
        {"InputReadinessState": "MAYBE"},
        {"TransactionUID": OTHER},
        {"SOPClassUID": "1.2.3"},
        {"ProcedureStepProgressInformationSequence": [{"ProcedureStepProgress": "1"}]},
        {"UnifiedProcedureStepPerformedProcedureSequence": [{"PerformedProcedureStepDescription": "x"}]},
    ],
)
def test_a_workitem_without_what_type_1_requires_is_refused(client: httpx.Client, changes: dict[str, Any]) -> None:
    assert create(client, **changes).status_code == 400
    assert client.get(f"/dicom-web/workitems/{UID}").status_code == 404


def test_half_a_character_is_refused(client: httpx.Client) -> None:
    body = json.dumps(make_workitem(ProcedureStepLabel="a half")).replace("a half", r"\ud800")
    answer = client.post(f"/dicom-web/workitems?workitem={UID}", content=body, headers=JSON)
    assert answer.status_code == 400
    assert client.get(f"/dicom-web/workitems/{UID}").status_code == 404


def test_a_uid_is_used_once(client: httpx.Client) -> None:
    create(client)
    assert create(client, PatientID="P-2").status_code == 409
    assert read(client, UID).PatientID == "P-1"


def test_a_full_worklist_refuses_further_ones(client: httpx.Client) -> None:
    for at in range(20):
        assert create(client, f"1.2.{at}").status_code == 201
    assert create(client).status_code == 503


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{", b"[1]", b'"x"', b"NaN", b"[" * 50_000, b'{"0040": {"vr": "SQ"}}',
        b'{"00100020": {"vr": "XX"}}', b'{"00100020": {"vr": "SQ"}}', b'{"00100020": {"vr": "LO", "Value": "x"}}',
        b'{"00100020": {"vr": "LO", "Value": [{}]}}', b'{"00100020": {"vr": "LO", "Value": [true]}}',
        b'{"00100020": {"vr": "LO", "BulkDataURI": "http://x"}}', b'{"00404021": {"vr": "SQ", "Value": [{"a": 1}]}}',
        b'{"00741004": {"vr": "DS", "Value": ["ten"]}}', b'{"00081195": {"vr": "UI", "Value": ["1.02"]}}',
        b'{"00100010": {"vr": "PN", "Value": [{"Other": "x"}]}}', b'{"00000002": {"vr": "UI"}}',
        b'{"00404021": {"vr": "SQ", "Value": [' * 12 + b"{}" + b"]}}" * 12, b"\xff",
        b'{"00404021": {"vr": "SQ", "Value": [' + b",".join([b"{}"] * 6000) + b"]}}",
    ],
)  # fmt: skip
def test_a_body_that_is_no_data_set_is_refused(client: httpx.Client, body: bytes) -> None:
    for method, path in (("POST", "/workitems"), ("POST", f"/workitems/{UID}"), ("PUT", f"/workitems/{UID}/state")):
        assert client.request(method, f"/dicom-web{path}", content=body, headers=JSON).status_code == 400


def test_long_bodies_and_other_media_types_are_refused(client: httpx.Client) -> None:
    assert client.post("/dicom-web/workitems", content=b" " * 300_000, headers=JSON).status_code == 413
    other = {"Content-Type": "application/dicom+xml"}
    assert client.post("/dicom-web/workitems", content=b"<x/>", headers=other).status_code == 415
    create(client)
    accept = {"Accept": "application/dicom+xml"}
    assert client.get(f"/dicom-web/workitems/{UID}", headers=accept).status_code == 406
    assert client.get("/dicom-web/workitems", headers=accept).status_code == 406
    assert client.delete(f"/dicom-web/workitems/{UID}").status_code == 405


# PS3.4 table CC.1.1-2: the answer to each request, by the state in which it finds the workitem
WITH_UID = {
    IN_PROGRESS: {SCHEDULED: 200, IN_PROGRESS: 409, COMPLETED: 409, CANCELED: 409},
    SCHEDULED: dict.fromkeys(STATES, 409),
    COMPLETED: {SCHEDULED: 409, IN_PROGRESS: 409, COMPLETED: 200, CANCELED: 409},
    CANCELED: {SCHEDULED: 409, IN_PROGRESS: 200, COMPLETED: 409, CANCELED: 200},
}


@pytest.mark.parametrize("new", STATES)
@pytest.mark.parametrize("state", STATES)
def test_every_change_of_state(client: httpx.Client, state: str, new: str) -> None:
    bring_to(client, state)
    answer = change(client, new)
    assert answer.status_code == WITH_UID[new][state], answer.text
    assert read(client, UID).ProcedureStepState == (new if answer.status_code == 200 else state)
    already = state == new and state in (COMPLETED, CANCELED)
    sentence = f'299 dicomnode: "The UPS is already in the requested state of {new}."'
    assert (answer.headers.get("warning") == sentence) is already


@pytest.mark.parametrize("new", [IN_PROGRESS, COMPLETED, CANCELED])
@pytest.mark.parametrize("state", STATES)
def test_a_change_without_the_transaction_uid_is_refused(client: httpx.Client, state: str, new: str) -> None:
    bring_to(client, state)
    answer = change(client, new, None)
    assert answer.status_code == 400
    assert answer.headers["warning"] == '299 dicomnode: "The Transaction UID is missing."'
    assert read(client, UID).ProcedureStepState == state


@pytest.mark.parametrize("new", [COMPLETED, CANCELED])
@pytest.mark.parametrize("state", [IN_PROGRESS, COMPLETED, CANCELED])
def test_a_change_with_another_transaction_uid_is_refused(client: httpx.Client, state: str, new: str) -> None:
    bring_to(client, state)
    answer = change(client, new, OTHER)
    assert answer.status_code == 400
    assert answer.headers["warning"] == '299 dicomnode: "The Transaction UID is incorrect."'
    assert read(client, UID).ProcedureStepState == state


def test_an_unknown_state_is_refused(client: httpx.Client) -> None:
    bring_to(client, IN_PROGRESS)
    assert change(client, "DONE").status_code == 400
    assert send(client, "PUT", f"/workitems/{UID}/state", to_json({"TransactionUID": MINE})).status_code == 400


def test_requests_on_an_unknown_workitem_are_not_found(client: httpx.Client) -> None:
    assert client.get(f"/dicom-web/workitems/{UID}").status_code == 404
    assert client.get("/dicom-web/workitems/none").status_code == 404
    assert change(client, IN_PROGRESS).status_code == 404
    assert send(client, "POST", f"/workitems/{UID}", to_json({"ProcedureStepLabel": "x"})).status_code == 404
    assert send(client, "POST", f"/workitems/{UID}/cancelrequest").status_code == 404


def test_the_transaction_uid_stays_with_who_claimed(client: httpx.Client) -> None:
    bring_to(client, IN_PROGRESS)
    assert "TransactionUID" not in read(client, UID)
    (match,) = client.get("/dicom-web/workitems?includefield=all").json()
    assert "00081195" not in match


def test_completion_requires_what_was_performed(client: httpx.Client) -> None:
    bring_to(client, IN_PROGRESS)
    answer = change(client, COMPLETED)
    assert (answer.status_code, read(client, UID).ProcedureStepState) == (409, IN_PROGRESS)
    complete = performed()
    for tag in ("00404028", "00404050", "00404019", "00404051", "00404033"):
        part = performed()
        del part["00741216"]["Value"][0][tag]
        assert send(client, "POST", f"/workitems/{UID}?transaction-uid={MINE}", part).status_code == 200
        assert change(client, COMPLETED).status_code == 409
    assert send(client, "POST", f"/workitems/{UID}?transaction-uid={MINE}", complete).status_code == 200
    assert change(client, COMPLETED).status_code == 200


def test_cancellation_states_when_and_why(client: httpx.Client) -> None:
    bring_to(client, CANCELED)
    (progress,) = read(client, UID).ProcedureStepProgressInformationSequence
    assert progress.ProcedureStepCancellationDateTime
    assert progress.ProcedureStepDiscontinuationReasonCodeSequence[0].CodeValue == "110513"


def test_an_update_replaces_what_it_states(client: httpx.Client) -> None:
    create(client)
    assert send(client, "POST", f"/workitems/{UID}", to_json({"ProcedureStepLabel": "Other"})).status_code == 200
    found = read(client, UID)
    assert (found.ProcedureStepLabel, found.PatientID) == ("Other", "P-1")


@pytest.mark.parametrize(
    ("state", "transaction_uid", "status"),
    [
        (SCHEDULED, "", 200), (SCHEDULED, MINE, 409), (IN_PROGRESS, MINE, 200), (IN_PROGRESS, "", 400),
        (IN_PROGRESS, OTHER, 400), (COMPLETED, MINE, 409), (CANCELED, MINE, 409), (COMPLETED, "", 409),
    ],
)  # fmt: skip
def test_only_the_owner_updates(client: httpx.Client, state: str, transaction_uid: str, status: int) -> None:
    bring_to(client, state)
    label = to_json({"ProcedureStepLabel": "Other"})
    ends = [f"?transaction-uid={transaction_uid}", f"?{transaction_uid}"] if transaction_uid else [""]
    for end in ends:
        assert send(client, "POST", f"/workitems/{UID}{end}", label).status_code == status
    assert read(client, UID).ProcedureStepLabel == ("Other" if status == 200 else "MS lesions")


def test_the_transaction_uid_of_an_update_may_stand_in_its_data_set(client: httpx.Client) -> None:
    bring_to(client, IN_PROGRESS)
    label = to_json({"ProcedureStepLabel": "Other", "TransactionUID": MINE})
    assert send(client, "POST", f"/workitems/{UID}", label).status_code == 200
    assert send(client, "POST", f"/workitems/{UID}?transaction-uid={OTHER}", label).status_code == 400
    assert "TransactionUID" not in read(client, UID)


@pytest.mark.parametrize(
    "values",
    [
        {"ProcedureStepState": COMPLETED}, {"PatientID": "P-2"}, {"SOPInstanceUID": UID},
        {"ReferencedRequestSequence": []}, {"ProcedureStepLabel": ""}, {"InputReadinessState": "MAYBE"},
        {"ProcedureStepProgressInformationSequence": [{}, {}]},
    ],
)  # fmt: skip
def test_updates_of_what_is_fixed_are_refused(client: httpx.Client, values: dict[str, Any]) -> None:
    create(client)
    assert send(client, "POST", f"/workitems/{UID}", to_json(values)).status_code == 400


def test_a_workitem_grows_to_its_greatest_size_only(client: httpx.Client) -> None:
    create(client)
    for at in range(3):
        item = {f"{2 * at + 9:04X}10{n:02X}": {"vr": "UT", "Value": ["x" * 60_000]} for n in range(4)}
        status = send(client, "POST", f"/workitems/{UID}", item).status_code
        assert status == (200 if at < 2 else 503)


@pytest.mark.parametrize(("state", "status"), [(IN_PROGRESS, 202), (COMPLETED, 409), (CANCELED, 202)])
def test_a_request_to_cancel(client: httpx.Client, state: str, status: int) -> None:
    bring_to(client, state)
    answer = send(client, "POST", f"/workitems/{UID}/cancelrequest", to_json({"ReasonForCancellation": "no"}))
    assert answer.status_code == status
    assert read(client, UID).ProcedureStepState == state, "the performer decides"
    warned = answer.headers.get("warning") == '299 dicomnode: "The UPS is already in the requested state of CANCELED."'
    assert warned is (state == CANCELED)


def test_a_request_cancels_what_nobody_has_claimed(client: httpx.Client) -> None:
    create(client)
    reason = to_json({"ReasonForCancellation": "wrong patient"})
    assert send(client, "POST", f"/workitems/{UID}/cancelrequest/SCHEDULER", reason).status_code == 202
    found = read(client, UID)
    (progress,) = found.ProcedureStepProgressInformationSequence
    assert (found.ProcedureStepState, progress.ReasonForCancellation) == (CANCELED, "wrong patient")
    assert progress.ProcedureStepCancellationDateTime
    assert change(client, IN_PROGRESS).status_code == 409


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", "abc"), ("PatientID=P-a", "a"), ("00100020=P-a", "a"), ("PatientID=P-*", "abc"), ("PatientID=P-?", "abc"),
        ("PatientID=*-b", "b"), ("PatientID=P*-*c", "c"), ("PatientID=x*", ""), ("PatientName=meier^*", "abc"),
        ("PatientName=eri&fuzzymatching=true", "abc"), ("PatientName=eri", ""),
        ("ProcedureStepState=SCHEDULED", "ac"), ("ProcedureStepState=IN PROGRESS", "b"),
        ("ProcedureStepState=COMPLETED", ""), ("WorklistLabel=AI", "abc"), ("ProcedureStepLabel=MS*", "abc"),
        ("ScheduledProcedureStepStartDateTime=20261120", "a"),
        ("ScheduledProcedureStepStartDateTime=20261121-20261122", "bc"),
        ("ScheduledProcedureStepStartDateTime=-202611210900", "ab"),
        ("ScheduledProcedureStepStartDateTime=20261121-", "bc"),
        ("ReferencedRequestSequence.AccessionNumber=815", "abc"), ("0040A370.00080050=815", "abc"),
        ("ReferencedRequestSequence.AccessionNumber=816", ""), ("InputInformationSequence.StudyInstanceUID=1.2.1", "a"),
        ("InputInformationSequence.StudyInstanceUID=1.2.1,1.2.2", "ab"), ("limit=2", "ab"), ("limit=1&offset=1", "b"),
        ("offset=3", ""), ("PatientBirthDate=19610203", "abc"),
    ],
)  # fmt: skip
def test_searches(client: httpx.Client, query: str, found: str) -> None:
    for at, name in enumerate("abc"):
        start = f"202611{20 + at}0830"
        items = [{"StudyInstanceUID": f"1.2.{at + 1}"}]
        changes = {"ScheduledProcedureStepStartDateTime": start, "InputInformationSequence": items}
        create(client, f"1.2.{at}", PatientID=f"P-{name}", **changes)
    change(client, IN_PROGRESS, uid="1.2.1")
    answer = client.get(f"/dicom-web/workitems?{query}")
    assert answer.status_code == (200 if found else 204)
    assert [each["00100020"]["Value"][0][-1] for each in (answer.json() if found else [])] == list(found)


def test_a_match_states_the_required_attributes_and_those_asked_for(client: httpx.Client) -> None:
    private = {"00091001": {"vr": "LO", "Value": ["x"]}}
    send(client, "POST", f"/workitems?workitem={UID}", make_workitem(MedicalRecordLocator="a") | private)
    (match,) = client.get("/dicom-web/workitems").json()
    assert {"00080018", "00741000", "00404005", "00404021", "00100010"} <= set(match)
    assert not {"00091001", "00101090"} & set(match)
    (match,) = client.get("/dicom-web/workitems?includefield=MedicalRecordLocator").json()
    assert match["00101090"]["Value"] == ["a"]
    (match,) = client.get("/dicom-web/workitems?includefield=all").json()
    assert match["00091001"]["Value"] == ["x"]


def test_searches_that_cannot_be_done_are_refused(client: httpx.Client) -> None:
    create(client)
    answer = client.get("/dicom-web/workitems?NoSuchThing=1")
    assert (answer.status_code, "NoSuchThing" in answer.headers["warning"]) == (200, True)
    for query in ("limit=x", f"PatientID={'x' * 300}", "PatientID=a&PatientID=b", "PatientID=%FF"):
        assert client.get(f"/dicom-web/workitems?{query}").status_code == 400


def test_head_and_options(client: httpx.Client) -> None:
    create(client)
    answer = client.head(f"/dicom-web/workitems/{UID}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert "POST" in client.options("/dicom-web/workitems").headers["allow"]
