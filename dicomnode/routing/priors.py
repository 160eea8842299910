"""The earlier examination of the same patient that a route's pipeline compares with: which study it is, or why none.

A study is earlier when its Study Date, and on the same day its Study Time, says so. The patient is the same when the
Patient ID and its issuer are, and no birth date speaks against it. All series come from one study, the newest that has
one for the first name of the route's ``prior``; what is synthetic is never one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import retrievals
from db.models import Instance, Job, JobInput, Series, Study
from db.states import RetrievalState, StudyState
from dicomnode.config import Route
from dicomnode.config.conditions import matches
from dicomnode.routing.received import Received, received

__all__ = ["Examination", "Prior", "examination", "explain", "holds_up", "look", "present"]


@dataclass(frozen=True)
class Examination:
    """Whose and when, as far as a data set says. It is the patient's data: compared, never printed."""

    patient_id: str = field(repr=False)
    issuer: str = field(repr=False)
    birth_date: str = field(repr=False)
    date: str = field(repr=False)
    time: str = field(repr=False)

    def is_of(self, other: Examination) -> bool:
        """Whether both are of one patient; without a Patient ID nobody is known."""
        born = {self.birth_date, other.birth_date} - {""}
        named = bool(self.patient_id) and self.patient_id == other.patient_id
        return named and self.issuer == other.issuer and len(born) <= 1

    def precedes(self, other: Examination) -> bool:
        """Whether this one was before; on one day only the times tell, and both must be stated."""
        if not self.date or not other.date or self.date != other.date:
            return "" < self.date < other.date
        return "" < self.time < other.time


@dataclass(frozen=True)
class Prior:
    """The instances' row numbers by input, empty where there is none; ``why`` says which study, or why none.

    ``arriving``: an earlier study that is newer than this one is not complete yet.
    """

    inputs: Mapping[str, list[int]]
    why: str
    arriving: bool = False


def examination(attributes: Mapping[str, Any]) -> Examination:
    """From the attributes of a series, or of a peer's answer."""

    def text(keyword: str) -> str:
        return str(attributes.get(keyword) or "").strip()

    date, time = (text(name).replace(":", "").replace(".", "") for name in ("StudyDate", "StudyTime"))
    whole = len(date) == 8 and date.isdigit()
    return Examination(
        text("PatientID"),
        text("IssuerOfPatientID"),
        text("PatientBirthDate"),
        date if whole else "",
        time.ljust(12, "0") if time.isdigit() else "",
    )


def present(series: Sequence[Received]) -> Examination | str:
    """Whose and when the study is whose series these are, or in words why that cannot be said."""
    stated = [examination(each.attributes) for each in series]
    if not stated:
        return "the study has no series"
    if not stated[0].patient_id or not stated[0].date:
        return f"the study states no {'Study Date' if stated[0].patient_id else 'Patient ID'}"
    if not all(each.is_of(stated[0]) for each in stated):
        return "the study's series state different patients"
    return stated[0]


def look(session: Session, study: Study, route: Route) -> Prior:
    """The newest earlier study that is here complete and has what the route's ``prior`` asks for first."""
    now = present(received(session, study))
    if isinstance(now, str):
        return Prior({}, now)
    arriving, first = False, next(iter(route.prior))
    why = "no earlier study of the patient is here"
    for candidate, series in _earlier(session, study, now):
        if _is_arriving(session, candidate):
            arriving, why = True, f"study {candidate.id} was still arriving"
            continue
        inputs = {} if _is_partial(session, candidate) else _inputs(route, series)
        if first in inputs:
            return Prior(inputs, f"study {candidate.id} for {', '.join(inputs)}", arriving)
        why = why if arriving else f"no earlier study that is here complete has a series for {first}"
    return Prior({}, why, arriving)


def holds_up(session: Session, study: Study, routes: Sequence[Route], *, now: datetime) -> bool:
    """Whether a complete study has to wait for an earlier one; where a peer is to be asked, that is asked for here.

    No longer than the routes' ``prior_wait_s`` after its completion, whatever becomes of the search.
    """
    series = received(session, study)
    wanting = [route for route in routes if route.prior and any(matches(route.match, s.attributes) for s in series)]
    waits = [_waits(session, study, route, now) for route in wanting]
    return any(waits)


