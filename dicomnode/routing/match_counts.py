"""The number of held studies that a route would take, found by the matcher of the routes themselves.

Counting may end early: then the result says over how many studies it counted, the newest first. The web counts in
a child process, because a regular expression can take hours on one value and would stop the receiver meanwhile.
"""

from __future__ import annotations

import atexit
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from db import engine as engines
from db import studies
from db.models import Series, Study
from dicomnode.config import Route
from dicomnode.config.conditions import matches
from dicomnode.decoding.child import limit_cpu_time
from dicomnode.decoding.pool import Pool
from dicomnode.errors import InputRefused, NodeBusy, NotAllowed
from dicomnode.routing import priors, routing
from dicomnode.routing.study_snapshot import StudySnapshot

__all__ = ["RECENT", "MatchCount", "StudyMatch", "count_matches", "examine", "trial_pool"]

RECENT = 30
"""Number of the newest studies that are counted by themselves."""
_BATCH = 100
_MOST_LISTED = 8
_COUNT_S = 4.0
_MOST_CPU_S = 5
"""CPU time of one answer; a regular expression that needs more ends the child."""
_ANSWER_S = 120.0
"""Longest time for an answer, with the start of a child on a busy machine."""

trial_pool = Pool(children=1, wait_s=_ANSWER_S, work_s=_ANSWER_S, most_waiting=2)
"""The child process that counts for the web pages, and two that wait for it."""
atexit.register(trial_pool.close)


@dataclass(frozen=True)
class StudyMatch:
    """A study that the route would take, and the descriptions of the series that match."""

    study_uid: str
    study_date: str
    description: str
    series: tuple[str, ...]


@dataclass(frozen=True)
class MatchCount:
    """The count over the studies that are held.

    ``held``: all; ``counted``: those that were looked at, the newest; ``matched``: those of them that the route would
    take; ``recent`` and ``recent_matched``: the same for the newest RECENT. ``further``: by input under ``with``, the
    number of matched studies that have a series for it. ``first``: the newest matched studies.
    """

    held: int
    counted: int
    matched: int
    recent: int
    recent_matched: int
    further: dict[str, int]
    first: tuple[StudyMatch, ...]


def count_matches(session: Session, route: Route, *, is_time_up: Callable[[], bool] = lambda: False) -> MatchCount:
    """Count the held studies of which the route would take a series. ``is_time_up``: asked before each study."""
    held = session.scalar(select(func.count(Study.id)).where(Study.expired_at.is_(None))) or 0
    counted, matched, recent_matched = 0, 0, 0
    further = dict.fromkeys(route.with_, 0)
    first: list[StudyMatch] = []
    for study, snapshot in _iterate_studies(session, route):
        if is_time_up():
            break
        counted += 1
        series = [] if snapshot is None else [each for each in snapshot.usable_series if each.matches(route.match)]
        if snapshot is None or not series:
            continue
        matched += 1
        recent_matched += counted <= RECENT
        for name, conditions in route.with_.items():
            further[name] += snapshot.has_match(conditions)
        if len(first) < _MOST_LISTED:
            descriptions = tuple(str(each.attributes.get("SeriesDescription") or "") for each in series)
            first.append(StudyMatch(study.study_uid, study.study_date, study.study_description, descriptions))
    return MatchCount(held, counted, matched, min(counted, RECENT), recent_matched, further, tuple(first))


def examine(route: Route, study_uid: str, database_url: str, pool: Pool = trial_pool) -> dict[str, Any]:
    """Return what ``explain_routes`` finds on one study and ``count_matches`` on all, from a child process.

    Keys: explanation, prior (the earlier examination in words), count. ``study_uid``: "" for the count alone.
    Raises NotAllowed where the conditions take too long, and NodeBusy.
    """
    conditions = repr([route.match, route.with_, route.prior])  # what ends a child is refused for a while
    try:
        answer = pool.run(_examine, conditions, route, study_uid, database_url)
    except InputRefused:
        raise NotAllowed(
            "the conditions of the route could not be tested in time: simplify its regular expressions"
        ) from None
    except NodeBusy:
        raise NodeBusy("other routes are being counted; try again in a while") from None
    found: dict[str, Any] = json.loads(b"".join(answer))
    if "error" in found:
        raise NodeBusy(found["error"])
    return found


def _examine(conditions: str, route: Route, study_uid: str, database_url: str) -> bytes:
    limit_cpu_time(_MOST_CPU_S)
    stop_at = time.monotonic() + _COUNT_S
    engine = engines.connect(database_url)
    try:
        with engines.readers(engine)() as session:
            study = studies.find_by_uid(session, study_uid) if study_uid else None
            found: dict[str, Any] = {"explanation": None, "prior": ""}
            found |= _explain(session, study, route) if study is not None else {}
            count = count_matches(session, route, is_time_up=lambda: time.monotonic() > stop_at)
        found["count"] = asdict(count)
        return json.dumps(found, default=_encode_moment).encode()
    except SQLAlchemyError as error:  # no fault of the conditions: the child stays, and nothing is refused later
        return json.dumps(
            {"error": f"the database did not answer the count ({type(error).__name__}): try again"}
        ).encode()
    finally:
        engine.dispose()


def _explain(session: Session, study: Study, route: Route) -> dict[str, Any]:
    (explanation,) = routing.explain_study(session, study, [route])
    prior = priors.find_local_prior(StudySnapshot(session, study), route).reason if route.prior else ""
    return {"explanation": asdict(explanation), "prior": prior}


def _iterate_studies(session: Session, route: Route) -> Iterator[tuple[Study, StudySnapshot | None]]:
    """Yield the held studies, the newest first; with a snapshot those that may be taken by their attributes."""
    last_id: int | None = None
    while True:
        query = select(Study).where(Study.expired_at.is_(None)).order_by(Study.id.desc()).limit(_BATCH)
        found = session.scalars(query if last_id is None else query.where(Study.id < last_id)).all()
        if not found:
            return
        last_id = found[-1].id
        possible = _find_possible(session, route, [study.id for study in found])
        for study in found:
            snapshot = StudySnapshot(session, study) if study.id in possible else None
            yield study, None if snapshot is None or snapshot.is_prefetched_only else snapshot
        session.expunge_all()


def _find_possible(session: Session, route: Route, study_ids: list[int]) -> set[int]:
    """Return the studies with a series whose attributes match, before the costlier questions about its files."""
    rows = session.execute(select(Series.study_id, Series.attributes).where(Series.study_id.in_(study_ids)))
    return {study_id for study_id, attributes in rows if matches(route.match, attributes)}


def _encode_moment(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
