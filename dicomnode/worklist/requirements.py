"""Requirements on the attributes of a workitem: PS3.4 table CC.2.5-3.

A new workitem must state what the table requires with a value (type 1); what it may leave empty (type 2) is added
where it is absent. The final state is reached only with what its column requires.
"""

from __future__ import annotations

from datetime import datetime

from db.states import WorkitemState
from dicomnode import uids
from dicomnode.datasets.json_elements import Elements
from dicomnode.errors import WorkitemRefused
from dicomnode.worklist import elements as dicom
from dicomnode.worklist.payload import INVALID, MISSING, MISSING_VALUE

__all__ = ["check_update", "complete_cancellation", "prepare_new", "unmet_for_completion"]

NOT_SCHEDULED = 0xC309

_DEFAULT_LABEL = "dicomnode"
_REQUIRED = (
    "ScheduledProcedureStepPriority", "ProcedureStepLabel", "ScheduledProcedureStepStartDateTime",
    "InputReadinessState", "ProcedureStepState",
)  # fmt: skip
_MAY_BE_EMPTY = (
    "ScheduledProcessingParametersSequence", "ScheduledStationNameCodeSequence", "ScheduledStationClassCodeSequence",
    "ScheduledStationGeographicLocationCodeSequence", "ScheduledWorkitemCodeSequence",
    "CommentsOnTheScheduledProcedureStep", "InputInformationSequence", "PatientName", "PatientID", "PatientBirthDate",
    "PatientSex", "AdmissionID", "IssuerOfAdmissionIDSequence", "AdmittingDiagnosesDescription",
    "AdmittingDiagnosesCodeSequence", "ReferencedRequestSequence", "ProcedureStepProgressInformationSequence",
    "UnifiedProcedureStepPerformedProcedureSequence",
)  # fmt: skip
_EMPTY_AT_FIRST = (
    "TransactionUID", "ProcedureStepProgressInformationSequence", "UnifiedProcedureStepPerformedProcedureSequence",
)  # fmt: skip
_VALUES = {
    "ScheduledProcedureStepPriority": ("HIGH", "MEDIUM", "LOW"),
    "InputReadinessState": ("READY", "UNAVAILABLE", "INCOMPLETE"),
}
_FIXED = (
    "SOPClassUID", "SOPInstanceUID", "ProcedureStepState", "ScheduledProcedureStepModificationDateTime", "PatientName",
    "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "AdmissionID", "IssuerOfAdmissionIDSequence",
    "AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence", "ReferencedRequestSequence",
    "ReplacedProcedureStepSequence",
)  # fmt: skip
_PERFORMED_WITH_VALUE = (
    "PerformedStationNameCodeSequence", "PerformedProcedureStepStartDateTime", "PerformedWorkitemCodeSequence",
    "PerformedProcedureStepEndDateTime",
)  # fmt: skip


def prepare_new(request: Elements, uid: str, now: datetime) -> tuple[Elements, bool]:
    """Return the data set of a new workitem, and whether anything but the node's own facts was added.

    Raises WorkitemRefused.
    """
    _check_identity(request, uid)
    for keyword in _REQUIRED:
        _require(request, keyword)
    if dicom.text(request, "ProcedureStepState") != WorkitemState.SCHEDULED:
        raise WorkitemRefused(NOT_SCHEDULED, "ProcedureStepState of a new workitem is SCHEDULED")
    if filled := [keyword for keyword in _EMPTY_AT_FIRST if dicom.has_value(request, keyword)]:
        raise WorkitemRefused(INVALID, f"{filled[0]} of a new workitem is empty")
    _check_values(request)
    attributes = dict(request)
    attributes.pop(dicom.tag("TransactionUID"), None)
    absent = [keyword for keyword in _MAY_BE_EMPTY if dicom.tag(keyword) not in attributes]
    dicom.put(attributes, **dict.fromkeys(absent))
    if has_no_label := not dicom.has_value(attributes, "WorklistLabel"):
        dicom.put(attributes, WorklistLabel=_DEFAULT_LABEL)
    dicom.put(attributes, SOPClassUID=str(uids.UNIFIED_PROCEDURE_STEP), SOPInstanceUID=uid)
    dicom.put(attributes, ScheduledProcedureStepModificationDateTime=dicom.format_moment(now))
    return dict(sorted(attributes.items())), bool(absent) or has_no_label


def check_update(request: Elements) -> None:
    """Raise WorkitemRefused where an update sets what only the node or the first request sets, or no valid value."""
    for keyword in _FIXED:
        if dicom.tag(keyword) in request:
            raise WorkitemRefused(INVALID, f"{keyword} cannot be updated")
    for keyword in _REQUIRED:
        if dicom.tag(keyword) in request:
            _require(request, keyword)
    _check_values(request)


def unmet_for_completion(attributes: Elements) -> list[str]:
    """Return the keywords without which a workitem cannot become COMPLETED (Final State codes R and P)."""
    performed = dicom.items(attributes, "UnifiedProcedureStepPerformedProcedureSequence")
    if not performed:
        return ["UnifiedProcedureStepPerformedProcedureSequence"]
    unmet = [keyword for keyword in _PERFORMED_WITH_VALUE if not dicom.has_value(performed[0], keyword)]
    # a step without output has an empty sequence (type 2)
    if dicom.tag("OutputInformationSequence") not in performed[0]:
        unmet.append("OutputInformationSequence")
    return unmet


def complete_cancellation(attributes: Elements, now: datetime) -> None:
    """Add what CANCELED requires (Final State code X) where the performer did not state it (PS3.4 CC.2.1.3)."""
    keyword = "ProcedureStepProgressInformationSequence"
    progress = dict(next(iter(dicom.items(attributes, keyword)), {}))
    if not dicom.has_value(progress, "ProcedureStepCancellationDateTime"):
        dicom.put(progress, ProcedureStepCancellationDateTime=dicom.format_moment(now))
    if not dicom.has_value(progress, "ProcedureStepDiscontinuationReasonCodeSequence"):
        unspecified = dicom.code("110513", "DCM", "Discontinued for unspecified reason")
        dicom.put(progress, ProcedureStepDiscontinuationReasonCodeSequence=[unspecified])
    attributes[dicom.tag(keyword)] = {"vr": "SQ", "Value": [dict(sorted(progress.items()))]}


def _check_identity(request: Elements, uid: str) -> None:
    for keyword, right in (("SOPClassUID", str(uids.UNIFIED_PROCEDURE_STEP)), ("SOPInstanceUID", uid)):
        if dicom.text(request, keyword) not in ("", right):
            raise WorkitemRefused(INVALID, f"{keyword} is not that of the request")


def _require(request: Elements, keyword: str) -> None:
    if dicom.tag(keyword) not in request:
        raise WorkitemRefused(MISSING, f"{keyword} is missing")
    if not dicom.has_value(request, keyword):
        raise WorkitemRefused(MISSING_VALUE, f"{keyword} has no value")


def _check_values(request: Elements) -> None:
    for keyword, allowed in _VALUES.items():
        if dicom.tag(keyword) in request and dicom.text(request, keyword) not in allowed:
            raise WorkitemRefused(INVALID, f"{keyword} is one of {', '.join(allowed)}")
    for keyword in ("ProcedureStepProgressInformationSequence", "UnifiedProcedureStepPerformedProcedureSequence"):
        if len(dicom.values(request, keyword)) > 1:
            raise WorkitemRefused(INVALID, f"{keyword} has one item at most")
