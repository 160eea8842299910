"""Reports on storage commitments over associations of the node's own, repeated until the requester has them."""

from __future__ import annotations

import logging
import os
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pynetdicom import build_context, build_role
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from db import commitments, jobs
from dicomnode.backoff import draw_backoff
from dicomnode.commitment import information
from dicomnode.dimse.associations import association
from dicomnode.errors import PeerError, PeerUnreachable

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from sqlalchemy.orm import Session, sessionmaker

    from db.commitments import ClaimedReport
    from dicomnode.config import Config, Peer

__all__ = ["reclaim_interrupted", "report_due"]

_log = logging.getLogger(__name__)

_BATCH = 50
_SUCCESS = 0x0000

Clock = Callable[[], datetime]


def report_due(
    sessions: sessionmaker[Session], config: Config, *, now: Clock, generator: random.Random | None = None
) -> int:
    """Send all due reports, one association for each requester; return the number that was answered with success."""
    sweep = _ReportSweep(sessions, config, now, generator or random.Random())
    with sessions.begin() as session:
        moment = now()
        commitments.OUTBOX.expire_leases(session, now=moment)
        too_old = moment - timedelta(hours=config.delivery.give_up_after_h)
        commitments.give_up_old(session, created_before=too_old, now=moment)
        titles = commitments.list_due_titles(session, now=moment)
    peers = {peer.ae_title: peer for peer in reversed(config.peers)}
    for title in titles:
        if title not in peers:
            _give_up(sessions, title, now)
    return sum(sweep.report(peers[title]) for title in titles if title in peers)


def reclaim_interrupted(sessions: sessionmaker[Session], *, now: datetime) -> int:
    """Free the reports that a former process of this machine was sending when it died; return their number."""
    with sessions.begin() as session:
        return commitments.OUTBOX.reclaim(session, machine=socket.gethostname(), now=now)


def _give_up(sessions: sessionmaker[Session], ae_title: str, now: Clock) -> None:
    """Give up the reports to a requester without an address. It gets one when it asks again."""
    reason = f"no peer has the AE title {ae_title}: its address under [[peers]] is where the report goes"
    with sessions.begin() as session:
        count = commitments.give_up_due(session, ae_title, reason=reason, now=now())
    _log.warning("commitment: %d reports for %s are given up: %s", count, ae_title, reason)


class _ReportSweep:
    """One sweep of reports: its sessions, configuration, time and source of randomness."""

    def __init__(self, sessions: sessionmaker[Session], config: Config, now: Clock, generator: random.Random) -> None:
        self.sessions, self.config, self.now, self.generator = sessions, config, now, generator
        self.worker = jobs.worker_name(os.getpid())

    def report(self, peer: Peer) -> int:
        """Send the due reports of one requester; return the number that was answered with success."""
        with self.sessions.begin() as session:
            lease_s = 60.0 + 3 * self.config.node.network_timeout_s
            batch = commitments.claim_due(
                session, peer.ae_title, worker=self.worker, lease_s=lease_s, limit=_BATCH, now=self.now()
            )
        waiting = {each.request_id: each for each in batch}
        count, reason = 0, "no answer"
        try:
            for report, refusal in self._send(peer, batch):
                del waiting[report.request_id]
                if refusal:
                    self._record_failures(peer, [report], refusal)
                count += not refusal
        except PeerError as exc:
            reason = str(exc)
        self._record_failures(peer, list(waiting.values()), reason)
        return count

    def _send(self, peer: Peer, batch: Sequence[ClaimedReport]) -> Iterator[tuple[ClaimedReport, str]]:
        """Send reports over one association; yield each with the reason why its requester did not take it, or "".

        Raises PeerError where there is no association, or it ends.
        """
        contexts = [build_context(StorageCommitmentPushModel, information.SYNTAXES)]
        node = self.config.node
        with association(
            peer,
            contexts,
            calling_aet=node.ae_title,
            timeout_s=node.network_timeout_s,
            tls=node.tls,
            roles=[build_role(StorageCommitmentPushModel, scp_role=True)],  # PS3.4 J.3.3: the SCP opens the association
        ) as assoc:
            for number, report in enumerate(batch, start=1):
                refusal = self._send_one(peer, assoc, report, number)
                if not refusal:
                    self._record_sent(peer, report)
                yield report, refusal

    def _record_sent(self, peer: Peer, report: ClaimedReport) -> None:
        with self.sessions.begin() as session:
            how = f"over a new association with {peer.name}"
            commitments.mark_sent(session, report.request_id, worker=self.worker, how=how, now=self.now())
        _log.info("commitment request %d: reported to %s", report.request_id, peer.name)

    def _send_one(self, peer: Peer, assoc: Association, report: ClaimedReport, number: int) -> str:
        """Send one report; return why the requester did not take it, or "". Raises PeerUnreachable."""
        event_type, ds = information.make_report(report.transaction_uid, report.verdicts, self.config.node.ae_title)
        try:
            answer, _ = assoc.send_n_event_report(
                ds, event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance, msg_id=number
            )
        except RuntimeError:  # the association is no longer established
            raise PeerUnreachable(f"peer {peer.name} ended the association before it had the report") from None
        if "Status" not in answer:
            raise PeerUnreachable(f"peer {peer.name} did not answer the report")
        if answer.Status != _SUCCESS:
            return f"peer {peer.name} answered the report with status 0x{answer.Status:04X}"
        return ""

    def _record_failures(self, peer: Peer, reports: Sequence[ClaimedReport], reason: str) -> None:
        for report in reports:
            retry_at = self.now() + draw_backoff(report.attempts, self.config.delivery, self.generator)
            with self.sessions.begin() as session:
                commitments.mark_failed(
                    session, report.request_id, worker=self.worker, reason=reason, retry_at=retry_at, now=self.now()
                )
        if reports:
            _log.warning("commitment: %d reports for %s wait: %s", len(reports), peer.ae_title, reason)
