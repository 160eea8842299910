"""Decisions on quarantined files.

A released file replaces the instance that has its SOP Instance UID; that one is quarantined instead, so that the
decision can be taken back. The file of a discarded row is deleted with the next pass of retention.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import audit, studies
from db.models import Instance, Quarantine, Series
from db.states import InvalidTransition, QuarantineState
from db.studies import InstanceFacts, Registration, Sender, StoredFile

__all__ = ["count_undecided", "describe_conflict", "discard", "is_committed", "list_files", "release"]


def describe_conflict(session: Session, instance_id: int | None) -> str:
    """Return why a file is quarantined whose SOP Instance UID that instance has; an Error Comment has 64 characters."""
    number = session.scalar(select(Series.study_id).join(Instance).where(Instance.id == instance_id))
    return f"study {number} has this SOP Instance UID with other content"


def list_files(session: Session, state: QuarantineState | None) -> Sequence[Quarantine]:
    """Return the rows in the state, or all, the oldest first."""
    query = select(Quarantine).order_by(Quarantine.id)
    return session.scalars(query if state is None else query.where(Quarantine.state == state)).all()


def count_undecided(session: Session, study_uid: str) -> int:
    """Return the number of files of a study that wait in quarantine for a decision."""
    waiting = (Quarantine.study_uid == study_uid, Quarantine.state == QuarantineState.KEPT)
    return session.scalar(select(func.count(Quarantine.id)).where(*waiting)) or 0


def is_committed(session: Session, row: Quarantine) -> bool:
    """Return whether a sender was told in writing that this content is kept.

    An instance is committed only while no other content of it is undecided, so a commitment after the reception is one
    of this content, which another file has replaced since.
    """
    instance = select(Instance.committed_at).where(Instance.sop_instance_uid == row.sop_instance_uid)
    committed_at = session.scalar(instance)
    return committed_at is not None and committed_at >= row.received_at


def discard(session: Session, row: Quarantine, *, reason: str, now: datetime) -> None:
    """Discard the file."""
    audit.transition(session, row, QuarantineState.DISCARDED, reason=reason, now=now)


def release(session: Session, row: Quarantine, facts: InstanceFacts, *, reason: str, now: datetime) -> Registration:
    """Register the file as an instance that has just arrived, in place of the one that has its SOP Instance UID.

    The time of its first reception stays.

    Raises InvalidTransition where its SOP Instance UID is that of an instance in another series.
    """
    file = StoredFile(row.sha256, row.size_bytes, row.relative_path)
    sender = Sender(row.sender_ae_title, row.sender_address)
    audit.transition(session, row, QuarantineState.RELEASED, reason=reason, now=now)
    session.flush()
    existing = session.scalar(select(Instance).where(Instance.sop_instance_uid == facts.sop_instance_uid))
    if existing is not None:
        _quarantine_existing(session, existing, row.id, now)
    done = studies.register_instance(session, facts=facts, file=file, sender=sender, now=now)
    if done.kind != "new":
        raise InvalidTransition(f"quarantine {row.id}: an instance of another series has its SOP Instance UID")
    session.get_one(Instance, done.instance_id, populate_existing=True).received_at = row.received_at
    return done


def _quarantine_existing(session: Session, existing: Instance, released: int, now: datetime) -> None:
    """Quarantine the content of the instance, and let its row expire so that the released file can take it."""
    series = session.get_one(Series, existing.series_id)
    if existing.expired_at is None:
        replaced = InstanceFacts(
            series.study.study_uid, series.series_uid, existing.sop_instance_uid, existing.sop_class_uid,
            existing.transfer_syntax_uid,
        )  # fmt: skip
        studies.quarantine(
            session,
            file=StoredFile(existing.sha256, existing.size_bytes, existing.relative_path),
            reason=f"it was in study {series.study_id} until quarantine {released} was released in its place",
            facts=replaced,
            sender=Sender(existing.sender_ae_title, existing.sender_address),
            received_at=existing.received_at,
            now=now,
        )
        existing.expired_at = now
        session.flush()
