"""The prior examination of the same patient that a route's pipeline compares with: which study it is, or why none.

A study is earlier when its Study Date, and on the same day its Study Time, says so. The patient is the same when the
Patient ID and its issuer are, and no birth date contradicts. All series come from one study, the newest that has one
for the first name of the route's ``prior``. Synthetic series are never used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select

from db import retrievals
from db.models import Instance, Job, JobInput, Series, Study
from db.states import RetrievalState, StudyState
from dicomnode.config import Route
from dicomnode.routing.study_snapshot import StudySnapshot, select_inputs

__all__ = ["Prior", "blocks_routing", "explain_prior", "find_local_prior"]


@dataclass(frozen=True)
class Prior:
    """The prior examination of a job.

    ``inputs``: row numbers of the instances by input name, empty without a prior. ``reason``: which study it is, or
    why there is none. ``is_arriving``: a newer earlier study is not complete yet.
    """

    inputs: Mapping[str, list[int]]
    reason: str
    is_arriving: bool = False


def find_local_prior(snapshot: StudySnapshot, route: Route) -> Prior:
    """Return the newest earlier study that is complete here and has a series for the route's first ``prior`` input."""
    if isinstance(snapshot.examination, str):
        return Prior({}, snapshot.examination)
    is_arriving, first = False, next(iter(route.prior))
    reason = "no earlier study of the patient is here"
    for candidate in snapshot.earlier_studies:
        if _is_arriving(candidate):
            is_arriving, reason = True, f"study {candidate.study.id} was still arriving"
            continue
        real = [each for each in candidate.usable_series if each.attributes.get("SyntheticData") != "YES"]
        inputs = {} if _is_partial(candidate) else select_inputs(route.prior, real)
        if first in inputs:
            return Prior(inputs, f"study {candidate.study.id} for {', '.join(inputs)}", is_arriving)
        reason = reason if is_arriving else f"no earlier study that is here complete has a series for {first}"
    return Prior({}, reason, is_arriving)


def blocks_routing(snapshot: StudySnapshot, routes: Sequence[Route], *, now: datetime) -> bool:
    """Return whether a complete study waits for a prior examination; request its retrieval if need be.

    The wait ends ``prior_wait_s`` after the study's completion at the latest, whatever becomes of the retrieval.
    """
    waiting = [route for route in routes if route.prior and snapshot.has_match(route.match)]
    blocked = [_blocks_route(snapshot, route, now) for route in waiting]  # all of them: each may request a retrieval
    return any(blocked)


def explain_prior(snapshot: StudySnapshot, route: Route) -> str:
    """Describe the prior examination of the route's newest job, or why it has none."""
    if not route.prior:
        return ""
    if used := _describe_used_prior(snapshot, route):
        return f"prior: {used}"
    retrieval = retrievals.find_current(snapshot.session, snapshot.study, route.name)
    prior = find_local_prior(snapshot, route)
    if prior.inputs:
        is_late = snapshot.study.state is StudyState.ROUTED
        return f"prior: {prior.reason}{' came too late; a new revision of this study takes it' if is_late else ''}"
    answer = f"; peer {retrieval.peer}: {retrieval.reason or retrieval.state}" if retrieval else ""
    return f"no prior: {prior.reason}{answer}"


def _blocks_route(snapshot: StudySnapshot, route: Route, now: datetime) -> bool:
    session, study = snapshot.session, snapshot.study
    if now >= (study.completed_at or now) + timedelta(seconds=route.prior_wait_s):
        return False
    retrieval = retrievals.find_current(session, study, route.name)
    if retrieval is not None and retrieval.state in (RetrievalState.WANTED, RetrievalState.FETCHING):
        return True
    prior = find_local_prior(snapshot, route)
    if prior.is_arriving or prior.inputs or retrieval is not None or not route.prior_from:
        return prior.is_arriving
    if isinstance(snapshot.examination, str):
        return False
    retrievals.request(session, study, route=route.name, peer=route.prior_from, now=now)
    return True


def _is_arriving(candidate: StudySnapshot) -> bool:
    if candidate.study.state is StudyState.RECEIVING:
        return True
    fetched_by = retrievals.list_fetching(candidate.session, candidate.study)
    return any(each.state is RetrievalState.FETCHING for each in fetched_by) and candidate.is_prefetched_only


def _is_partial(candidate: StudySnapshot) -> bool:
    """Return whether the study is here only by retrievals of which none brought all."""
    states = {each.state for each in retrievals.list_fetching(candidate.session, candidate.study)}
    return bool(states) and RetrievalState.ARRIVED not in states and candidate.is_prefetched_only


def _describe_used_prior(snapshot: StudySnapshot, route: Route) -> str:
    """Return the UID of the earlier study in the route's newest job and its input names in words; "" without one."""
    jobs = select(Job.id).where(Job.study_id == snapshot.study.id, Job.route == route.name)
    newest = jobs.order_by(Job.id.desc()).limit(1)
    query = (
        select(JobInput.name, Study.study_uid)
        .join(Instance, Instance.id == JobInput.instance_id)
        .join(Series, Series.id == Instance.series_id)
        .join(Study, Study.id == Series.study_id)
        .where(JobInput.job_id == newest.scalar_subquery(), JobInput.name.in_(list(route.prior)))
    )
    rows = snapshot.session.execute(query.distinct()).all()
    names = [name for name in route.prior if name in {row.name for row in rows}]
    return f"study {rows[0].study_uid} for {', '.join(names)}" if rows else ""
