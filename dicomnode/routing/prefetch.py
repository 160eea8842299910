"""Retrieval of the series that routing waits for: C-FIND at the route's peer, C-MOVE to this node, then C-GET.

Rows (db/retrievals.py) hold each retrieval and its progress: one that a stop interrupted is continued, and one whose
study no longer waits ends. A peer without such series is no error: the study is routed without them. A peer that is
down is asked again with back-off for missing series, and only once for a prior examination.
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
from dicomnode.backoff import draw_backoff
from dicomnode.config import Config, Peer, Route
from dicomnode.dimse import queries
from dicomnode.dimse.queries import RetrievalCounts
from dicomnode.errors import NodeError, NotFound, PeerError, PeerRefused
from dicomnode.routing import missing_series, prior_search, retrieved, series_search
from dicomnode.routing.examination import Examination
from dicomnode.routing.series_search import Conditions
from dicomnode.routing.study_snapshot import StudySnapshot

__all__ = ["run_pending_retrievals"]

Clock = Callable[[], datetime]

_log = logging.getLogger(__name__)
_ATTEMPTS = 8
"""The largest number of attempts at a failing peer for a study's missing series, as far as the time allows."""


@dataclass(frozen=True)
class _Request:
    """A retrieval as the network needs it.

    ``study_uid``: the waiting study; ``source_study_uid``: the study whose series are retrieved. For a prior
    examination ``current`` is the examination of the waiting study; for missing series ``conditions`` are those of the
    unmatched inputs, by input name.
    """

    id: int
    route: Route
    peer: Peer
    study_uid: str
    state: RetrievalState
    source_study_uid: str
    series_uids: tuple[str, ...]
    current: Examination | None = None
    conditions: Mapping[str, Conditions] | None = None


def run_pending_retrievals(
    sessions: sessionmaker[Session], config: Config, *, now: Clock, generator: random.Random | None = None
) -> int:
    """Advance every open retrieval as far as possible, one after the other; return the number of those completed."""
    with sessions() as session:
        ids = retrievals.list_due_ids(session, now=now())
    return sum(_run(sessions, config, id, now, generator or random.Random()) for id in ids)


def _run(sessions: sessionmaker[Session], config: Config, id: int, now: Clock, generator: random.Random) -> bool:
    """Run one retrieval and return whether it completed; any error ends or postpones it, because a study waits."""
    try:
        with sessions() as session:
            request = _load_request(session, config, session.get_one(Retrieval, id), now())
        if request.state is RetrievalState.WANTED:
            request = _find_series(sessions, request, config, now)
        reason = _retrieve_all(sessions, request, config, now)
    except Exception as error:
        reason = str(error) if isinstance(error, NodeError) else f"the search broke off with {type(error).__name__}"
        _log.warning("search %d: %s", id, reason)
        with sessions.begin() as session:
            retrieval = session.get_one(Retrieval, id)
            wait = draw_backoff(retrieval.attempts + 1, config.delivery, generator)
            retry_at = now() + wait if isinstance(error, PeerError) else None
            _record_failure(session, retrieval, config, reason, retry_at, now())
        return False
    with sessions.begin() as session:
        retrievals.mark_arrived(session, session.get_one(Retrieval, id), reason=reason, now=now())
    return True


def _record_failure(
    session: Session, retrieval: Retrieval, config: Config, reason: str, retry_at: datetime | None, now: datetime
) -> None:
    """Postpone the retrieval to ``retry_at`` where the study still waits by then, else end it."""
    may_retry = retrieval.purpose is RetrievalPurpose.SERIES and retrieval.attempts + 1 < _ATTEMPTS
    if retry_at and may_retry and retry_at < missing_series.wait_ends_at(retrieval, _find_route(config, retrieval)):
        retrievals.postpone(session, retrieval, reason=reason, not_before=retry_at, now=now)
    else:
        retrievals.mark_ended(session, retrieval, reason=reason, now=now)


def _load_request(session: Session, config: Config, retrieval: Retrieval, now: datetime) -> _Request:
    """Read a retrieval from its row. Raises NotFound where its study no longer waits for it."""
    study, route = retrieval.study, _find_route(config, retrieval)
    if not retrievals.is_still_needed(session, retrieval):
        raise NotFound(f"study {study.id} waits no longer")
    remaining = tuple(uid for uid in retrieval.series_uids if uid not in (retrieval.arrived_uids or ()))
    source = retrieval.prior_study_uid or study.study_uid
    peer = config.find_peer(retrieval.peer)
    request = _Request(retrieval.id, route, peer, study.study_uid, retrieval.state, source, remaining)
    snapshot = StudySnapshot(session, study)
    if retrieval.purpose is RetrievalPurpose.SERIES:
        return _load_series_request(snapshot, retrieval, request, now)
    if now >= (study.completed_at or now) + timedelta(seconds=route.prior_wait_s):
        raise NotFound(f"not asked within {route.prior_wait_s:g} s")
    if isinstance(snapshot.examination, str):
        raise NotFound(snapshot.examination)
    return replace(request, current=snapshot.examination)


def _load_series_request(snapshot: StudySnapshot, retrieval: Retrieval, request: _Request, now: datetime) -> _Request:
    route = request.route
    if now >= missing_series.wait_ends_at(retrieval, route):
        last = f": {retrieval.reason}" if retrieval.reason else ""
        raise NotFound(f"not here within {route.with_wait_s:g} s{last}")
    unmatched = missing_series.unmatched_inputs(route, snapshot)
    if not unmatched and retrieval.state is RetrievalState.WANTED:
        raise NotFound("all are here by now")
    return replace(request, conditions={name: route.with_[name] for name in unmatched})


