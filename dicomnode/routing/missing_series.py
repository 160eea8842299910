"""The wait of routing for series that a route's ``with`` takes, that are missing here and that a peer may have.

Series that arrive open the study's next revision, which is routed like any other. A series that arrived in part is not
used.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from db import retrievals
from db.models import Retrieval
from db.states import RetrievalPurpose, RetrievalState
from dicomnode.config import Route
from dicomnode.routing.study_snapshot import StudySnapshot

__all__ = ["blocks_routing", "explain_retrieval", "unmatched_inputs", "wait_ends_at"]

_SERIES = RetrievalPurpose.SERIES
_OPEN = {RetrievalState.WANTED: "not asked yet", RetrievalState.FETCHING: "on their way"}


def unmatched_inputs(route: Route, snapshot: StudySnapshot) -> list[str]:
    """Return the names of the route's ``with`` that no usable series matches."""
    return [name for name, conditions in route.with_.items() if not snapshot.has_match(conditions)]


def wait_ends_at(retrieval: Retrieval, route: Route) -> datetime:
    """Return the moment from which the study no longer waits for the retrieval."""
    return retrieval.created_at + timedelta(seconds=route.with_wait_s)


def blocks_routing(snapshot: StudySnapshot, routes: Sequence[Route], *, now: datetime) -> bool:
    """Return whether a complete study waits for series that a peer may have; request their retrieval if need be."""
    waiting = [route for route in routes if route.with_from and snapshot.has_match(route.match)]
    blocked = [_blocks_route(snapshot, route, now) for route in waiting]  # all of them: each may request a retrieval
    return any(blocked)


def explain_retrieval(snapshot: StudySnapshot, route: Route) -> str:
    """Describe the outcome of the route's newest retrieval; "" without one."""
    newest = retrievals.find_newest(snapshot.session, snapshot.study, route.name, _SERIES) if route.with_from else None
    if newest is None:
        return ""
    phrases = [phrase for phrase in (_OPEN.get(newest.state), newest.reason) if phrase]
    incomplete = len(snapshot.incomplete_series_uids & set(newest.series_uids))
    if incomplete and newest.state not in _OPEN:
        phrases.append(f"{incomplete} series arrived incomplete and are not used")
    return f"missing series from peer {newest.peer}: {'; '.join(phrases)}"


def _blocks_route(snapshot: StudySnapshot, route: Route, now: datetime) -> bool:
    session, study = snapshot.session, snapshot.study
    retrieval = retrievals.find_current(session, study, route.name, _SERIES)
    if retrieval is not None:
        return retrieval.state in _OPEN and now < wait_ends_at(retrieval, route)
    if not unmatched_inputs(route, snapshot):
        return False
    retrievals.request(session, study, route=route.name, peer=route.with_from, purpose=_SERIES, now=now)
    return True
