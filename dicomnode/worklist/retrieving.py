"""Retrieval of the inputs of workitems from the peers that they name (PS3.3 table 10-3b, DICOM Retrieval Sequence).

Only studies of which the node knows nothing are retrieved. What arrives is received as if the peer had sent it, and the
routes take it too. The workitem is not claimed before every series is here whole; the row tells so after a restart.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from datetime import datetime

from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from db import workitems
from db.states import WorkitemState
from dicomnode.backoff import draw_backoff
from dicomnode.config import Config, Peer
from dicomnode.dimse import queries
from dicomnode.errors import NodeError, NotFound
from dicomnode.routing import series_transfer
from dicomnode.worklist import orders
from dicomnode.worklist.orders import Order

__all__ = ["retrieve_due"]

log = logging.getLogger("dicomnode.worklist")

Clock = Callable[[], datetime]


def retrieve_due(
    sessions: sessionmaker[Session], config: Config, *, now: Clock, generator: random.Random | None = None
) -> int:
    """Retrieve the inputs of all workitems that are due, one after the other; return how many have all of them."""
    if not (config.worklist.enabled and config.worklist.performs):
        return 0
    with engines.readers(sessions.kw["bind"])() as session:
        uids = workitems.list_due_retrievals(session, now=now())
    return sum(_retrieve(sessions, config, uid, now, generator or random.Random()) for uid in uids)


def _retrieve(sessions: sessionmaker[Session], config: Config, uid: str, now: Clock, generator: random.Random) -> bool:
    """Retrieve the inputs of a workitem, or postpone that; return whether all are here."""
    try:
        with engines.readers(sessions.kw["bind"])() as session:
            row = workitems.find(session, uid)
            if row is None or row.state is not WorkitemState.SCHEDULED:
                return False
            peer, order = config.find_peer(row.retrieve_from), orders.read_order(uid, row.attributes, config)
        reason = _retrieve_all(sessions, config, peer, order, now)
    except Exception as error:
        reason = str(error) if isinstance(error, NodeError) else f"it broke off with {type(error).__name__}"
        with sessions.begin() as session:
            if (found := workitems.lock(session, uid)) is not None:
                at = now() + draw_backoff(found.retrieve_attempts + 1, config.delivery, generator)
                workitems.postpone_retrieval(session, found, reason=reason, at=at, now=now())
                log.warning("workitem %d: inputs: %s", found.id, reason)
        return False
    with sessions.begin() as session:
        if (found := workitems.lock(session, uid)) is not None:
            workitems.end_retrieval(session, found, reason=reason, now=now())
    return True


def _retrieve_all(sessions: sessionmaker[Session], config: Config, peer: Peer, order: Order, now: Clock) -> str:
    """Retrieve the series that a workitem names, or all of its study; return what came.

    Raises NotFound or PeerError.
    """
    series_uids = sorted(order.series_uids) or _find_series(config, peer, order.study_uid)
    if not series_uids:
        raise NotFound(f"peer {peer.name} has no such study")
    for series_uid in series_uids:
        series_transfer.retrieve_series(sessions, config, peer, order.study_uid, series_uid, now=now)
    return f"{len(series_uids)} series from {peer.name}"


def _find_series(config: Config, peer: Peer, study_uid: str) -> list[str]:
    requestor = series_transfer.as_requestor(config)
    answers = queries.find(peer, {"StudyInstanceUID": study_uid}, level="SERIES", **requestor)
    return sorted(str(each.SeriesInstanceUID) for each in answers)