def _find_route(config: Config, retrieval: Retrieval) -> Route:
    """Return the retrieval's route as it is configured now. Raises NotFound."""
    is_series = retrieval.purpose is RetrievalPurpose.SERIES
    for route in config.routes:
        if route.name == retrieval.route and (route.with_ if is_series else route.prior):
            return route
    subject = "further series" if is_series else "earlier study"
    raise NotFound(f"route {retrieval.route} wants no {subject} any more")


def _find_series(sessions: sessionmaker[Session], request: _Request, config: Config, now: Clock) -> _Request:
    """Query the peer for the series and record its answer. Raises NotFound or PeerError."""
    requestor, prior_uid = _requestor(config), ""
    if request.current is not None:
        prior_uid, series_uids = prior_search.find_prior_study(
            request.peer, request.route, request.study_uid, request.current, requestor=requestor
        )
    else:
        conditions = request.conditions or {}
        candidates = series_search.find_candidate_series(
            request.peer, request.study_uid, conditions, requestor=requestor
        )
        series_uids = tuple(dict.fromkeys(uid for uids in candidates.values() for uid in uids))
        if not series_uids:
            raise NotFound(f"none there for {', '.join(conditions)}")
    with sessions.begin() as session:
        retrieval = session.get_one(Retrieval, request.id)
        if request.conditions is not None:
            series_uids = _select_missing(session, retrieval.study, request.conditions, series_uids)
        retrievals.start_fetching(session, retrieval, prior_study_uid=prior_uid, series_uids=series_uids, now=now())
    return replace(request, source_study_uid=prior_uid or request.study_uid, series_uids=series_uids)


def _select_missing(
    session: Session, study: Study, names: Iterable[str], series_uids: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the series that are neither complete here nor results of this node. Raises NotFound without any."""
    stored = set(session.scalars(select(Series.series_uid).where(Series.study_id == study.id)))
    known = stored - retrievals.find_partial_series(session, study) | retrievals.find_own_results(session, series_uids)
    missing = tuple(uid for uid in series_uids if uid not in known)
    if not missing:
        raise NotFound(f"none there for {', '.join(names)} besides what is known here")
    return missing


def _retrieve_all(sessions: sessionmaker[Session], request: _Request, config: Config, now: Clock) -> str:
    """Retrieve series by series to this node's receiver and describe the outcome. Raises PeerError."""
    services, refusals = set[str](), list[PeerRefused]()
    for series_uid in request.series_uids:
        try:
            services.add(_retrieve_one(sessions, request, series_uid, config, now))
        except PeerRefused as error:  # the others may come all the same
            refusals.append(error)
            continue
        with sessions.begin() as session:
            retrievals.mark_series_arrived(session, session.get_one(Retrieval, request.id), series_uid)
    if refusals:
        raise refusals[0]
    with sessions() as session:
        series_uids = session.get_one(Retrieval, request.id).series_uids
        stored = sum(_count_instances(session, request, uid) for uid in series_uids)
    by = f" by {' and '.join(sorted(services))}" if services else ""
    return f"{stored} instances in {len(series_uids)} series from {request.peer.name}{by}"


def _retrieve_one(
    sessions: sessionmaker[Session], request: _Request, series_uid: str, config: Config, now: Clock
) -> str:
    """Retrieve a series and return the name of the service that delivered it.

    C-MOVE comes first; C-GET follows where the peer does not know this node or sends to another address.
    """
    requestor, own_aet = _requestor(config), config.node.ae_title
    study_uid = request.source_study_uid
    try:
        moved = queries.move(request.peer, study_uid, series_uid=series_uid, destination_aet=own_aet, **requestor)
        _check_arrival(sessions, request, series_uid, moved, f"C-MOVE; where does it think the AE title {own_aet} is?")
        return "C-MOVE"
    except PeerRefused as move_error:
        store = retrieved.store_handler(config, sessions, request.peer, now)
        try:
            fetched = queries.fetch(request.peer, study_uid, series_uid=series_uid, on_store=store, **requestor)
            _check_arrival(sessions, request, series_uid, fetched, "C-GET")
            return "C-GET"
        except PeerRefused as get_error:
            raise PeerRefused(f"{move_error}; {get_error}") from None


def _check_arrival(
    sessions: sessionmaker[Session], request: _Request, series_uid: str, fetched: RetrievalCounts, service: str
) -> None:
    """Raise PeerRefused unless all instances that the peer reports as sent are stored here."""
    sent = fetched.completed + fetched.warned
    if fetched.failed or not sent:
        raise PeerRefused(f"peer {request.peer.name} gave {sent} of {sent + fetched.failed} instances by {service}")
    with sessions() as session:
        stored = _count_instances(session, request, series_uid)
    if stored < sent:
        raise PeerRefused(f"peer {request.peer.name} sent {sent} instances, {stored} are here, by {service}")


def _count_instances(session: Session, request: _Request, series_uid: str) -> int:
    rows = select(func.count(Instance.id)).join(Series).join(Study)
    of_series = (Study.study_uid == request.source_study_uid, Series.series_uid == series_uid)
    return session.scalar(rows.where(*of_series)) or 0


def _requestor(config: Config) -> dict[str, Any]:
    """Return the arguments of this node as requestor, as ``dimse.queries`` takes them."""
    node = config.node
    return {"calling_aet": node.ae_title, "timeout_s": node.network_timeout_s, "tls": config.node.tls}
