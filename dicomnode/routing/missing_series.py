"""Series that a route's ``with`` takes and that the study lacks here: routing waits for the peer that may have them.

What comes opens the study's next revision, which is routed like any other; a series that came in part is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from db import retrievals
from db.models import Retrieval, Study
from db.states import RetrievalPurpose, RetrievalState
from dicomnode.config import Route
from dicomnode.config.conditions import matches
from dicomnode.routing.received import Received, received

__all__ = ["explain", "holds_up", "lacking", "overdue_at"]

_SERIES = RetrievalPurpose.SERIES
_OPEN = {RetrievalState.WANTED: "not asked yet", RetrievalState.FETCHING: "on their way"}


def lacking(route: Route, series: Sequence[Received]) -> list[str]:
    """The names of the route's ``with`` that no series matches."""
    return [name for name, match in route.with_.items() if not any(matches(match, s.attributes) for s in series)]


def overdue_at(search: Retrieval, route: Route) -> datetime:
    """From then on the study waits no longer for the search."""
    return search.created_at + timedelta(seconds=route.with_wait_s)


def holds_up(session: Session, study: Study, routes: Sequence[Route], *, now: datetime) -> bool:
    """Whether a complete study has to wait for series that a peer may have; that it is asked is asked for here."""
    series = received(session, study)
    asking = [route for route in routes if route.with_from and any(matches(route.match, s.attributes) for s in series)]
    waits = [_waits(session, study, route, series, now) for route in asking]
    return any(waits)


def explain(session: Session, study: Study, route: Route) -> str:
    """What became of the route's newest search; "" without one."""
    search = retrievals.find_newest(session, study, route.name, _SERIES) if route.with_from else None
    if search is None:
        return ""
    told = [word for word in (_OPEN.get(search.state), search.reason) if word]
    in_part = len(retrievals.find_partial_series(session, study) & set(search.series_uids))
    if in_part and search.state not in _OPEN:
        told.append(f"{in_part} series that did not come whole are not used")
    return f"missing series from peer {search.peer}: {'; '.join(told)}"


def _waits(session: Session, study: Study, route: Route, series: Sequence[Received], now: datetime) -> bool:
    search = retrievals.find_current(session, study, route.name, _SERIES)
    if search is not None:
        return search.state in _OPEN and now < overdue_at(search, route)
    if not lacking(route, series):
        return False
    retrievals.request(session, study, route=route.name, peer=route.with_from, purpose=_SERIES, now=now)
    return True
