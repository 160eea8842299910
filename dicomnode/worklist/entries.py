"""Workitems as lines of the listing and the page: what they order, how far they are, and why they ended.

No entry names a patient: studies are identified by their UIDs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from db import workitems
from db.models import Workitem
from db.states import WorkitemState
from dicomnode.datasets.json_elements import Elements
from dicomnode.errors import NotFound
from dicomnode.worklist import elements as dicom
from dicomnode.worklist import transactions

__all__ = ["WorklistEntry", "cancel", "describe", "find", "list_entries"]


@dataclass(frozen=True)
class WorklistEntry:
    """A workitem. ``work``: value of the code that it orders; ``progress``: in percent, or None; ``note``: description
    of the progress, or the reason for cancellation; ``studies``: UIDs of the studies that it names as inputs;
    ``start``: as stated (DT)."""

    id: int
    uid: str
    state: WorkitemState
    label: str
    work: str
    priority: str
    start: str
    performer: str
    progress: float | None
    note: str
    studies: tuple[str, ...]
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None


def list_entries(
    session: Session, state: WorkitemState | None = None, *, limit: int | None = None, offset: int = 0
) -> list[WorklistEntry]:
    """List the workitems, or those in a state; the newest last, or from the newest where ``limit`` states how many."""
    rows = workitems.list_newest(session, state, limit=limit, offset=offset)
    return [describe(row) for row in (rows if limit else reversed(rows))]


def describe(row: Workitem) -> WorklistEntry:
    """Describe a workitem."""
    attributes: Elements = row.attributes
    codes = [dicom.read_code(each)[0] for each in dicom.items(attributes, "ScheduledWorkitemCodeSequence")]
    progress: Elements = next(iter(dicom.items(attributes, "ProcedureStepProgressInformationSequence")), {})
    return WorklistEntry(
        id=row.id,
        uid=row.uid,
        state=row.state,
        label=dicom.text(attributes, "ProcedureStepLabel"),
        work=next(iter(codes), ""),
        priority=dicom.text(attributes, "ScheduledProcedureStepPriority"),
        start=dicom.text(attributes, "ScheduledProcedureStepStartDateTime"),
        performer=row.performer,
        progress=_read_percent(progress),
        note=dicom.text(progress, "ReasonForCancellation") or dicom.text(progress, "ProcedureStepProgressDescription"),
        studies=tuple(sorted(dicom.list_input_studies(attributes))),
        created_at=row.created_at,
        updated_at=row.updated_at,
        ended_at=row.ended_at,
    )


def find(session: Session, uid: str) -> WorklistEntry:
    """Return the workitem of a UID. Raises NotFound."""
    if (row := workitems.find(session, uid)) is None:
        raise NotFound(f"no workitem {uid}: 'dicomnode worklist list' shows all")
    return describe(row)


def cancel(session: Session, uid: str, *, reason: str, who: str, now: datetime) -> WorklistEntry:
    """Cancel a workitem that nobody has claimed, or ask its performer to; return what became of it.

    Raises NotFound or WorkitemRefused.
    """
    find(session, uid)
    request: Elements = {}
    if reason:
        dicom.put(request, ReasonForCancellation=reason)
    transactions.request_cancellation(session, uid, request, who=who, now=now)
    return find(session, uid)


def _read_percent(progress: Elements) -> float | None:
    """Return the progress in percent; None where it is absent or no finite number."""
    try:
        percent = float(dicom.text(progress, "ProcedureStepProgress"))
    except ValueError:
        return None
    return percent if math.isfinite(percent) else None
