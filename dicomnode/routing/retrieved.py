"""Reception of instances that a peer sends on an association of the node (C-GET)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from db.studies import Sender
from dicomnode.ingest.group_commit import Ledger
from dicomnode.ingest.ingest import InstanceSink, StoreAnnouncement

if TYPE_CHECKING:
    from pynetdicom.events import Event
    from sqlalchemy.orm import Session, sessionmaker

    from dicomnode.config import Config, Peer

__all__ = ["store_handler"]


def store_handler(
    config: Config, sessions: sessionmaker[Session], peer: Peer, now: Callable[[], datetime]
) -> Callable[[Event], int]:
    """Return a handler of EVT_C_STORE that receives the instance and returns its status, as the storage SCP does."""
    config.spool_dir.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(config.spool_dir, sessions, now)
    sender = Sender(peer.ae_title, peer.host)

    def store(event: Event) -> int:
        request, syntax = event.request, event.context.transfer_syntax
        announcement = StoreAnnouncement(request.AffectedSOPClassUID, request.AffectedSOPInstanceUID, syntax)
        sink = InstanceSink(ledger, config.spool, announcement, sender)
        sink.write(request.DataSet.getbuffer())
        status, _ = sink.finish()
        return status

    return store
