"""Fetching what routing waits for: C-FIND at the route's peer, C-MOVE to ourselves, C-GET where that brings nothing.

Rows (db/retrievals.py) hold each retrieval and its progress: one that a stop interrupted is continued,
and one whose study waits no longer ends. A peer that has none is no error: the study goes without. One that is down is
asked again with back-off for series that the study lacks, and once for an earlier study.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from db import retrievals
from db.models import Instance, Retrieval, Series, Study
from db.states import RetrievalPurpose, RetrievalState
from dicomnode.backoff import backoff
from dicomnode.config import Config, Peer, Route
from dicomnode.dimse import queries
from dicomnode.dimse.queries import RetrievalCounts
from dicomnode.errors import NodeError, NotFound, PeerError, PeerRefused
from dicomnode.routing import missing_series, prior_search, retrieved, series_search
from dicomnode.routing.priors import Examination, present
from dicomnode.routing.received import received
from dicomnode.routing.series_search import Match

__all__ = ["fetch_wanted"]

Clock = Callable[[], datetime]

_log = logging.getLogger(__name__)
_ATTEMPTS = 8
"""So often a peer that fails is asked for a study's missing series, if the time allows it."""


@dataclass(frozen=True)
class _Wanted:
    """A search as the network needs it: who asks whom for what.

    ``study_uid``: of the study that waits; ``holding_uid``: of the one whose series are fetched, once that is known.
    ``now``: for an earlier examination, the present one; ``matches``: else what is lacking.
    """

    id: int
    route: Route
    peer: Peer
    study_uid: str
    state: RetrievalState
    holding_uid: str
    series_uids: tuple[str, ...]
    now: Examination | None = None
    matches: Mapping[str, Match] | None = None


def fetch_wanted(
    sessions: sessionmaker[Session], config: Config, *, now: Clock, generator: random.Random | None = None
) -> int:
    """Take every open search as far as it goes, one after the other; the number of those that brought all."""
    with sessions() as session:
        ids = retrievals.list_due_ids(session, now=now())
    return sum(_search(sessions, config, id, now, generator or random.Random()) for id in ids)


def _search(sessions: sessionmaker[Session], config: Config, id: int, now: Clock, generator: random.Random) -> bool:
    """The door of one search: whatever goes wrong ends or postpones it, for a study waits for that."""
    try:
        with sessions() as session:
            wanted = _read(session, config, session.get_one(Retrieval, id), now())
        if wanted.state is RetrievalState.WANTED:
            wanted = _find(sessions, wanted, config, now)
        reason = _fetch(sessions, wanted, config, now)
    except Exception as error:
        why = str(error) if isinstance(error, NodeError) else f"the search broke off with {type(error).__name__}"
        _log.warning("search %d: %s", id, why)
        with sessions.begin() as session:
            search = session.get_one(Retrieval, id)
            wait = backoff(search.attempts + 1, config.delivery, generator)
            _failed(session, search, config, why, now() + wait if isinstance(error, PeerError) else None, now())
        return False
    with sessions.begin() as session:
        retrievals.mark_arrived(session, session.get_one(Retrieval, id), reason=reason, now=now())
    return True


def _failed(
    session: Session, search: Retrieval, config: Config, why: str, again: datetime | None, now: datetime
) -> None:
    """Once more at ``again``, where the study still waits by then."""
    lasting = search.purpose is RetrievalPurpose.SERIES and search.attempts + 1 < _ATTEMPTS
    if again and lasting and again < missing_series.overdue_at(search, _route(config, search)):
        retrievals.postpone(session, search, reason=why, not_before=again, now=now)
    else:
        retrievals.mark_ended(session, search, reason=why, now=now)


def _read(session: Session, config: Config, search: Retrieval, now: datetime) -> _Wanted:
    """Raises NotFound where nobody waits for it any more."""
    study, route = search.study, _route(config, search)
    if not retrievals.is_still_needed(session, search):
        raise NotFound(f"study {study.id} waits no longer")
    left = tuple(uid for uid in search.series_uids if uid not in (search.arrived_uids or ()))
    holding = search.prior_study_uid or study.study_uid
    wanted = _Wanted(search.id, route, config.find_peer(search.peer), study.study_uid, search.state, holding, left)
    if search.purpose is RetrievalPurpose.SERIES:
        return _read_series(session, study, search, wanted, now)
    if now >= (study.completed_at or now) + timedelta(seconds=route.prior_wait_s):
        raise NotFound(f"not asked within {route.prior_wait_s:g} s")
    who = present(received(session, study))
    if isinstance(who, str):
        raise NotFound(who)
    return replace(wanted, now=who)


def _read_series(session: Session, study: Study, search: Retrieval, wanted: _Wanted, now: datetime) -> _Wanted:
    if now >= missing_series.overdue_at(search, wanted.route):
        last = f": {search.reason}" if search.reason else ""
        raise NotFound(f"not here within {wanted.route.with_wait_s:g} s{last}")
    lacking = missing_series.lacking(wanted.route, received(session, study))
    if not lacking and search.state is RetrievalState.WANTED:
        raise NotFound("all are here by now")
    return replace(wanted, matches={name: wanted.route.with_[name] for name in lacking})


