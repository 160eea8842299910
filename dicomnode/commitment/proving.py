"""Proof that destinations keep what was delivered: by their storage commitment, else by a search for the instances."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydicom import dcmread
from pydicom.uid import generate_uid
from sqlalchemy.exc import SQLAlchemyError

from db import destinations, proofs
from db.models import Proof
from db.proofs import SentObject
from db.states import ProofState, ProofStep
from dicomnode.backoff import draw_backoff
from dicomnode.commitment import read_back, requesting
from dicomnode.commitment.information import Call
from dicomnode.errors import NotOffered, PeerError, PeerRefused, PeerUnreachable

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, sessionmaker

    from dicomnode.config import Config, Peer

__all__ = ["ask_again", "begin_proof", "needs_proof", "prove_due", "read_identifiers"]

_log = logging.getLogger(__name__)

_BATCH = 1000
_IDENTIFIERS = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"]

Clock = Callable[[], datetime]
T = TypeVar("T")


def needs_proof(peer: Peer) -> bool:
    """Return whether the destination is asked to prove what it keeps."""
    return bool(peer.commitment or peer.verify)


def read_identifiers(path: Path) -> SentObject:
    """Return the identifiers of the object in the file that was sent, which may be a de-identified copy."""
    ds = dcmread(path, stop_before_pixels=True, specific_tags=_IDENTIFIERS)
    return SentObject(*(str(ds[keyword].value) for keyword in _IDENTIFIERS))


def begin_proof(session: Session, peer: Peer, delivery_id: int, sent: SentObject, *, now: datetime) -> None:
    """Ask for the proof of an object that was delivered just now."""
    proofs.begin(session, delivery_id, sent, _first_step(peer), now=now)


def ask_again(session: Session, config: Config, study_id: int, *, reason: str, now: datetime) -> int:
    """Ask anew for every result of the study that stayed unproven; return how many."""
    by_name = {peer.name: peer for peer in config.peers if needs_proof(peer)}
    rows = [row for row in proofs.list_unproven(session, study_id) if row.destination in by_name]
    for row in rows:
        proofs.begin_again(session, row, _first_step(by_name[row.destination]), reason=reason, now=now)
    return len(rows)


def prove_due(
    sessions: sessionmaker[Session], config: Config, *, now: Clock, generator: random.Random | None = None
) -> int:
    """Take the next step towards the proof of everything that is due; return the number of objects it concerned.

    An error at one destination stops no other one; the first is raised at the end.
    """
    count, failure = 0, None
    for peer in filter(needs_proof, config.peers):
        try:
            count += _ProofSweep(sessions, config, peer, now, generator or random.Random()).run()
        except Exception as error:  # whatever rows of this destination make fail; the message may quote them
            _log.error("proofs at %s: %s", peer.name, type(error).__name__)
            failure = failure or error
    if failure is not None:
        raise failure
    return count


def _first_step(peer: Peer) -> ProofStep:
    return ProofStep.REQUEST if peer.commitment else ProofStep.READ_BACK


class _ProofSweep:
    """One sweep of the proofs at one destination."""

    def __init__(
        self, sessions: sessionmaker[Session], config: Config, peer: Peer, now: Clock, generator: random.Random
    ) -> None:
        self.sessions, self.config, self.peer, self.now, self.generator = sessions, config, peer, now, generator
        self.limit = timedelta(hours=config.delivery.prove_within_h)
        self.unreachable: PeerUnreachable | None = None

    def run(self) -> int:
        """Take each step that is due; return the number of objects."""
        with self.sessions.begin() as session:
            now = self.now()
            if destinations.load_breaker(session, self.peer.name).is_open(now):
                return 0
            if proofs.is_sending(session, self.peer.name):
                return 0  # a batch that is being sent makes one transaction, when it has arrived
            rows = proofs.list_due(session, self.peer.name, limit=_BATCH, now=now)
            late = [row for row in rows if row.step is ProofStep.REPORT]
            self._stop_waiting(session, late)
            interrupted = {row.transaction_uid for row in rows}
            requests = self._group_requests([row for row in rows if row.step is ProofStep.REQUEST])
        by_series: dict[tuple[str, str], list[Proof]] = {}
        for row in rows:
            if row.step is ProofStep.READ_BACK and row not in late:
                by_series.setdefault((row.study_uid, row.series_uid), []).append(row)
        for series, batch in by_series.items():  # first: a destination may break off requests, and answer searches
            self._read_back(series, batch)
        for transaction_uid, batch in requests.items():
            self._request(transaction_uid, batch, is_retry=transaction_uid in interrupted)
        return len(rows)

    def _reach(self, ask: Callable[[], T]) -> T:
        """Ask the destination, unless it gave no answer before in this sweep. Raises PeerError."""
        if self.unreachable is not None:
            raise self.unreachable
        try:
            return ask()
        except PeerUnreachable as exc:
            self.unreachable = exc
            raise
        except RuntimeError as exc:  # pynetdicom's, where the peer has just ended the association
            self.unreachable = PeerUnreachable(f"peer {self.peer.name} ended the association: {exc}")
            raise self.unreachable from None
        except (PeerError, SQLAlchemyError):
            raise
        except Exception as exc:  # whatever its answer or a UID makes fail; other objects are asked for
            _log.error("proofs at %s: %s", self.peer.name, type(exc).__name__)
            raise PeerRefused(f"{self.peer.name} could not be asked: {type(exc).__name__}") from None

    def _stop_waiting(self, session: Session, rows: Sequence[Proof]) -> None:
        hours = f"{self.config.delivery.prove_within_h:g} h"
        reason = f"{self.peer.name} has not reported within {hours}: does it know our AE title, address and port?"
        for row in rows:
            self._end_commitment(session, row, reason=reason)
        if rows:
            _log.warning("commitment of %d objects: %s", len(rows), reason)

    def _group_requests(self, rows: Sequence[Proof]) -> Mapping[str, list[Proof]]:
        """Return the rows by Transaction UID; those without one begin a transaction, stored before it is used."""
        fresh = [row for row in rows if not row.transaction_uid]
        if fresh:
            proofs.start_transaction(fresh, generate_uid(prefix=None))
        grouped: dict[str, list[Proof]] = {}
        for row in rows:
            grouped.setdefault(row.transaction_uid, []).append(row)
        return grouped

    def _request(self, transaction_uid: str, batch: Sequence[Proof], *, is_retry: bool) -> None:
        """Request the commitment of the batch, and record what becomes of the request."""
        call = Call(transaction_uid, tuple((row.sop_class_uid, row.sop_instance_uid) for row in batch))
        change: Callable[[Session, Proof], None]
        request = partial(requesting.request_commitment, self.peer, call, self.config, self.sessions)
        try:
            self._reach(partial(request, now=self.now, is_retry=is_retry))
        except NotOffered as exc:
            change = partial(self._end_commitment, reason=str(exc), is_offered=False)
        except PeerError as exc:
            has_ended = isinstance(exc, PeerRefused)  # PS3.4 J.3.2.1.2: its Transaction UID is not used again
            at = self._next_attempt(batch[0])  # one for all: a transaction is repeated whole
            change = partial(self._retry_request, reason=str(exc), has_ended=has_ended, at=at)
            _log.warning("commitment of %d objects: %s", len(batch), exc)
        else:
            change = self._await_report
        self._update(batch, change)

    def _await_report(self, _: Session, row: Proof) -> None:
        proofs.begin_step(row, ProofStep.REPORT, now=self.now(), not_before=self.now() + self.limit)
        row.reason = ""

    def _update(self, batch: Sequence[Proof], change: Callable[[Session, Proof], None]) -> None:
        """Change the rows of a request that no report has ended meanwhile."""
        with self.sessions.begin() as session:
            for each in batch:
                row = session.get_one(Proof, each.id, with_for_update=True, populate_existing=True)
                is_same = row.step is each.step and row.transaction_uid == each.transaction_uid
                if row.state is ProofState.SENT and is_same:
                    change(session, row)

    def _retry_request(self, session: Session, row: Proof, *, reason: str, has_ended: bool, at: datetime) -> None:
        if self.now() >= row.begun_at + self.limit:
            self._end_commitment(session, row, reason=reason)
            return
        proofs.postpone(row, reason=reason, not_before=at)
        if has_ended:
            row.transaction_uid = ""

    def _end_commitment(self, session: Session, row: Proof, *, reason: str, is_offered: bool = True) -> None:
        """Go on without a commitment: by a search, where one is configured; else nothing proves the object.

        With "auto" an object counts as sent only where the destination does not offer the service at all, and has not
        said that it does not keep the object.
        """
        row.reason = reason
        if self.peer.verify:
            proofs.begin_step(row, ProofStep.READ_BACK, now=self.now())
        elif is_offered or row.resends or self.peer.commitment is True:
            proofs.mark_unproven(session, row, reason=reason, now=self.now())
        else:
            proofs.begin_step(row, ProofStep.NONE, now=self.now())

    def _read_back(self, series: tuple[str, str], batch: Sequence[Proof]) -> None:
        """Search the destination for the instances of one series."""
        try:
            uids = [row.sop_instance_uid for row in batch]
            found = self._reach(partial(read_back.find_instances, self.peer, self.config.node, series, uids))
        except PeerError as exc:
            found, reason = set[str](), str(exc)
        else:
            service = self.peer.verify.upper() or "C-FIND"
            reason = f"{service} at {self.peer.name}: {len(found)} of {len(batch)} instances of the series are there"
            _log.info("%s", reason)
        self._update(batch, partial(self._record_search, found=found, reason=reason))

    def _record_search(self, session: Session, row: Proof, *, found: set[str], reason: str) -> None:
        if row.sop_instance_uid in found:
            proofs.mark_proven(session, row, ProofState.VERIFIED, reason=reason, now=self.now())
        elif self.now() >= row.begun_at + self.limit:
            proofs.mark_unproven(session, row, reason=reason, now=self.now())
        else:
            proofs.postpone(row, reason=reason, not_before=self._next_attempt(row))

    def _next_attempt(self, row: Proof) -> datetime:
        return self.now() + draw_backoff(row.attempts + 1, self.config.delivery, self.generator)
