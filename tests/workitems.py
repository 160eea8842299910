"""Requests on the worklist, written from PS3.18 chapter 11 and PS3.4 annex CC, without the node's own code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset

__all__ = ["JSON", "make_workitem", "performed", "read", "send", "to_json"]

JSON = {"Content-Type": "application/dicom+json", "Accept": "application/dicom+json"}


def to_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a data set in DICOM JSON by pydicom, from values by keyword; items of sequences are mappings."""
    found: dict[str, Any] = _to_dataset(values).to_json_dict()
    return found


def _to_dataset(values: Mapping[str, Any]) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        tag = tag_for_keyword(keyword)
        assert tag is not None
        is_sequence = dictionary_VR(tag) == "SQ"
        setattr(ds, keyword, [_to_dataset(item) for item in value] if is_sequence else value)
    return ds


def make_workitem(**changes: Any) -> dict[str, Any]:
    """Return the request of a new workitem with all attributes of type 1 and 2, and ``changes``; None leaves out."""
    values: dict[str, Any] = {
        "ScheduledProcedureStepPriority": "MEDIUM",
        "ProcedureStepLabel": "MS lesions",
        "WorklistLabel": "AI",
        "ScheduledProcessingParametersSequence": [],
        "ScheduledStationNameCodeSequence": [],
        "ScheduledStationClassCodeSequence": [],
        "ScheduledStationGeographicLocationCodeSequence": [],
        "ScheduledProcedureStepStartDateTime": "20261120080000",
        "ScheduledWorkitemCodeSequence": [],
        "CommentsOnTheScheduledProcedureStep": "",
        "InputReadinessState": "READY",
        "InputInformationSequence": [],
        "PatientName": "Meier^Erika",
        "PatientID": "P-1",
        "PatientBirthDate": "19610203",
        "PatientSex": "F",
        "AdmissionID": "",
        "IssuerOfAdmissionIDSequence": [],
        "AdmittingDiagnosesDescription": "",
        "AdmittingDiagnosesCodeSequence": [],
        "ReferencedRequestSequence": [{"StudyInstanceUID": "1.2.3", "AccessionNumber": "815"}],
        "ProcedureStepState": "SCHEDULED",
        "ProcedureStepProgressInformationSequence": [],
        "UnifiedProcedureStepPerformedProcedureSequence": [],
    }
    values |= changes
    return to_json({keyword: value for keyword, value in values.items() if value is not None})


def performed() -> dict[str, Any]:
    """Return an update with all that COMPLETED requires."""
    step = {
        "PerformedStationNameCodeSequence": [_code("OTHER", "99TEST", "Other station")],
        "PerformedProcedureStepStartDateTime": "20261120081000",
        "PerformedWorkitemCodeSequence": [_code("121", "99TEST", "Work")],
        "PerformedProcedureStepEndDateTime": "20261120081200",
        "OutputInformationSequence": [],
    }
    return to_json({"UnifiedProcedureStepPerformedProcedureSequence": [step]})


def _code(value: str, scheme: str, meaning: str) -> dict[str, str]:
    return {"CodeValue": value, "CodingSchemeDesignator": scheme, "CodeMeaning": meaning}


def send(client: httpx.Client, method: str, path: str, body: Any = None) -> httpx.Response:
    """Send a request below the DICOMweb root."""
    return client.request(method, f"/dicom-web{path}", json=body, headers=JSON)


def read(client: httpx.Client, uid: str) -> Dataset:
    """Retrieve a workitem, and read it with pydicom."""
    answer = client.get(f"/dicom-web/workitems/{uid}", headers={"Accept": "application/dicom+json"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/dicom+json"
    found: Sequence[dict[str, Any]] = answer.json()
    assert len(found) == 1
    return Dataset.from_json(found[0])
