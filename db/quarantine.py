"""A person's decision on a file that ingest kept and did not accept.

Released, it takes the place of the instance that has its SOP Instance UID; what was there goes into quarantine itself,
so the decision can be taken back. Discarded, its file goes with the next pass of retention.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import audit, studies
from db.models import Instance, Quarantine, Series
from db.states import InvalidTransition, QuarantineState
from db.studies import InstanceFacts, Registration, Sender, StoredFile

__all__ = ["discard", "list_files", "release"]


def list_files(session: Session, state: QuarantineState | None) -> Sequence[Quarantine]:
    """Those in the state, or all, the oldest first."""
    query = select(Quarantine).order_by(Quarantine.id)
    return session.scalars(query if state is None else query.where(Quarantine.state == state)).all()


def discard(session: Session, row: Quarantine, *, reason: str, now: datetime) -> None:
    """It is wanted by nobody."""
    audit.transition(session, row, QuarantineState.DISCARDED, reason=reason, now=now)


def release(session: Session, row: Quarantine, facts: InstanceFacts, *, reason: str, now: datetime) -> Registration:
    """It is the instance: registered like one that has just come, after what is there has made way for it.

    Raises InvalidTransition where its SOP Instance UID is that of an instance in another series.
    """
    file = StoredFile(row.sha256, row.size_bytes, row.relative_path)
    sender = Sender(row.sender_ae_title, row.sender_address)
    audit.transition(session, row, QuarantineState.RELEASED, reason=reason, now=now)
    session.flush()
    there = session.scalar(select(Instance).where(Instance.sop_instance_uid == facts.sop_instance_uid))
    if there is not None:
        _make_way(session, there, row.id, now)
    done = studies.register_instance(session, facts=facts, file=file, sender=sender, now=now)
    if done.kind != "new":
        raise InvalidTransition(f"quarantine {row.id}: instance {done.instance_id} has its UID in another series")
    return done


def _make_way(session: Session, there: Instance, released: int, now: datetime) -> None:
    """Its content goes into quarantine, and its row waits for the new one like one that has expired."""
    series = session.get_one(Series, there.series_id)
    if there.expired_at is None:
        replaced = InstanceFacts(
            series.study.study_uid, series.series_uid, there.sop_instance_uid, there.sop_class_uid,
            there.transfer_syntax_uid,
        )  # fmt: skip
        studies.quarantine(
            session,
            file=StoredFile(there.sha256, there.size_bytes, there.relative_path),
            reason=f"instance {there.id} was replaced by quarantine {released}",
            facts=replaced,
            sender=Sender(there.sender_ae_title, there.sender_address),
            now=now,
        )
        there.expired_at = now
        session.flush()
