"""The transactions of the worklist: create, update, change of state, request of cancellation (PS3.4 CC.2).

Every function locks the workitem, so that of two that claim it one is refused. Statuses are those of PS3.4.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from db import audit, workitems
from db.models import Workitem
from db.states import WorkitemState
from dicomnode.datasets.json_elements import Elements
from dicomnode.errors import WorkitemRefused
from dicomnode.worklist import elements as dicom
from dicomnode.worklist import events, requirements
from dicomnode.worklist.payload import INVALID, MOST_BYTES

__all__ = [
    "Created",
    "cancel_unclaimed",
    "change_state",
    "claim",
    "create",
    "move",
    "not_found",
    "request_cancellation",
    "retrieve",
    "update",
    "write",
]

DUPLICATE, NO_RESOURCES = 0x0111, 0x0213  # PS3.7 C.5
MAY_NOT_BE_UPDATED, WRONG_TRANSACTION, ALREADY_IN_PROGRESS, ONLY_AT_CREATION, FINAL_STATE_UNMET = range(0xC300, 0xC305)
UNKNOWN_WORKITEM, NOT_IN_PROGRESS, ALREADY_COMPLETED = 0xC307, 0xC310, 0xC311
ALREADY_CANCELED = "The UPS is already in the requested state of CANCELED."
_ALREADY_COMPLETED = "The UPS is already in the requested state of COMPLETED."

_MOST_CHARACTERS = 2 * MOST_BYTES
"""Length of a workitem's data set as JSON: updates add to what the first request stated."""
_ENDED = (WorkitemState.COMPLETED, WorkitemState.CANCELED)


@dataclass(frozen=True)
class Created:
    """A new workitem; ``is_modified``: true where attributes were added to those of the request."""

    uid: str
    is_modified: bool


def create(session: Session, uid: str, attributes: Elements, *, most: int, who: str, now: datetime) -> Created:
    """Add a workitem to the worklist, which holds at most ``most``. Raises WorkitemRefused."""
    events.check_size(attributes)
    stored, is_modified = requirements.prepare_new(attributes, uid, now)
    if workitems.count(session) >= most:
        raise WorkitemRefused(NO_RESOURCES, f"the worklist holds {most} workitems already")
    row = Workitem(
        uid=uid, attributes=stored, patient_id=dicom.text(stored, "PatientID"), created_at=now, updated_at=now
    )  # fmt: skip
    try:
        workitems.add(session, row, who=who, now=now)
    except workitems.AlreadyExists:
        raise WorkitemRefused(DUPLICATE, f"a workitem has the UID {uid} already") from None
    workitems.set_studies(session, row, dicom.list_input_studies(stored))
    events.follow(session, row, now)
    events.report_state(session, row, now)
    if dicom.has_value(stored, "ScheduledStationNameCodeSequence"):
        events.report_assignment(session, row, now)
    return Created(uid, is_modified)


def retrieve(session: Session, uid: str) -> Elements:
    """Return the data set of a workitem, without its Transaction UID. Raises WorkitemRefused."""
    if (row := workitems.find(session, uid)) is None:
        raise not_found(uid)
    return row.attributes


def update(session: Session, uid: str, attributes: Elements, transaction_uid: str, now: datetime) -> None:
    """Replace the attributes of a workitem that the request states. Raises WorkitemRefused."""
    events.check_size(attributes)
    attributes = dict(attributes)
    own_uid = _take_transaction(attributes)
    if own_uid and transaction_uid and own_uid != transaction_uid:
        raise WorkitemRefused(INVALID, "the request states two Transaction UIDs")
    row = _lock(session, uid)
    _check_access(row, transaction_uid or own_uid)
    requirements.check_update(attributes)
    if len(json.dumps(row.attributes | attributes)) > _MOST_CHARACTERS:
        raise WorkitemRefused(NO_RESOURCES, "the workitem is at its greatest size: it takes no further attributes")
    write(session, row, attributes, now=now)
    audit.append(
        session, subject=row.__tablename__, subject_id=row.id, event="updated", detail={"elements": sorted(attributes)},
        now=now,
    )  # fmt: skip


