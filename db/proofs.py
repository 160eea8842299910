"""Proofs of deliveries: what a destination is asked next, and what it answered.

``serve`` alone asks, so the rows need no lease; a step that was interrupted is taken again after a restart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import audit
from db.commitments import Verdict
from db.models import Delivery, Job, Output, Proof
from db.states import DeliveryState, ProofState, ProofStep

__all__ = [
    "SentObject",
    "begin",
    "begin_again",
    "begin_step",
    "count_open",
    "is_sending",
    "is_transaction",
    "list_due",
    "list_unproven",
    "mark_proven",
    "mark_unproven",
    "postpone",
    "record_verdicts",
    "start_transaction",
]

_MOST_RESENDS = 2
_NOT_MENDED_BY_SENDING = (0x0119, 0x0122)  # PS3.3 C.14.1.1: another class is held, or the class is not supported
_REASONS = {
    0x0110: "processing failure",
    0x0112: "no such object instance",
    0x0119: "it holds that UID with another SOP class",
    0x0122: "it does not support the SOP class",
    0x0131: "duplicate transaction UID",
    0x0213: "resource limitation",
}


@dataclass(frozen=True)
class SentObject:
    """Identifiers of an object as it was sent."""

    study_uid: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str


def begin(session: Session, delivery_id: int, sent: SentObject, step: ProofStep, *, now: datetime) -> None:
    """Ask for the proof of an object that was just delivered, for the first time or again."""
    row = session.scalar(select(Proof).where(Proof.delivery_id == delivery_id).with_for_update())
    if row is None:
        destination = session.get_one(Delivery, delivery_id).destination
        row = Proof(delivery_id=delivery_id, destination=destination, begun_at=now, not_before=now, step=step)
        session.add(row)
    row.study_uid, row.series_uid = sent.study_uid, sent.series_uid
    row.sop_instance_uid, row.sop_class_uid = sent.sop_instance_uid, sent.sop_class_uid
    session.flush()
    if row.state is not ProofState.SENT:
        audit.transition(session, row, ProofState.SENT, reason="sent again", now=now)
    begin_step(row, step, now=now)


def begin_again(session: Session, row: Proof, step: ProofStep, *, reason: str, now: datetime) -> None:
    """Ask anew for the proof of an object that stayed unproven."""
    audit.transition(session, row, ProofState.SENT, reason=reason, now=now)
    begin_step(row, step, now=now)


def begin_step(row: Proof, step: ProofStep, *, now: datetime, not_before: datetime | None = None) -> None:
    """Go to the next step, which is due at once or at ``not_before``."""
    row.step, row.begun_at, row.not_before, row.attempts = step, now, not_before or now, 0
    if step is ProofStep.REQUEST:
        row.transaction_uid = ""


def list_due(session: Session, destination: str, *, limit: int, now: datetime) -> Sequence[Proof]:
    """Return the proofs of the destination with a step that is due, locked, the oldest first."""
    due = (Proof.state == ProofState.SENT, Proof.step != ProofStep.NONE, Proof.not_before <= now)
    query = select(Proof).where(Proof.destination == destination, *due).order_by(Proof.id).limit(limit)
    return session.scalars(query.with_for_update()).all()


def is_sending(session: Session, destination: str) -> bool:
    """Return whether objects are on their way to the destination at this moment."""
    sending = (Delivery.destination == destination, Delivery.state == DeliveryState.SENDING)
    return session.scalar(select(Delivery.id).where(*sending).limit(1)) is not None


def list_unproven(session: Session, study_id: int) -> Sequence[Proof]:
    """Return the unproven rows of a study's results."""
    joined = select(Proof).join(Delivery, Proof.delivery_id == Delivery.id).join(Delivery.output).join(Output.job)
    return session.scalars(joined.where(Job.study_id == study_id, Proof.state == ProofState.UNPROVEN)).all()


def start_transaction(rows: Sequence[Proof], transaction_uid: str) -> None:
    """Give the rows the Transaction UID of the request that is made next; a retry uses the same one."""
    for row in rows:
        row.transaction_uid = transaction_uid


def is_transaction(session: Session, transaction_uid: str) -> bool:
    """Return whether a request of this node has that Transaction UID."""
    query = select(Proof.id).where(Proof.transaction_uid == transaction_uid).limit(1)
    return bool(transaction_uid) and session.scalar(query) is not None


def record_verdicts(session: Session, transaction_uid: str, verdicts: Sequence[Verdict], *, now: datetime) -> None:
    """Record what the destination committed and what it did not; the latter is sent again, a few times at most."""
    by_uid = {each.sop_instance_uid: each for each in verdicts}
    query = select(Proof).where(Proof.transaction_uid == transaction_uid).order_by(Proof.id).with_for_update()
    for row in session.scalars(query).all():
        verdict = by_uid.get(row.sop_instance_uid)
        if verdict is None or row.state is ProofState.COMMITTED:
            continue
        if verdict.is_committed:
            mark_proven(session, row, ProofState.COMMITTED, reason=f"by {row.destination}", now=now)
        elif row.state is ProofState.SENT and row.step in (ProofStep.REQUEST, ProofStep.REPORT):
            _record_failure(session, row, verdict.failure_reason, now)


def mark_proven(session: Session, row: Proof, state: ProofState, *, reason: str, now: datetime) -> None:
    """Record that the destination has committed, or was found to hold, the object."""
    audit.transition(session, row, state, reason=reason, now=now)
    row.step, row.proven_at, row.reason = ProofStep.NONE, now, ""


def mark_unproven(session: Session, row: Proof, *, reason: str, now: datetime) -> None:
    """Record that nothing proves that the destination holds the object."""
    audit.transition(session, row, ProofState.UNPROVEN, reason=reason, now=now)
    row.step, row.reason = ProofStep.NONE, reason


def postpone(row: Proof, *, reason: str, not_before: datetime) -> None:
    """Record a failed attempt at the step; the next one is at ``not_before``."""
    row.attempts, row.reason, row.not_before = row.attempts + 1, reason, not_before


def count_open(session: Session, states: Collection[ProofState]) -> Mapping[tuple[str, str], int]:
    """Return the number of proofs in those states by destination and state, without those that nobody asks for."""
    is_open = (Proof.step != ProofStep.NONE) | (Proof.state != ProofState.SENT)
    query = select(Proof.destination, Proof.state, func.count()).where(Proof.state.in_(states), is_open)
    rows = session.execute(query.group_by(Proof.destination, Proof.state))
    return {(destination, str(state)): count for destination, state, count in rows}


def _record_failure(session: Session, row: Proof, failure_reason: int, now: datetime) -> None:
    words = _REASONS.get(failure_reason, "a reason of its own")
    reason = f"{row.destination} did not commit it: {failure_reason:04X}, {words}"
    if failure_reason in _NOT_MENDED_BY_SENDING or row.resends >= _MOST_RESENDS:
        mark_unproven(session, row, reason=reason, now=now)
        return
    row.resends, row.step, row.reason = row.resends + 1, ProofStep.NONE, reason
    delivery = session.get_one(Delivery, row.delivery_id, with_for_update=True)
    if delivery.state is DeliveryState.DELIVERED:
        audit.transition(session, delivery, DeliveryState.WAITING, reason=reason, now=now)
        delivery.attempts, delivery.not_before, delivery.created_at = 0, now, now
        delivery.delivered_at, delivery.reason = None, reason