def _route(config: Config, search: Retrieval) -> Route:
    """The route as it is configured now. Raises NotFound."""
    series = search.purpose is RetrievalPurpose.SERIES
    for route in config.routes:
        if route.name == search.route and (route.with_ if series else route.prior):
            return route
    what = "further series" if series else "earlier study"
    raise NotFound(f"route {search.route} wants no {what} any more")


def _find(sessions: sessionmaker[Session], wanted: _Wanted, config: Config, now: Clock) -> _Wanted:
    """Ask the peer, and write down what it names. Raises NotFound or PeerError."""
    asking, prior_uid = _asking(config), ""
    if wanted.now is not None:
        prior_uid, series_uids = prior_search.find(
            wanted.peer, wanted.route, wanted.study_uid, wanted.now, asking=asking
        )
    else:
        lacking = wanted.matches or {}
        named = series_search.find(wanted.peer, wanted.study_uid, lacking, asking=asking)
        series_uids = tuple(dict.fromkeys(uid for uids in named.values() for uid in uids))
        if not series_uids:
            raise NotFound(f"none there for {', '.join(lacking)}")
    with sessions.begin() as session:
        search = session.get_one(Retrieval, wanted.id)
        if wanted.matches is not None:
            series_uids = _not_here(session, search.study, wanted.matches, series_uids)
        retrievals.start_fetching(session, search, prior_study_uid=prior_uid, series_uids=series_uids, now=now())
    return replace(wanted, holding_uid=prior_uid or wanted.study_uid, series_uids=series_uids)


def _not_here(session: Session, study: Study, lacking: Iterable[str], series_uids: tuple[str, ...]) -> tuple[str, ...]:
    """Those that neither are here whole nor were made here. Raises NotFound without any."""
    here = set(session.scalars(select(Series.series_uid).where(Series.study_id == study.id)))
    known = here - retrievals.find_partial_series(session, study) | retrievals.find_own_results(session, series_uids)
    left = tuple(uid for uid in series_uids if uid not in known)
    if not left:
        raise NotFound(f"none there for {', '.join(lacking)} besides what is known here")
    return left


def _fetch(sessions: sessionmaker[Session], wanted: _Wanted, config: Config, now: Clock) -> str:
    """Series by series to our own receiver; in words what came. Raises PeerError."""
    ways, refused = set[str](), list[PeerRefused]()
    for series_uid in wanted.series_uids:
        try:
            ways.add(_fetch_one(sessions, wanted, series_uid, config, now))
        except PeerRefused as error:  # the others may come all the same
            refused.append(error)
            continue
        with sessions.begin() as session:
            retrievals.mark_series_arrived(session, session.get_one(Retrieval, wanted.id), series_uid)
    if refused:
        raise refused[0]
    with sessions() as session:
        fetched = session.get_one(Retrieval, wanted.id).series_uids
        here = sum(_count(session, wanted, uid) for uid in fetched)
    by = f" by {' and '.join(sorted(ways))}" if ways else ""
    return f"{here} instances in {len(fetched)} series from {wanted.peer.name}{by}"


def _fetch_one(sessions: sessionmaker[Session], wanted: _Wanted, series_uid: str, config: Config, now: Clock) -> str:
    """By C-MOVE; a peer that does not know us, or thinks that we are elsewhere, is asked by C-GET. Which it was."""
    asking, us = _asking(config), config.node.ae_title
    study_uid = wanted.holding_uid
    try:
        moved = queries.move(wanted.peer, study_uid, series_uid=series_uid, destination_aet=us, **asking)
        _check(sessions, wanted, series_uid, moved, f"C-MOVE; where does it think the AE title {us} is?")
        return "C-MOVE"
    except PeerRefused as by_move:
        take = retrieved.store_handler(config, sessions, wanted.peer, now)
        try:
            got = queries.fetch(wanted.peer, study_uid, series_uid=series_uid, on_store=take, **asking)
            _check(sessions, wanted, series_uid, got, "C-GET")
            return "C-GET"
        except PeerRefused as by_get:
            raise PeerRefused(f"{by_move}; {by_get}") from None


def _check(
    sessions: sessionmaker[Session], wanted: _Wanted, series_uid: str, fetched: RetrievalCounts, how: str
) -> None:
    """What the peer says that it has sent has to be here. Raises PeerRefused."""
    sent = fetched.completed + fetched.warned
    if fetched.failed or not sent:
        raise PeerRefused(f"peer {wanted.peer.name} gave {sent} of {sent + fetched.failed} instances by {how}")
    with sessions() as session:
        here = _count(session, wanted, series_uid)
    if here < sent:
        raise PeerRefused(f"peer {wanted.peer.name} sent {sent} instances, {here} are here, by {how}")


def _count(session: Session, wanted: _Wanted, series_uid: str) -> int:
    rows = select(func.count(Instance.id)).join(Series).join(Study)
    mine = (Study.study_uid == wanted.holding_uid, Series.series_uid == series_uid)
    return session.scalar(rows.where(*mine)) or 0


def _asking(config: Config) -> dict[str, Any]:
    node = config.node
    return {"calling_aet": node.ae_title, "timeout_s": node.network_timeout_s, "tls": config.node.tls}