def write(session: Session, row: Workitem, attributes: Elements, *, now: datetime) -> None:
    """Set attributes of a locked workitem, and report progress and assignment where they change."""
    changed = {tag for tag, element in attributes.items() if row.attributes.get(tag) != element}
    stored = row.attributes | attributes
    dicom.put(stored, ScheduledProcedureStepModificationDateTime=dicom.format_moment(now))
    row.attributes, row.updated_at = dict(sorted(stored.items())), now
    if changed & {dicom.tag("InputInformationSequence"), dicom.tag("StudyInstanceUID")}:
        workitems.set_studies(session, row, dicom.list_input_studies(stored))
    events.follow(session, row, now)
    if dicom.tag("ProcedureStepProgressInformationSequence") in changed:
        events.report_progress(session, row, now)
    if changed & {dicom.tag("ScheduledStationNameCodeSequence"), dicom.tag("ScheduledHumanPerformersSequence")}:
        events.report_assignment(session, row, now)
    if dicom.tag("InputReadinessState") in changed:
        events.report_state(session, row, now)


def change_state(session: Session, uid: str, request: Elements, *, who: str, now: datetime) -> str:
    """Claim, complete or cancel a workitem as the request states; return a warning or "" (PS3.4 table CC.1.1-2).

    Raises WorkitemRefused.
    """
    name, transaction_uid = dicom.text(request, "ProcedureStepState"), dicom.text(request, "TransactionUID")
    if name not in set(WorkitemState):
        raise WorkitemRefused(INVALID, f"ProcedureStepState is one of {', '.join(WorkitemState)}")
    state, row = WorkitemState(name), _lock(session, uid)
    if state is WorkitemState.SCHEDULED:
        raise WorkitemRefused(ONLY_AT_CREATION, "a workitem is SCHEDULED by its creation only")
    if not transaction_uid:
        raise WorkitemRefused(WRONG_TRANSACTION, "The Transaction UID is missing.")
    if state is WorkitemState.IN_PROGRESS:
        claim(session, row, transaction_uid, who, now)
        return ""
    return _end(session, row, state, transaction_uid, who, now)


def request_cancellation(session: Session, uid: str, request: Elements, *, who: str, now: datetime) -> str:
    """Cancel a workitem that nobody has claimed, or ask its performer to; return a warning or "".

    Raises WorkitemRefused.
    """
    events.check_size(request)
    row = _lock(session, uid)
    if row.state is WorkitemState.CANCELED:
        return ALREADY_CANCELED
    if row.state is WorkitemState.COMPLETED:
        raise WorkitemRefused(ALREADY_COMPLETED, "the workitem is COMPLETED already")
    reason = dicom.text(request, "ReasonForCancellation")
    audit.append(
        session, subject=row.__tablename__, subject_id=row.id, event="cancel requested", detail={"who": who}, now=now
    )
    if row.state is WorkitemState.IN_PROGRESS:
        events.report_cancel_request(session, row, who, request, now)
        if row.is_own:
            row.cancel_reason = reason or f"{who} asked to cancel"
        return ""
    keywords = ("ReasonForCancellation", "ProcedureStepDiscontinuationReasonCodeSequence")
    reasons = {dicom.tag(name): request[dicom.tag(name)] for name in keywords if dicom.tag(name) in request}
    cancel_unclaimed(session, row, reasons, why=f"asked by {who}", now=now)
    return ""


def cancel_unclaimed(session: Session, row: Workitem, reasons: Elements, *, why: str, now: datetime) -> None:
    """Take a locked SCHEDULED workitem through IN PROGRESS to CANCELED, as PS3.4 CC.2.2.3 requires.

    ``reasons``: its Reason For Cancellation and code, where stated. ``why``: for the audit trail.
    """
    stored = dict(row.attributes)
    stored[dicom.tag("ProcedureStepProgressInformationSequence")] = {"vr": "SQ", "Value": [reasons]}
    row.attributes = stored
    move(session, row, WorkitemState.IN_PROGRESS, reason=f"cancellation, {why}", now=now)
    move(session, row, WorkitemState.CANCELED, reason=why, now=now)


