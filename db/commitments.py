"""Storage commitments requested of this node: recorded, then reported like deliveries until the requester has them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from db import audit, leases
from db.models import CommitmentRequest, Instance, Quarantine, Series, Study
from db.states import QuarantineState, ReportState
from db.studies import Sender

__all__ = [
    "OUTBOX",
    "ClaimedReport",
    "DuplicateTransaction",
    "Verdict",
    "check_transaction",
    "claim",
    "claim_due",
    "find_instances",
    "find_quarantined",
    "give_back",
    "give_up_due",
    "give_up_old",
    "list_due_titles",
    "lock_studies",
    "mark_committed",
    "mark_failed",
    "mark_sent",
    "record",
]

OUTBOX = leases.Outbox(CommitmentRequest, CommitmentRequest.ae_title, ReportState.WAITING, ReportState.SENDING)
_AT_ONCE = 500


class DuplicateTransaction(Exception):
    """The Transaction UID is that of another request."""


@dataclass(frozen=True)
class Verdict:
    """One instance of a commitment; ``failure_reason``: 0 where it is committed, else as in PS3.3 C.14.1.1."""

    sop_class_uid: str
    sop_instance_uid: str
    failure_reason: int = 0

    @property
    def is_committed(self) -> bool:
        """True where the instance is kept safely."""
        return self.failure_reason == 0


@dataclass(frozen=True)
class ClaimedReport:
    """A report under a lease, as plain values: no session is open while the network is used."""

    request_id: int
    transaction_uid: str
    ae_title: str
    verdicts: tuple[Verdict, ...]
    attempts: int


def find_instances(session: Session, uids: Collection[str]) -> dict[str, Instance]:
    """Return by SOP Instance UID the received instances that the node holds."""
    held = Instance.expired_at.is_(None)
    rows = (session.scalars(select(Instance).where(each, held)) for each in _in_parts(Instance.sop_instance_uid, uids))
    return {row.sop_instance_uid: row for part in rows for row in part}


def lock_studies(session: Session, uids: Collection[str], *, at_once: int = _AT_ONCE) -> None:
    """Lock the studies of the instances, in the order of their numbers, until the end of the transaction.

    No instance of them expires before, and none gets other content. ``at_once``: number of studies in one statement.
    """
    parts = _in_parts(Instance.sop_instance_uid, uids)
    queries = (select(Series.study_id).join(Instance, Instance.series_id == Series.id).where(each) for each in parts)
    numbers = sorted({number for query in queries for number in session.scalars(query)})
    for at in range(0, len(numbers), at_once):
        locked = select(Study.id).where(Study.id.in_(numbers[at : at + at_once]))
        session.execute(locked.order_by(Study.id).with_for_update())


def find_quarantined(session: Session, uids: Collection[str], sender: Sender) -> set[str]:
    """Return the SOP Instance UIDs of which other content is undecided, or was discarded after this sender sent it.

    A sender is known by its AE title or its address: many scanners send under one title and ask under another. What is
    held settles it where the very sender of what was discarded sent it later.
    """
    undecided = Quarantine.state == QuarantineState.KEPT
    held = select(Instance.id).where(
        Instance.sop_instance_uid == Quarantine.sop_instance_uid, Instance.expired_at.is_(None),
        Instance.received_at > Quarantine.received_at, Instance.sender_ae_title == Quarantine.sender_ae_title,
        Instance.sender_address == Quarantine.sender_address,
    )  # fmt: skip
    is_sender = (Quarantine.sender_ae_title == sender.ae_title) | (Quarantine.sender_address == sender.address)
    discarded = (Quarantine.state == QuarantineState.DISCARDED) & is_sender & ~held.exists()
    parts = _in_parts(Quarantine.sop_instance_uid, uids)
    queries = (select(Quarantine.sop_instance_uid).where(each, undecided | discarded) for each in parts)
    return {uid for query in queries for uid in session.scalars(query)}


def mark_committed(session: Session, digests: Mapping[str, str], *, now: datetime) -> set[str]:
    """Mark the instances that are still held with that content as committed; return their SOP Instance UIDs.

    ``digests``: SHA-256 by SOP Instance UID. Their studies have to be locked.
    """
    held = find_instances(session, digests.keys())
    marked = {uid for uid, row in held.items() if row.sha256 == digests[uid]}
    for part in _in_parts(Instance.sop_instance_uid, marked):
        session.execute(update(Instance).where(part).values(committed_at=now))
    return marked


def check_transaction(
    session: Session, transaction_uid: str, sender: Sender, uids: Collection[str]
) -> CommitmentRequest | None:
    """Return the earlier request, locked, that this one repeats, or None.

    Raises DuplicateTransaction where the Transaction UID is that of another request.
    """
    same = select(CommitmentRequest).where(CommitmentRequest.transaction_uid == transaction_uid)
    row = session.scalar(same.with_for_update())
    if row is not None and (row.ae_title != sender.ae_title or {each[1] for each in row.verdicts} != set(uids)):
        raise DuplicateTransaction(f"commitment request {row.id} has the same Transaction UID")
    return row


def record(
    session: Session, *, transaction_uid: str, sender: Sender, verdicts: Sequence[Verdict], now: datetime
) -> CommitmentRequest:
    """Record a request and what it is answered; the same request again is one row, and is reported again.

    Raises DuplicateTransaction where the Transaction UID is that of another request.
    """
    row = check_transaction(session, transaction_uid, sender, [each.sop_instance_uid for each in verdicts])
    if row is None:
        row = CommitmentRequest(transaction_uid=transaction_uid, ae_title=sender.ae_title, attempts=0)
        session.add(row)
    elif row.state is not ReportState.WAITING:
        leases.give_back(session, row, ReportState.WAITING, reason="requested again", now=now)
    row.address, row.verdicts = sender.address, [list(astuple(each)) for each in verdicts]
    row.created_at = row.not_before = now
    session.flush()
    committed = sum(each.is_committed for each in verdicts)
    detail = {"by": sender.ae_title, "committed": committed, "refused": len(verdicts) - committed}
    audit.append(session, subject=row.__tablename__, subject_id=row.id, event="requested", detail=detail, now=now)
    return row


def claim(session: Session, row: CommitmentRequest, *, worker: str, lease_s: float, now: datetime) -> ClaimedReport:
    """Claim the report of one request under a lease."""
    leases.grant(session, row, ReportState.SENDING, worker=worker, lease_s=lease_s, now=now)
    verdicts = tuple(Verdict(*each) for each in row.verdicts)
    return ClaimedReport(row.id, row.transaction_uid, row.ae_title, verdicts, row.attempts)


def list_due_titles(session: Session, *, now: datetime) -> list[str]:
    """Return the AE titles to which a report is due."""
    due = (CommitmentRequest.state == ReportState.WAITING, CommitmentRequest.not_before <= now)
    return sorted(session.scalars(select(CommitmentRequest.ae_title).where(*due).distinct()))


def claim_due(
    session: Session, ae_title: str, *, worker: str, lease_s: float, limit: int, now: datetime
) -> list[ClaimedReport]:
    """Claim the reports that are due to the AE title, the oldest first."""
    rows = session.scalars(OUTBOX.select_due(address=ae_title, limit=limit, now=now)).all()
    return [claim(session, row, worker=worker, lease_s=lease_s, now=now) for row in rows]


def mark_sent(session: Session, request_id: int, *, worker: str, how: str, now: datetime) -> None:
    """Record that the requester has the report, unless another worker holds it now."""
    if (row := _find_held(session, request_id, worker)) is not None:
        audit.transition(session, row, ReportState.SENT, reason=how, now=now)
        row.sent_at, row.leased_until, row.reason = now, None, ""


def mark_failed(
    session: Session, request_id: int, *, worker: str, reason: str, retry_at: datetime, now: datetime
) -> None:
    """Record a failed attempt; the next one is at ``retry_at``."""
    if (row := _find_held(session, request_id, worker)) is not None:
        leases.postpone(session, row, ReportState.WAITING, reason=reason, not_before=retry_at, now=now)


def give_back(session: Session, request_id: int, *, worker: str, reason: str, now: datetime) -> None:
    """Let the report wait again; it is due at once."""
    mark_failed(session, request_id, worker=worker, reason=reason, retry_at=now, now=now)


def give_up_old(session: Session, *, created_before: datetime, now: datetime) -> int:
    """Give up every report that has waited since before ``created_before``; return how many."""
    rows = OUTBOX.lock_old(session, created_before=created_before)
    for row in rows:
        _give_up(session, row, row.reason or "never tried", now)
    return len(rows)


def give_up_due(session: Session, ae_title: str, *, reason: str, now: datetime) -> int:
    """Give up the reports that are due to the AE title; return how many."""
    rows = session.scalars(OUTBOX.select_due(address=ae_title, limit=None, now=now)).all()
    for row in rows:
        _give_up(session, row, reason, now)
    return len(rows)


def _give_up(session: Session, row: CommitmentRequest, reason: str, now: datetime) -> None:
    row.reason = f"given up: {reason}"
    audit.transition(session, row, ReportState.GIVEN_UP, reason=row.reason, now=now)


def _in_parts(column: InstrumentedAttribute[str], uids: Collection[str]) -> Iterator[Any]:
    """Yield conditions that together take all UIDs: a statement holds a limited number of values."""
    ordered = sorted(uids)
    return (column.in_(ordered[at : at + _AT_ONCE]) for at in range(0, len(ordered), _AT_ONCE))


def _find_held(session: Session, request_id: int, worker: str) -> CommitmentRequest | None:
    return leases.find_held(session, CommitmentRequest, request_id, ReportState.SENDING, worker=worker)
