"""Decisions on quarantined files, by number, as command line and pages make them."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from db import quarantine
from db.models import Quarantine
from db.states import InvalidTransition, QuarantineState
from db.studies import Registration
from dicomnode.config import Config
from dicomnode.datasets import headers
from dicomnode.errors import NotAllowed, NotFound
from dicomnode.storage import spool

__all__ = ["discard", "find", "release"]


def find(session: Session, id: int) -> Quarantine:
    """Return the quarantined file of that number. Raises NotFound."""
    row = session.get(Quarantine, id)
    if row is None:
        raise NotFound(f"no quarantine {id}: 'dicomnode quarantine list --state all' lists them")
    return row


def release(session: Session, config: Config, id: int, *, reason: str, now: datetime) -> Registration:
    """Accept the file in place of an instance with its SOP Instance UID. Raises NotFound and NotAllowed."""
    row = _find_kept(session, id)
    facts = headers.read(spool.path(config.spool_dir, row.sha256))
    try:
        return quarantine.release(session, row, facts, reason=reason, now=now)
    except InvalidTransition as error:
        raise NotAllowed(str(error)) from None


def discard(session: Session, config: Config, id: int, *, reason: str, now: datetime) -> None:
    """Reject the file; the next pass of retention deletes it.

    Raises NotFound, and NotAllowed for content that was committed to a sender before another file replaced it.
    """
    row = _find_kept(session, id)
    if not config.retention.delete_committed and quarantine.is_committed(session, row):
        raise NotAllowed(
            f"quarantine {id} was committed to its sender, which may have deleted its own copy: release it, or leave "
            "it; [retention] delete_committed = true allows to discard it"
        )
    quarantine.discard(session, row, reason=reason, now=now)


def _find_kept(session: Session, id: int) -> Quarantine:
    row = find(session, id)
    if row.state is not QuarantineState.KEPT:
        raise NotAllowed(f"quarantine {id} is {row.state}: it was decided before")
    return row
