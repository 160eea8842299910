"""What a peer sends on an association of ours (C-GET): into the node as if it had been sent here."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from db.studies import Sender
from dicomnode.ingest.ingest import Announced, Ledger, Reception

if TYPE_CHECKING:
    from pynetdicom.events import Event
    from sqlalchemy.orm import Session, sessionmaker

    from dicomnode.config import Config, Peer

__all__ = ["taker"]


def taker(
    config: Config, sessions: sessionmaker[Session], peer: Peer, now: Callable[[], datetime]
) -> Callable[[Event], int]:
    """A handler of EVT_C_STORE that answers with the status; Success means what it means in a C-STORE."""
    config.spool_dir.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(config.spool_dir, sessions, now)
    sender = Sender(peer.ae_title, peer.host)

    def take(event: Event) -> int:
        request, syntax = event.request, event.context.transfer_syntax
        announced = Announced(request.AffectedSOPClassUID, request.AffectedSOPInstanceUID, syntax)
        reception = Reception(ledger, config.spool, announced, sender)
        reception.write(request.DataSet.getbuffer())
        status, _ = reception.finish()
        return status

    return take
