"""Orders of workitems to a running node, and the steps of its performer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydicom.dataset import Dataset

from db import audit, studies
from db.models import Study
from db.states import StudyState
from dicomnode import uids
from dicomnode.worklist.performing import Performer
from tests.web_node import Web
from tests.web_studies import make_series, receive, study_uid
from tests.workitems import make_workitem, read, send

__all__ = [
    "UID",
    "code",
    "create",
    "make_study",
    "name_series",
    "option",
    "order",
    "progress",
    "run_to_canceled",
    "series_uid",
    "step",
]

UID = "1.2.826.0.1.99.1"


def code(value: str) -> dict[str, str]:
    name = "CodeValue" if len(value) <= 16 else "LongCodeValue"
    return {name: value, "CodingSchemeDesignator": "99DICOMNODE", "CodeMeaning": value}


def option(name: str, **value: Any) -> dict[str, Any]:
    return {"ValueType": "TEXT", "ConceptNameCodeSequence": [code(name)]} | value


def order(name: str = "ms_lesions", study: str = "a", series: str = "", **changes: Any) -> dict[str, Any]:
    item = {"TypeOfInstances": "DICOM", "StudyInstanceUID": study_uid(study)}
    item |= {"SeriesInstanceUID": series} if series else {}
    values = {"PatientID": f"P-{study}-00471", "ScheduledWorkitemCodeSequence": [code(name)]}
    return make_workitem(**values | {"InputInformationSequence": [item]} | changes)


def name_series(*numbers: int, study: str = "a") -> list[dict[str, Any]]:
    """Return an Input Information Sequence with series of a study by their numbers."""
    return [{"StudyInstanceUID": study_uid(study), "SeriesInstanceUID": series_uid(each, study)} for each in numbers]


def series_uid(number: int, study: str = "a") -> str:
    return str(uids.derive("dashboard", study, str(number)))


def create(web: Web, workitem: Mapping[str, Any], uid: str = UID) -> None:
    assert send(web.client, "POST", f"/workitems?workitem={uid}", workitem).status_code == 201


def make_study(web: Web, name: str = "a", *further: str) -> list[Dataset]:
    """Receive a study that no route takes, of a FLAIR and series with ``further`` descriptions, numbered from 2."""
    images = make_series(name)
    series = [make_series(name, number=at, description=each) for at, each in enumerate(further, 2)]
    study_id = receive(web, images)
    for each in series:
        receive(web, each)
    with web.sessions.begin() as session:
        study = session.get_one(Study, study_id)
        studies.close(session, study, reason="quiet", now=web.now)
        audit.transition(session, study, StudyState.ROUTED, reason="nothing", now=web.now)
    return images


def step(web: Web, performer: Performer) -> int:
    return performer.step(now=lambda: web.now)


def progress(web: Web) -> Dataset:
    (item,) = read(web.client, UID).ProcedureStepProgressInformationSequence
    assert isinstance(item, Dataset)
    return item


def run_to_canceled(web: Web, performer: Performer) -> str:
    """Let the performer refuse the workitem; return its reason."""
    step(web, performer)
    assert read(web.client, UID).ProcedureStepState == "CANCELED"
    item = progress(web)
    assert item.ProcedureStepDiscontinuationReasonCodeSequence[0].CodingSchemeDesignator == "DCM"
    assert item.ProcedureStepCancellationDateTime
    return str(item.ReasonForCancellation)
