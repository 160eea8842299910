"""Statements of this node on workitems that it performs: progress, results and reasons (PS3.3 C.30.3, C.30.4)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from db.models import Job, Output, Workitem
from db.states import JobState, WorkitemState
from dicomnode.config import Config
from dicomnode.datasets.json_elements import Elements
from dicomnode.worklist import elements as dicom
from dicomnode.worklist import orders, transactions

__all__ = ["cancel", "describe_start", "has_news", "report"]

_PROGRESS = "ProcedureStepProgressInformationSequence"
_PERFORMED = "UnifiedProcedureStepPerformedProcedureSequence"
_ACTIVE = (JobState.READY, JobState.RUNNING)
_LONGEST_TEXT = 1024  # PS3.5 6.2, ST
_UNSPECIFIED = dicom.code("110513", "DCM", "Discontinued for unspecified reason")
_FAILURE = dicom.code("110501", "DCM", "Equipment failure")


def describe_start(row: Workitem, config: Config, now: datetime) -> Elements:
    """Return who performs a workitem, what, and since when."""
    title, name = config.node.ae_title, orders.find_own_code(row.attributes)
    step = {
        "PerformedStationNameCodeSequence": [dicom.code(title, orders.SCHEME, title)],
        "PerformedProcedureStepStartDateTime": dicom.format_moment(now),
        "PerformedWorkitemCodeSequence": [dicom.code(name, orders.SCHEME, name)],
        "OutputInformationSequence": None,
    }
    attributes: Elements = {}
    dicom.put(attributes, **{_PERFORMED: [step]}, **{_PROGRESS: [_progress(0, "claimed")]})
    return attributes


def has_news(row: Workitem, made: Sequence[Job], config: Config) -> bool:
    """Return whether the workitem does not state yet what became of its jobs."""
    if row.cancel_reason or not any(job.state in (*_ACTIVE, JobState.HELD) for job in made):
        return True
    old, new = dicom.items(row.attributes, _PROGRESS), _describe_progress(made, config)
    keys = ("ProcedureStepProgress", "ProcedureStepCommunicationsURISequence")
    return not old or any(old[0].get(dicom.tag(key)) != new.get(dicom.tag(key)) for key in keys)


def report(session: Session, row: Workitem, made: Sequence[Job], config: Config, now: datetime) -> None:
    """Write the progress of the jobs into a locked workitem, or end it with them."""
    if any(job.state in (*_ACTIVE, JobState.HELD) for job in made):
        progress = {"vr": "SQ", "Value": [_describe_progress(made, config)]}
        transactions.write(session, row, {dicom.tag(_PROGRESS): progress}, now=now)
        return
    failed = [job for job in made if job.state is not JobState.DONE]
    if failed or not made:
        reason = "; ".join(f"job {job.id} is {job.state_name}: {job.reason}" for job in failed) or "it has no job"
        cancel(session, row, made, config, reason, now)
        return
    attributes = _describe_end(row, made, config, now)
    dicom.put(attributes, **{_PROGRESS: [_progress(100, "finished")]})
    transactions.write(session, row, attributes, now=now)
    transactions.move(session, row, WorkitemState.COMPLETED, reason="its jobs are done", now=now)


def cancel(session: Session, row: Workitem, made: Sequence[Job], config: Config, reason: str, now: datetime) -> None:
    """Cancel a locked workitem that this node has claimed, with the reason and what was made until then."""
    attributes = _describe_end(row, made, config, now)
    has_failed = any(job.state is JobState.DEAD for job in made)
    dicom.put(
        attributes,
        **{
            _PROGRESS: [
                {
                    "ProcedureStepCancellationDateTime": dicom.format_moment(now),
                    "ReasonForCancellation": reason[:_LONGEST_TEXT],
                    "ProcedureStepDiscontinuationReasonCodeSequence": [_FAILURE if has_failed else _UNSPECIFIED],
                }
            ]
        },
    )
    transactions.write(session, row, attributes, now=now)
    transactions.move(session, row, WorkitemState.CANCELED, reason="not performed", now=now)


def _progress(percent: int, words: str) -> dict[str, Any]:
    return {"ProcedureStepProgress": percent, "ProcedureStepProgressDescription": words[:_LONGEST_TEXT]}


def _describe_progress(made: Sequence[Job], config: Config) -> Elements:
    """Return the progress of the jobs; of held results whom to ask."""
    fraction = sum(job.progress if job.state in _ACTIVE else 1.0 for job in made) / len(made)
    held = [job for job in made if job.state is JobState.HELD]
    words = [f"job {job.id}: {job.step or job.state_name}" for job in made if job.state in _ACTIVE]
    words += [f"job {job.id} is held for a person's decision: {job.reason}" for job in held]
    item = _progress(min(99, int(100 * fraction)), "; ".join(words))
    if held:
        page = f"{str(config.web.public_url or '').rstrip('/')}/hold"
        contact = {"ContactURI": page, "ContactDisplayName": f"{config.node.ae_title}, held results"}
        item["ProcedureStepCommunicationsURISequence"] = [contact]
    attributes: Elements = {}
    dicom.put(attributes, **{_PROGRESS: [item]})
    return dicom.items(attributes, _PROGRESS)[0]


def _describe_end(row: Workitem, made: Sequence[Job], config: Config, now: datetime) -> Elements:
    """Return the performed procedure with its end and results."""
    attributes: Elements = {}
    outputs: Elements = {}
    results = [output for job in made if job.state is JobState.DONE for output in job.outputs if not output.rendition]
    dicom.put(outputs, OutputInformationSequence=_list_series(results, config))
    comments = [f"job {job.id}: {job.pipeline}, model {_model_of(job)}" for job in made]
    dicom.put(
        outputs,
        PerformedProcedureStepEndDateTime=dicom.format_moment(now),
        CommentsOnThePerformedProcedureStep="; ".join(comments)[:_LONGEST_TEXT],
    )
    step = next(iter(dicom.items(row.attributes, _PERFORMED)), {}) | outputs
    attributes[dicom.tag(_PERFORMED)] = {"vr": "SQ", "Value": [dict(sorted(step.items()))]}
    return attributes


def _model_of(job: Job) -> str:
    digest = f", SHA-256 {job.model_digest}" if job.model_digest else ""
    return f"{job.report.get('model') or job.model or 'of the pipeline'}{digest}"


def _list_series(outputs: Sequence[Output], config: Config) -> list[dict[str, Any]]:
    """Return the items of an Output Information Sequence, one for each series (PS3.3 table 10-3b)."""
    by_series: dict[str, list[Output]] = {}
    for output in outputs:
        by_series.setdefault(output.series_uid, []).append(output)
    return [_describe_series(uid, each, config) for uid, each in by_series.items()]


def _describe_series(series_uid: str, outputs: Sequence[Output], config: Config) -> dict[str, Any]:
    study_uid = outputs[0].job.study.study_uid
    item: dict[str, Any] = {
        "TypeOfInstances": "DICOM",
        "StudyInstanceUID": study_uid,
        "SeriesInstanceUID": series_uid,
        "ReferencedSOPSequence": [
            {"ReferencedSOPClassUID": each.sop_class_uid, "ReferencedSOPInstanceUID": each.sop_instance_uid}
            for each in outputs
        ],
    }
    item["DICOMRetrievalSequence"] = [{"RetrieveAETitle": config.node.ae_title}]
    if url := str(config.web.public_url or "").rstrip("/"):
        address = f"{url}/dicom-web/studies/{study_uid}/series/{series_uid}"
        item["WADORSRetrievalSequence"] = [{"RetrieveURL": address}]
    return item
