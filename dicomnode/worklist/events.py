"""Event reports on workitems (PS3.4 CC.2.4), written with the change that they report, and sent later.

Subscribers to the worklist are subscribed to each workitem when it is created or first matches their keys, so that
they can leave the one or stop following new ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from db import workitems
from db.models import Workitem
from dicomnode.datasets import json_elements
from dicomnode.datasets.json_elements import Elements
from dicomnode.errors import WorkitemRefused
from dicomnode.worklist import elements as dicom
from dicomnode.worklist import matching
from dicomnode.worklist.payload import INVALID

__all__ = [
    "ALL",
    "MATCHING",
    "MOST_CHARACTERS",
    "MOST_WAITING",
    "check_size",
    "follow",
    "report_assignment",
    "report_cancel_request",
    "report_progress",
    "report_state",
    "state_report",
]

ALL, MATCHING = "1.2.840.10008.5.1.4.34.5", "1.2.840.10008.5.1.4.34.5.1"
"""Well-known UIDs of the subscriptions to the whole worklist and to a filtered one (PS3.4 CC.2.3)."""
_EVENT_CLASS = "1.2.840.10008.5.1.4.34.6.4"
_STATE, _CANCEL_REQUEST, _PROGRESS, _ASSIGNMENT = 1, 2, 3, 5
MOST_WAITING = 1000
"""Event reports that wait for one subscriber; above it the oldest are dropped."""
MOST_CHARACTERS = 16_384
"""Length of all that one request adds to event reports, as JSON."""

_PROGRESS_SEQUENCE = "ProcedureStepProgressInformationSequence"
_REASONS = ("ReasonForCancellation", "ProcedureStepDiscontinuationReasonCodeSequence")
_CONTACTS = ("ContactURI", "ContactDisplayName")
_ASSIGNED = ("ScheduledStationNameCodeSequence", "ScheduledHumanPerformersSequence")


def check_size(request: Elements) -> None:
    """Raise WorkitemRefused for a request whose content makes event reports too long: every subscriber gets a copy."""
    tags = [dicom.tag(keyword) for keyword in (_PROGRESS_SEQUENCE, *_ASSIGNED, *_REASONS, *_CONTACTS)]
    content = {tag: request[tag] for tag in tags if tag in request}
    if len(json.dumps(content, ensure_ascii=False)) > MOST_CHARACTERS:
        raise WorkitemRefused(INVALID, f"the content of event reports is longer than {MOST_CHARACTERS} characters")


def follow(session: Session, workitem: Workitem, now: datetime) -> None:
    """Subscribe the subscribers of the worklist to a workitem that is new or was updated."""
    known = {each.ae_title for each in workitems.list_subscribers(session, workitem.uid)}
    for uid in (ALL, MATCHING):
        for each in workitems.list_subscribers(session, uid):
            is_mine = uid == ALL or matching.matches(workitem.attributes, each.matching)
            if is_mine and each.ae_title not in known:
                known.add(each.ae_title)
                workitems.subscribe(
                    session, each.ae_title, workitem.uid, deletion_lock=each.deletion_lock, matching={}, now=now
                )


def report_state(session: Session, workitem: Workitem, now: datetime) -> None:
    """Report the state and the readiness of the inputs to all subscribers."""
    _send(session, workitem, state_report(workitem), now)


def report_progress(session: Session, workitem: Workitem, now: datetime) -> None:
    """Report the progress to all subscribers."""
    _send(session, workitem, _make_report(workitem, _PROGRESS, (_PROGRESS_SEQUENCE,)), now)


def report_assignment(session: Session, workitem: Workitem, now: datetime) -> None:
    """Report stations and persons to which the workitem is assigned."""
    _send(session, workitem, _make_report(workitem, _ASSIGNMENT, _ASSIGNED), now)


def report_cancel_request(
    session: Session, workitem: Workitem, requester: str, request: Elements, now: datetime
) -> None:
    """Report that somebody asked to cancel, with reason and contact, to all subscribers."""
    content = _make_report(workitem, _CANCEL_REQUEST, ())
    dicom.put(content, RequestingAE=requester)
    tags = [dicom.tag(keyword) for keyword in (*_REASONS, *_CONTACTS)]
    _send(session, workitem, content | {tag: request[tag] for tag in tags if tag in request}, now)


def state_report(workitem: Workitem) -> Elements:
    """Return the report on a workitem's state, with the reason where it is canceled."""
    content = _make_report(workitem, _STATE, ("InputReadinessState", "ProcedureStepState"))
    progress = next(iter(dicom.items(workitem.attributes, _PROGRESS_SEQUENCE)), {})
    return content | {dicom.tag(name): progress[dicom.tag(name)] for name in _REASONS if dicom.tag(name) in progress}


def _make_report(workitem: Workitem, event_type: int, keywords: Iterable[str]) -> Elements:
    """Return an event report: the elements of its command (PS3.7 10.3.1) and those of the workitem."""
    attributes: dict[str, Any] = workitem.attributes
    command: Elements = {
        "00000002": {"vr": "UI", "Value": [_EVENT_CLASS]},
        "00001000": {"vr": "UI", "Value": [workitem.uid]},
        "00001002": {"vr": "US", "Value": [event_type]},
    }
    empty = json_elements.encode_keywords(dict.fromkeys(keywords))
    return command | {tag: attributes.get(tag, element) for tag, element in empty.items()}


def _send(session: Session, workitem: Workitem, content: Elements, now: datetime) -> None:
    for each in workitems.list_subscribers(session, workitem.uid):
        workitems.add_event(session, each.ae_title, content, most=MOST_WAITING, now=now)
