"""Delivery of results to their destinations, repeated until they arrive: one association per destination and batch.

All state is in rows. The leases of a sender that dies lapse, and an object without an answer is sent again, which is
safe because a result keeps its UIDs. No object leaves the node that is not marked as synthetic.
"""

from __future__ import annotations

import logging
import os
import random
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom.uid import UID

from db import deliveries, destinations, jobs
from dicomnode.backoff import draw_backoff
from dicomnode.commitment import proving
from dicomnode.deidentify import outgoing
from dicomnode.delivery import gate, negotiation
from dicomnode.dimse import peers
from dicomnode.dimse.peers import Outcome, StoreResult
from dicomnode.errors import ConfigError, InputRefused, NotAllowed, NotMarked, PeerError, StorageDamaged
from dicomnode.storage import spool

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, sessionmaker

    from db.deliveries import ClaimedDelivery
    from dicomnode.config import Config, Peer

__all__ = ["deliver_due", "reclaim_interrupted"]

log = logging.getLogger("dicomnode.delivery.delivery")

Clock = Callable[[], datetime]

_BATCH = 100
_PROBE = 5  # more than one, so that an object which breaks every association does not hold up the others


def deliver_due(
    sessions: sessionmaker[Session], config: Config, *, now: Clock, generator: random.Random | None = None
) -> int:
    """Send all due objects, to all destinations at once; return the number of objects that were acknowledged."""
    sweep = _DeliverySweep(sessions, config, now, generator or random.Random())
    with sessions.begin() as session:
        moment = now()
        deliveries.OUTBOX.expire_leases(session, now=moment)
        too_old = moment - timedelta(hours=config.delivery.give_up_after_h)
        deliveries.give_up_old(session, created_before=too_old, now=moment)
        claimed = [(peer, sweep.claim(session, peer)) for peer in config.peers]
    work = [(peer, batch) for peer, batch in claimed if batch]
    if not work:
        return 0
    with ThreadPoolExecutor(max_workers=len(work), thread_name_prefix="delivery") as pool:
        return sum(pool.map(lambda one: sweep.send(*one), work))


def reclaim_interrupted(sessions: sessionmaker[Session], *, now: datetime) -> int:
    """Free the deliveries that a former process of this machine was sending when it died; return their number."""
    with sessions.begin() as session:
        return deliveries.OUTBOX.reclaim(session, machine=socket.gethostname(), now=now)


