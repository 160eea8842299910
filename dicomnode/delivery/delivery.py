"""Results to their destinations: tried until they are there, one association for a destination and a batch.

All state is in rows: a sender that dies leaves leases that lapse, and what got no answer is sent again, which is safe
because a result keeps its UIDs. Nothing goes on the wire that is not marked as synthetic.
"""

from __future__ import annotations

import logging
import os
import random
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom.uid import UID

from db import deliveries, destinations, jobs
from dicomnode.backoff import draw_backoff
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

__all__ = ["deliver_due", "resume"]

log = logging.getLogger("dicomnode.delivery.delivery")

_BATCH = 100
_PROBE = 5  # more than one, so that an object which breaks every association does not hold up the others


def deliver_due(
    sessions: sessionmaker[Session], config: Config, *, now: datetime, generator: random.Random | None = None
) -> int:
    """Send what is due, to all destinations at once; returns how many objects their destinations acknowledged."""
    courier = _Courier(sessions, config, now, generator or random.Random())
    with sessions.begin() as session:
        deliveries.OUTBOX.expire_leases(session, now=now)
        too_old = now - timedelta(hours=config.delivery.give_up_after_h)
        deliveries.give_up_old(session, created_before=too_old, now=now)
        claimed = [(peer, courier.claim(session, peer)) for peer in config.peers]
    work = [(peer, batch) for peer, batch in claimed if batch]
    if not work:
        return 0
    with ThreadPoolExecutor(max_workers=len(work), thread_name_prefix="delivery") as pool:
        return sum(pool.map(lambda one: courier.send(*one), work))


def resume(sessions: sessionmaker[Session], *, now: datetime) -> int:
    """When the node starts: take back what its predecessor was sending when it died."""
    with sessions.begin() as session:
        return deliveries.OUTBOX.reclaim(session, machine=socket.gethostname(), now=now)


class _Courier:
    """One sweep's sessions, configuration, moment and randomness."""

    def __init__(
        self, sessions: sessionmaker[Session], config: Config, now: datetime, generator: random.Random
    ) -> None:
        self.sessions, self.config, self.now, self.generator = sessions, config, now, generator
        self.worker = jobs.worker_name(os.getpid())

    def claim(self, session: Session, peer: Peer) -> list[ClaimedDelivery]:
        """A batch under a lease; a few objects where the breaker was open, to see whether the peer is back."""
        breaker = destinations.load_breaker(session, peer.name)
        if breaker.is_open(self.now):
            return []
        return deliveries.claim_due(
            session,
            worker=self.worker,
            lease_s=60.0 + 3 * self.config.node.network_timeout_s,
            limit=_PROBE if breaker.open_until else _BATCH,
            now=self.now,
            destination=peer.name,
        )

    def send(self, peer: Peer, batch: Sequence[ClaimedDelivery]) -> int:
        """Check, send and record one batch; returns how many are there now."""
        with outgoing.outgoing_copies(peer, self.config) as copied:
            by_path: dict[Path, list[ClaimedDelivery]] = {}
            for due in self._wanted(peer, batch):
                if path := self._fit(due, copied):
                    by_path.setdefault(path, []).append(due)
            return self._store(peer, by_path) if by_path else 0

    def _store(self, peer: Peer, by_path: Mapping[Path, Sequence[ClaimedDelivery]]) -> int:
        def record(result: StoreResult) -> None:
            for due in by_path[result.path]:
                self._record(due, result)

        results = peers.store(
            peer,
            by_path,
            calling_aet=self.config.node.ae_title,
            on_result=record,
            timeout_s=self.config.node.network_timeout_s,
            tls=self.config.node.tls,
        )
        self._log(peer, results)
        self._tell_breaker(peer, results)
        return sum(len(by_path[result.path]) for result in results if result.is_stored)

    def _wanted(self, peer: Peer, batch: Sequence[ClaimedDelivery]) -> Sequence[ClaimedDelivery]:
        """Without those of jobs that ended when nobody knew what the peer takes, if it turns out to take the spare
        kinds only: these are due instead. Asked before anything is sent, for results refer to each other."""
        with self.sessions() as session:
            spares = deliveries.find_spare_classes(session, peer.name, {due.job_id for due in batch})
        if not spares:
            return batch
        try:
            taken = negotiation.ask(peer, self.config)
        except PeerError:
            return batch
        refused = {due.job_id: due.sop_class_uid for due in batch if due.sop_class_uid in negotiation.CHOICES - taken}
        falling = {job_id: uid for job_id, uid in refused.items() if spares.get(job_id, set()) & taken}
        with self.sessions.begin() as session:
            destinations.record_accepted_classes(session, peer.name, taken, now=self.now)
            for job_id, uid in falling.items():
                reason = f"not sent: {peer.name} does not take {UID(uid).name}; what it takes is sent instead"
                deliveries.fall_back(session, job_id, peer.name, reason=reason, now=self.now)
        return [due for due in batch if due.job_id not in falling]

    def _fit(self, due: ClaimedDelivery, copied: Callable[[Path], Path]) -> Path | None:
        """What to send, if the file is what its row says and carries every mark: the file, or its copy."""
        path = spool.path(self.config.spool_dir, due.sha256)
        try:
            gate.check(path, due.sha256)
            return copied(path)
        except (NotMarked, InputRefused) as exc:
            self._failed(due, f"not sent: {exc}", retry_at=None)
        except (StorageDamaged, ConfigError, NotAllowed) as exc:
            self._failed(due, f"not sent: {exc}", retry_at=self._later(due))
        return None

    def _record(self, due: ClaimedDelivery, result: StoreResult) -> None:
        if not result.is_stored:
            self._failed(due, result.text, retry_at=self._later(due))
            return
        with self.sessions.begin() as session:
            deliveries.mark_delivered(session, due.delivery_id, worker=self.worker, now=self.now)

    def _failed(self, due: ClaimedDelivery, reason: str, *, retry_at: datetime | None) -> None:
        with self.sessions.begin() as session:
            deliveries.mark_failed(
                session, due.delivery_id, worker=self.worker, reason=reason, retry_at=retry_at, now=self.now
            )

    def _later(self, due: ClaimedDelivery) -> datetime:
        return self.now + draw_backoff(due.attempts, self.config.delivery, self.generator)

    @staticmethod
    def _log(peer: Peer, results: Sequence[StoreResult]) -> None:
        """One line for a batch; a result's text holds statuses and addresses, its comment is left out."""
        left = [result for result in results if not result.is_stored]
        log.info("delivery: %d of %d objects are at %s", len(results) - len(left), len(results), peer.name)
        if left:
            log.warning("delivery: %s to %s: %s", left[0].outcome, peer.name, left[0].text)

    def _tell_breaker(self, peer: Peer, results: Sequence[StoreResult]) -> None:
        """A peer that refuses an object is there; one that answers nothing is not."""
        tried = [result for result in results if result.outcome is not Outcome.UNREADABLE]
        if not tried:
            return
        limits = self.config.delivery
        with self.sessions.begin() as session:
            if any(result.status is not None for result in tried):
                destinations.record_success(session, peer.name, now=self.now)
                return
            destinations.record_failure(
                session,
                peer.name,
                threshold=limits.breaker_failures,
                open_s=limits.breaker_open_s,
                open_max_s=max(limits.breaker_open_s, limits.backoff_max_s),
                now=self.now,
            )
