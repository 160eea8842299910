"""Retrieval of one series from a peer to this node: C-MOVE, then C-GET, and a count of what has arrived."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from db.models import Instance, Series, Study
from dicomnode.config import Config, Peer
from dicomnode.dimse import queries
from dicomnode.dimse.queries import RetrievalCounts
from dicomnode.errors import PeerRefused
from dicomnode.routing import retrieved

__all__ = ["as_requestor", "count_instances", "retrieve_series"]


def retrieve_series(
    sessions: sessionmaker[Session],
    config: Config,
    peer: Peer,
    study_uid: str,
    series_uid: str,
    *,
    now: Callable[[], datetime],
) -> str:
    """Retrieve a series and return the name of the service that delivered it. Raises PeerError.

    C-MOVE comes first; C-GET follows where the peer does not know this node or sends to another address.
    """
    requestor, own_aet = as_requestor(config), config.node.ae_title

    def check_arrival(sent: RetrievalCounts, service: str) -> None:
        with sessions() as session:
            _check_arrival(peer, sent, count_instances(session, study_uid, series_uid), service)

    try:
        moved = queries.move(peer, study_uid, series_uid=series_uid, destination_aet=own_aet, **requestor)
        check_arrival(moved, f"C-MOVE; where does it think the AE title {own_aet} is?")
        return "C-MOVE"
    except PeerRefused as move_error:
        store = retrieved.store_handler(config, sessions, peer, now)
        try:
            fetched = queries.fetch(peer, study_uid, series_uid=series_uid, on_store=store, **requestor)
            check_arrival(fetched, "C-GET")
            return "C-GET"
        except PeerRefused as get_error:
            raise PeerRefused(f"{move_error}; {get_error}") from None


def count_instances(session: Session, study_uid: str, series_uid: str) -> int:
    """Return the number of instances of a series that are here."""
    rows = select(func.count(Instance.id)).join(Series).join(Study)
    of_series = (Study.study_uid == study_uid, Series.series_uid == series_uid)
    return session.scalar(rows.where(*of_series)) or 0


def as_requestor(config: Config) -> dict[str, Any]:
    """Return the arguments of this node as requestor, as ``dimse.queries`` takes them."""
    node = config.node
    return {"calling_aet": node.ae_title, "timeout_s": node.network_timeout_s, "tls": config.node.tls}


def _check_arrival(peer: Peer, counts: RetrievalCounts, stored: int, service: str) -> None:
    """Raise PeerRefused unless all instances that the peer reports as sent are stored here."""
    sent = counts.completed + counts.warned
    if counts.failed or not sent:
        raise PeerRefused(f"peer {peer.name} gave {sent} of {sent + counts.failed} instances by {service}")
    if stored < sent:
        raise PeerRefused(f"peer {peer.name} sent {sent} instances, {stored} are here, by {service}")