class _DeliverySweep:
    """One sweep of deliveries: its sessions, configuration, time and source of randomness."""

    def __init__(self, sessions: sessionmaker[Session], config: Config, now: Clock, generator: random.Random) -> None:
        self.sessions, self.config, self.now, self.generator = sessions, config, now, generator
        self.worker = jobs.worker_name(os.getpid())

    def claim(self, session: Session, peer: Peer) -> list[ClaimedDelivery]:
        """Claim a batch under a lease: a few objects where the breaker was open, to probe whether the peer is back."""
        breaker = destinations.load_breaker(session, peer.name)
        if breaker.is_open(self.now()):
            return []
        return deliveries.claim_due(
            session,
            worker=self.worker,
            lease_s=60.0 + 3 * self.config.node.network_timeout_s,
            limit=_PROBE if breaker.open_until else _BATCH,
            now=self.now(),
            destination=peer.name,
        )

    def send(self, peer: Peer, batch: Sequence[ClaimedDelivery]) -> int:
        """Check, send and record one batch; return the number of objects that arrived."""
        with outgoing.outgoing_copies(peer, self.config) as copied:
            by_path: dict[Path, list[ClaimedDelivery]] = {}
            for due in self._apply_fallbacks(peer, batch):
                if path := self._prepare_file(due, copied):
                    by_path.setdefault(path, []).append(due)
            return self._store(peer, by_path) if by_path else 0

    def _store(self, peer: Peer, by_path: Mapping[Path, Sequence[ClaimedDelivery]]) -> int:
        def record(result: StoreResult) -> None:
            for due in by_path[result.path]:
                self._record(peer, due, result)

        results = peers.store(
            peer,
            by_path,
            calling_aet=self.config.node.ae_title,
            on_result=record,
            timeout_s=self.config.node.network_timeout_s,
            tls=self.config.node.tls,
        )
        self._log(peer, results, by_path)
        self._update_breaker(peer, results)
        return sum(len(by_path[result.path]) for result in results if result.is_stored)

    def _apply_fallbacks(self, peer: Peer, batch: Sequence[ClaimedDelivery]) -> Sequence[ClaimedDelivery]:
        """Return the batch without objects that the peer does not accept and whose spare kinds it accepts.

        This concerns jobs that ended before the peer ever answered; their spare objects become due instead. The peer is
        queried before anything is sent, because results refer to each other.
        """
        with self.sessions() as session:
            spares = deliveries.find_spare_classes(session, peer.name, {due.job_id for due in batch})
        if not spares:
            return batch
        try:
            accepted = negotiation.query_accepted_classes(peer, self.config)
        except PeerError:
            return batch
        refused = {
            due.job_id: due.sop_class_uid
            for due in batch
            if due.sop_class_uid in negotiation.NEGOTIABLE_CLASSES - accepted
        }
        falling = {job_id: uid for job_id, uid in refused.items() if spares.get(job_id, set()) & accepted}
        with self.sessions.begin() as session:
            destinations.record_accepted_classes(session, peer.name, accepted, now=self.now())
            for job_id, uid in falling.items():
                reason = f"not sent: {peer.name} does not take {UID(uid).name}; what it takes is sent instead"
                deliveries.fall_back(session, job_id, peer.name, reason=reason, now=self.now())
        return [due for due in batch if due.job_id not in falling]

    def _prepare_file(self, due: ClaimedDelivery, copied: Callable[[Path], Path]) -> Path | None:
        """Return the file to send, the stored one or its copy; None, with the failure recorded, if it may not go."""
        path = spool.path(self.config.spool_dir, due.sha256)
        try:
            gate.check_outgoing_result(path, due.sha256)
            return copied(path)
        except (NotMarked, InputRefused) as exc:
            self._record_failure(due, f"not sent: {exc}", retry_at=None)
        except (StorageDamaged, ConfigError, NotAllowed) as exc:
            self._record_failure(due, f"not sent: {exc}", retry_at=self._retry_at(due))
        return None

    def _record(self, peer: Peer, due: ClaimedDelivery, result: StoreResult) -> None:
        if not result.is_stored:
            self._record_failure(due, result.text, retry_at=self._retry_at(due))
            return
        sent = proving.read_identifiers(result.path) if proving.needs_proof(peer) else None
        with self.sessions.begin() as session:
            is_ours = deliveries.mark_delivered(session, due.delivery_id, worker=self.worker, now=self.now())
            if sent is not None and is_ours:
                proving.begin_proof(session, peer, due.delivery_id, sent, now=self.now())

    def _record_failure(self, due: ClaimedDelivery, reason: str, *, retry_at: datetime | None) -> None:
        with self.sessions.begin() as session:
            deliveries.mark_failed(
                session, due.delivery_id, worker=self.worker, reason=reason, retry_at=retry_at, now=self.now()
            )

    def _retry_at(self, due: ClaimedDelivery) -> datetime:
        return self.now() + draw_backoff(due.attempts, self.config.delivery, self.generator)

    @staticmethod
    def _log(peer: Peer, results: Sequence[StoreResult], by_path: Mapping[Path, Sequence[ClaimedDelivery]]) -> None:
        """Log one line for each job, and the first failure: statuses and addresses, without the peer's comments."""
        attempts = Counter(due.job_id for result in results for due in by_path[result.path])
        arrived = Counter(due.job_id for result in results if result.is_stored for due in by_path[result.path])
        for job_id, count in sorted(attempts.items()):
            log.info("job %d: %d of %d objects delivered to %s", job_id, arrived[job_id], count, peer.name)
        if failed := [result for result in results if not result.is_stored]:
            log.warning("not delivered to %s: %s", peer.name, failed[0].text)

    def _update_breaker(self, peer: Peer, results: Sequence[StoreResult]) -> None:
        """Record the peer as available where it answered any object, even with a refusal; else as failed."""
        tried = [result for result in results if result.outcome is not Outcome.UNREADABLE]
        if not tried:
            return
        limits = self.config.delivery
        with self.sessions.begin() as session:
            if any(result.status is not None for result in tried):
                destinations.record_success(session, peer.name, now=self.now())
                return
            destinations.record_failure(
                session,
                peer.name,
                threshold=limits.breaker_failures,
                open_s=limits.breaker_open_s,
                open_max_s=max(limits.breaker_open_s, limits.backoff_max_s),
                reason=tried[0].text,
                now=self.now(),
            )