def explain(session: Session, study: Study, route: Route) -> str:
    """Which earlier study the route's newest job has, or why it has none."""
    if not route.prior:
        return ""
    taken = _taken(session, study, route)
    if taken:
        return f"prior: {taken}"
    search = retrievals.find_current(session, study, route.name)
    found = look(session, study, route)
    if found.inputs:
        late = " came too late; a new revision of this study takes it" if study.state is StudyState.ROUTED else ""
        return f"prior: {found.why}{late}"
    asked = f"; peer {search.peer}: {search.reason or search.state}" if search else ""
    return f"no prior: {found.why}{asked}"


def _waits(session: Session, study: Study, route: Route, now: datetime) -> bool:
    if now >= (study.completed_at or now) + timedelta(seconds=route.prior_wait_s):
        return False
    search = retrievals.find_current(session, study, route.name)
    if search is not None and search.state in (RetrievalState.WANTED, RetrievalState.FETCHING):
        return True
    found = look(session, study, route)
    if found.arriving or found.inputs or search is not None or not route.prior_from:
        return found.arriving
    if isinstance(present(received(session, study)), str):
        return False
    retrievals.request(session, study, route=route.name, peer=route.prior_from, now=now)
    return True


def _earlier(session: Session, study: Study, now: Examination) -> list[tuple[Study, list[Received]]]:
    """The patient's earlier studies that are here, the newest first, without what is synthetic in them."""
    query = select(Study).where(Study.patient_id == study.patient_id, Study.id != study.id)
    found: list[tuple[str, str, int, Study, list[Received]]] = []
    for candidate in session.scalars(query.order_by(Study.id)):
        series = received(session, candidate)
        then = present(series)
        if isinstance(then, Examination) and then.is_of(now) and then.precedes(now):
            real = [each for each in series if each.attributes.get("SyntheticData") != "YES"]
            found.append((then.date, then.time, candidate.id, candidate, real))
    return [(each[3], each[4]) for each in sorted(found, key=lambda each: each[:3], reverse=True)]


def _is_arriving(session: Session, candidate: Study) -> bool:
    if candidate.state is StudyState.RECEIVING:
        return True
    fetching = any(each.state is RetrievalState.FETCHING for each in retrievals.list_fetching(session, candidate))
    return fetching and retrievals.is_prefetched_only(session, candidate)


def _is_partial(session: Session, candidate: Study) -> bool:
    """Whether it is here only because of searches of which none brought all."""
    states = {each.state for each in retrievals.list_fetching(session, candidate)}
    return bool(states) and RetrievalState.ARRIVED not in states and retrievals.is_prefetched_only(session, candidate)


def _inputs(route: Route, series: Sequence[Received]) -> dict[str, list[int]]:
    """The first matching series for each name."""
    found: dict[str, list[int]] = {}
    for name, match in route.prior.items():
        for each in series:
            if matches(match, each.attributes):
                found[name] = [row.id for row in each.instances]
                break
    return found


def _taken(session: Session, study: Study, route: Route) -> str:
    """The earlier study of the route's newest job, by its UID, in words; "" without."""
    newest = select(Job.id).where(Job.study_id == study.id, Job.route == route.name).order_by(Job.id.desc()).limit(1)
    query = (
        select(JobInput.name, Study.study_uid)
        .join(Instance, Instance.id == JobInput.instance_id)
        .join(Series, Series.id == Instance.series_id)
        .join(Study, Study.id == Series.study_id)
        .where(JobInput.job_id == newest.scalar_subquery(), JobInput.name.in_(list(route.prior)))
    )
    rows = session.execute(query.distinct()).all()
    names = [name for name in route.prior if name in {row.name for row in rows}]
    return f"study {rows[0].study_uid} for {', '.join(names)}" if rows else ""
