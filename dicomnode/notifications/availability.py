"""Instance Availability Notification as SCU (PS3.4 annex R): peers learn where the results of a job can be retrieved.

The rows are those of other notifications: one for each peer and job, written with the last delivery, and repeated until
the peer has it. A retry creates the same SOP Instance, so the peer can drop what it has already.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset
from pynetdicom import build_context
from pynetdicom.sop_class import InstanceAvailabilityNotification

from db import jobs, notifications
from dicomnode import uids
from dicomnode.backoff import draw_backoff
from dicomnode.dimse.associations import association
from dicomnode.errors import PeerError, PeerRefused, PeerUnreachable

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from sqlalchemy.orm import Session, sessionmaker

    from db.notifications import ClaimedNotification, DeliveredObject
    from dicomnode.config import Config, Peer

__all__ = ["announce_due", "describe_availability"]

_log = logging.getLogger(__name__)

_BATCH = 20
_SYNTAXES = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]
_NOTHING_TO_SAY = "not notified: no peer holds objects that are not de-identified copies"
_TAKEN = (0x0000, 0x0111)  # duplicate SOP Instance: of a notification sent again

Clock = Callable[[], datetime]


def announce_due(
    sessions: sessionmaker[Session], config: Config, *, now: Clock, generator: random.Random | None = None
) -> int:
    """Send the notifications that are due, one association for each peer; return how many were taken."""
    count = 0
    for peer in config.peers:
        if peer.availability_notification:
            count += _Announcer(sessions, config, peer, now, generator or random.Random()).run()
    return count


def describe_availability(
    study_uid: str, objects: Sequence[DeliveredObject], retrieve_ae_titles: dict[str, str]
) -> Dataset:
    """Return the attributes of PS3.4 table R.3.2-1 for objects of one study.

    ``retrieve_ae_titles``: AE title by destination; an object that is at none of them is left out.
    """
    ds = Dataset()
    ds.ReferencedPerformedProcedureStepSequence = []
    ds.StudyInstanceUID = study_uid
    by_series: dict[str, list[Dataset]] = {}
    for each in objects:
        titles = [retrieve_ae_titles[name] for name in each.destinations if name in retrieve_ae_titles]
        if not titles:
            continue
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = each.sop_class_uid, each.sop_instance_uid
        item.InstanceAvailability, item.RetrieveAETitle = "ONLINE", titles
        by_series.setdefault(each.series_uid, []).append(item)
    ds.ReferencedSeriesSequence = [_make_series(uid, items) for uid, items in by_series.items()]
    return ds


def _make_series(series_uid: str, items: list[Dataset]) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedSOPSequence = series_uid, items
    return series


class _Announcer:
    """One sweep of notifications to one peer."""

    def __init__(
        self, sessions: sessionmaker[Session], config: Config, peer: Peer, now: Clock, generator: random.Random
    ) -> None:
        self.sessions, self.config, self.peer, self.now, self.generator = sessions, config, peer, now, generator
        self.worker = jobs.worker_name(os.getpid())

    def run(self) -> int:
        """Send the due notifications; return how many were taken."""
        lease_s = 60.0 + 3 * self.config.node.network_timeout_s
        with self.sessions.begin() as session:
            batch = notifications.claim_due(
                session,
                name=self.peer.availability_name,
                worker=self.worker,
                lease_s=lease_s,
                limit=_BATCH,
                now=self.now(),
            )
        waiting = {due.notification_id: due for due in batch}
        reason, count = "", 0
        try:
            if batch:
                count = self._send(waiting)
        except PeerError as exc:
            reason = str(exc)
        for due in waiting.values():
            self._record_failure(due, reason)
        return count

    def _send(self, waiting: dict[int, ClaimedNotification]) -> int:
        """Send over one association, and remove from ``waiting`` what was answered. Raises PeerError."""
        node, count = self.config.node, 0
        contexts = [build_context(InstanceAvailabilityNotification, _SYNTAXES)]
        with association(
            self.peer, contexts, calling_aet=node.ae_title, timeout_s=node.network_timeout_s, tls=node.tls
        ) as assoc:
            for number, due in enumerate(list(waiting.values()), start=1):
                try:
                    note = self._send_one(assoc, due, number)
                except PeerRefused as exc:
                    self._record_failure(waiting.pop(due.notification_id), str(exc))
                else:
                    self._record_sent(waiting.pop(due.notification_id), note)
                    count += 1
        return count

    def _send_one(self, assoc: Association, due: ClaimedNotification, number: int) -> str:
        """Send one notification; return a remark on it, or "".

        Raises PeerRefused for another status than success, PeerUnreachable without one.
        """
        with self.sessions() as session:
            objects = notifications.list_delivered(session, due.job_id)
        titles = {peer.name: peer.ae_title for peer in self.config.peers if not peer.deidentify}
        ds = describe_availability(due.subject.study_uid, objects, titles)
        if not ds.ReferencedSeriesSequence:
            return _NOTHING_TO_SAY
        uid = uids.derive("availability", due.event_id)
        try:
            answer, _ = assoc.send_n_create(ds, InstanceAvailabilityNotification, uid, msg_id=number)
        except RuntimeError:  # the association is no longer established
            raise PeerUnreachable(f"peer {self.peer.name} ended the association before the notification") from None
        if "Status" not in answer:
            raise PeerUnreachable(f"peer {self.peer.name} did not answer the notification of availability")
        if answer.Status not in _TAKEN:
            raise PeerRefused(f"peer {self.peer.name} answered the notification with status 0x{answer.Status:04X}")
        return ""

    def _record_sent(self, due: ClaimedNotification, note: str) -> None:
        with self.sessions.begin() as session:
            notifications.mark_sent(session, due.notification_id, worker=self.worker, note=note, now=self.now())
        _log.info("job %d: %s", due.job_id, note or f"availability notified to {self.peer.name}")

    def _record_failure(self, due: ClaimedNotification, reason: str) -> None:
        _log.warning("notification %d to %s: %s", due.notification_id, due.name, reason)
        retry_at = self.now() + draw_backoff(due.attempts, self.config.delivery, self.generator)
        with self.sessions.begin() as session:
            notifications.mark_failed(
                session, due.notification_id, worker=self.worker, reason=reason, retry_at=retry_at, now=self.now()
            )