def claim(session: Session, row: Workitem, transaction_uid: str, who: str, now: datetime) -> None:
    """Give a locked workitem to a performer. Raises WorkitemRefused."""
    if row.state in _ENDED:
        raise WorkitemRefused(MAY_NOT_BE_UPDATED, f"the workitem is {row.state} and may no longer be updated")
    if row.state is WorkitemState.IN_PROGRESS:
        raise WorkitemRefused(ALREADY_IN_PROGRESS, "the workitem is IN PROGRESS already")
    row.transaction_uid, row.performer = transaction_uid, who
    move(session, row, WorkitemState.IN_PROGRESS, reason=f"claimed by {who}", now=now)


def move(session: Session, row: Workitem, state: WorkitemState, *, reason: str, now: datetime) -> None:
    """Set the state of a locked workitem in its row and data set, and report it. ``reason``: for the audit trail."""
    stored = dict(row.attributes)
    dicom.put(stored, ProcedureStepState=str(state))
    if state is WorkitemState.CANCELED:
        requirements.complete_cancellation(stored, now)
    row.attributes = dict(sorted(stored.items()))
    workitems.transition(session, row, state, reason=reason, now=now)
    events.report_state(session, row, now)


def not_found(uid: str) -> WorkitemRefused:
    """Return the refusal of a UID that no workitem has."""
    return WorkitemRefused(UNKNOWN_WORKITEM, f"no workitem has the UID {uid}")


def _lock(session: Session, uid: str) -> Workitem:
    if (row := workitems.lock(session, uid)) is None:
        raise not_found(uid)
    return row


def _take_transaction(attributes: Elements) -> str:
    """Remove the Transaction UID from a request, and return it or ""."""
    found = dicom.text(attributes, "TransactionUID")
    attributes.pop(dicom.tag("TransactionUID"), None)
    return found


def _check_access(row: Workitem, transaction_uid: str) -> None:
    """Raise WorkitemRefused unless a request with that Transaction UID may update the workitem (PS3.4 CC.2.6.3)."""
    if row.state in _ENDED:
        raise WorkitemRefused(MAY_NOT_BE_UPDATED, f"the workitem is {row.state} and may no longer be updated")
    if row.state is WorkitemState.SCHEDULED:
        if transaction_uid:
            raise WorkitemRefused(NOT_IN_PROGRESS, "the workitem is SCHEDULED, and has no Transaction UID yet")
        return
    _check_transaction(row, transaction_uid)


def _check_transaction(row: Workitem, transaction_uid: str) -> None:
    if not transaction_uid:
        raise WorkitemRefused(WRONG_TRANSACTION, "The Transaction UID is missing.")
    if transaction_uid != row.transaction_uid:
        raise WorkitemRefused(WRONG_TRANSACTION, "The Transaction UID is incorrect.")


def _end(session: Session, row: Workitem, state: WorkitemState, transaction_uid: str, who: str, now: datetime) -> str:
    if row.state is WorkitemState.SCHEDULED:
        raise WorkitemRefused(NOT_IN_PROGRESS, "the workitem is not IN PROGRESS: claim it first")
    if row.transaction_uid or row.state is WorkitemState.IN_PROGRESS:
        _check_transaction(row, transaction_uid)
    if row.state is state:
        return ALREADY_CANCELED if state is WorkitemState.CANCELED else _ALREADY_COMPLETED
    if row.state in _ENDED:
        raise WorkitemRefused(MAY_NOT_BE_UPDATED, f"the workitem is {row.state} and may no longer be updated")
    if state is WorkitemState.COMPLETED and (unmet := requirements.unmet_for_completion(row.attributes)):
        raise WorkitemRefused(FINAL_STATE_UNMET, f"COMPLETED requires {', '.join(unmet)}")
    move(session, row, state, reason=f"by {who}", now=now)
    return ""
