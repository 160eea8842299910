"""The routing of complete studies to pipelines, and its explanation.

A route matches a series when all its conditions hold on the attributes of the series; a study may match several routes.
Every matching series becomes a job of its own. Of Raw Data every instance does, because each is one acquisition. A
study that was prefetched for comparison only (see priors.py) gets no jobs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from db import audit, deployments, jobs
from db.deployments import Choice, Version
from db.models import Job, Study
from db.states import StudyState
from db.studies import InstanceFacts
from dicomnode.config import Config, Route
from dicomnode.config.conditions import Condition, matches
from dicomnode.config.routes import name_with_settings
from dicomnode.deployment import pipeline_names
from dicomnode.routing import missing_series, priors
from dicomnode.routing.study_snapshot import SeriesInput, StudySnapshot, select_inputs

__all__ = [
    "MAIN_INPUT",
    "ConditionResult",
    "RouteExplanation",
    "SeriesAttributes",
    "enqueue_now",
    "explain_file",
    "explain_routes",
    "explain_study",
    "explain_unused",
    "reason_unroutable",
    "route_complete_studies",
]

MAIN_INPUT = "match"
"""The input name of the series that the route matched. The pipeline has a name of its own for it."""

_LOWEST_PRIORITY = -1_000_000
"""The priority of shadow jobs, whose results are not delivered."""

log = logging.getLogger("dicomnode.routing.routing")

Clock = Callable[[], datetime]

_FOR_COMPARISON = "fetched to be compared with, not to be worked on"
_NOTHING_NEW = "nothing new to do"
_RAW_DATA_STORAGE = "1.2.840.10008.5.1.4.1.1.66"


@dataclass(frozen=True)
class SeriesAttributes:
    """The attributes of a series on which the conditions of routes are evaluated."""

    series_uid: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class ConditionResult:
    """One condition on one series: the input that has it, the value of the attribute, and whether it holds."""

    series_uid: str
    input: str
    keyword: str
    condition: str
    value: Any
    holds: bool


@dataclass(frozen=True)
class RouteExplanation:
    """One route on one study: the series that it matches, every condition with its result, and the reason in words."""

    route: str
    pipeline: str
    matched: tuple[str, ...]
    answers: tuple[ConditionResult, ...]
    why: str


def explain_routes(routes: Sequence[Route], series: Sequence[SeriesAttributes]) -> list[RouteExplanation]:
    """Return for each route the series that it matches and on which attributes, or why none."""
    return [_explain_route(route, series) for route in routes]


def explain_study(session: Session, study: Study, routes: Sequence[Route]) -> list[RouteExplanation]:
    """Explain the routes on a stored study, with the state of its retrievals."""
    snapshot = StudySnapshot(session, study)
    if reason := reason_unroutable(snapshot):
        return [RouteExplanation(route.name, route.pipeline, (), (), reason) for route in routes]
    usable = snapshot.usable_series
    series = [SeriesAttributes(each.series_uid, each.attributes) for each in usable]
    explanations = explain_routes(routes, series)
    return [_add_retrievals(snapshot, each, route) for each, route in zip(explanations, routes, strict=True)]


def reason_unroutable(snapshot: StudySnapshot) -> str:
    """Return why no route takes any series of a study, or ""."""
    if snapshot.is_prefetched_only:
        return f"the study was {_FOR_COMPARISON}"
    if snapshot.study.series and not snapshot.usable_series:
        left_out = "they are results of this node, or arrived in part, or their files were deleted"
        return f"the study has no series that a job may take: {left_out}"
    return ""


def explain_file(facts: InstanceFacts, routes: Sequence[Route]) -> list[RouteExplanation]:
    """Explain the routes on one file, as if it were a study of its own."""
    return explain_routes(routes, [SeriesAttributes(facts.series_uid, facts.attributes)])


def route_complete_studies(sessions: sessionmaker[Session], config: Config, *, now: Clock) -> int:
    """Route every complete study that has nothing to wait for, and return the number of new jobs.

    Each study is a transaction of its own.
    """
    new_jobs, waiting_ids = 0, set[int]()
    while True:
        with sessions.begin() as session:
            moment = now()
            complete = select(Study).where(Study.state == StudyState.COMPLETE, Study.id.not_in(waiting_ids))
            oldest = complete.order_by(Study.completed_at, Study.id).limit(1)
            study = session.scalar(oldest.with_for_update(skip_locked=True))
            if study is None:
                return new_jobs
            snapshot = StudySnapshot(session, study)
            if not snapshot.is_prefetched_only and _must_wait(snapshot, config.routes, moment):
                waiting_ids.add(study.id)
                continue
            made = _route_study(snapshot, config, moment)
            nothing = "" if made else _describe_nothing_new(snapshot)
        _log_routed(snapshot.study.id, made, nothing)
        new_jobs += len(made)


def enqueue_now(
    snapshot: StudySnapshot, route: Route, config: Config, now: datetime, *, series_uids: Collection[str] = ()
) -> list[Job]:
    """Enqueue the jobs of one route on the version in force, with the prior examination that is here.

    ``series_uids``: series of which alone jobs are made, and which go before others as further inputs; empty: all that
    match.
    """
    matched, further, _ = _collect_inputs(snapshot, route, series_uids)
    current = None if route.model else deployments.choose_current(snapshot.session, route.pipeline)
    return _enqueue(snapshot.session, snapshot.study, config, route, matched, further, current, now)


def explain_unused(snapshot: StudySnapshot, route: Route, series_uids: Collection[str]) -> dict[str, str]:
    """Return why the jobs of ``enqueue_now`` take nothing of a named series, by the UID of each such series."""
    matched, further, _ = _collect_inputs(snapshot, route, series_uids)
    used = {row.id for each in matched for row in each.instances} | {id for ids in further.values() for id in ids}
    return {
        each.series_uid: _explain_unused_series(route, each)
        for each in snapshot.usable_series
        if each.series_uid in series_uids and used.isdisjoint(row.id for row in each.instances)
    }


def _explain_unused_series(route: Route, series: SeriesInput) -> str:
    inputs = [name for name, match in route.with_.items() if series.matches(match)]
    if inputs:
        return f"another series is already the input {inputs[0]}"
    return _describe_failed(route, SeriesAttributes(series.series_uid, series.attributes))


def _log_routed(study_id: int, made: Sequence[Job], nothing: str) -> None:
    if not made:
        log.info("study %d: %s: %s", study_id, "routed" if nothing == _NOTHING_NEW else "not routed", nothing)
    for job in made:
        shadow = f", shadow of job {job.shadow_of_id}" if job.shadow_of_id else ""
        log.info("study %d: routed to job %d of route %s%s", study_id, job.id, job.route, shadow)


def _describe_nothing_new(snapshot: StudySnapshot) -> str:
    """Return in words why routing made no job: the study has them all already, or no route took it."""
    if snapshot.is_prefetched_only:
        return _FOR_COMPARISON
    jobs = snapshot.session.scalar(select(func.count(Job.id)).where(Job.study_id == snapshot.study.id))
    return _NOTHING_NEW if jobs else "no route took it"


def _route_study(snapshot: StudySnapshot, config: Config, now: datetime) -> list[Job]:
    """Enqueue the jobs of all matching routes; work that was done on the same content before is not repeated."""
    session, study = snapshot.session, snapshot.study
    if snapshot.is_prefetched_only:
        audit.transition(session, study, StudyState.ROUTED, reason=_FOR_COMPARISON, now=now)
        return []
    new_jobs: list[Job] = []
    reasons: list[str] = []
    for route in config.routes:
        matched, further, prior = _collect_inputs(snapshot, route)
        chosen = None if route.model else deployments.choose(session, route.pipeline, study.study_uid)
        made = _enqueue(session, study, config, route, matched, further, chosen, now)
        details = (missing_series.explain_retrieval(snapshot, route), _describe_prior(prior))
        suffix = "".join(f"; {each}" for each in details if each)
        reasons += [f"{job.route} (job {job.id}{suffix})" for job in made if job.shadow_of_id is None]
        new_jobs += made
    reason = ", ".join(reasons) or _describe_nothing_new(snapshot)
    audit.transition(session, study, StudyState.ROUTED, reason=reason, now=now)
    return new_jobs


def _collect_inputs(
    snapshot: StudySnapshot, route: Route, series_uids: Collection[str] = ()
) -> tuple[list[SeriesInput], dict[str, list[int]], priors.Prior | None]:
    """Return the series that the route matches, the instances of all other inputs by name, and the prior if any.

    ``series_uids``: those that alone are matched, and are the first choice for the other inputs; empty: no choice.
    """
    usable = candidates = snapshot.usable_series
    if series_uids:
        candidates = [each for each in usable if each.series_uid in series_uids]
        usable = [*candidates, *(each for each in usable if each.series_uid not in series_uids)]
    matched = [each for each in candidates if each.matches(route.match)]
    prior = priors.find_local_prior(snapshot, route) if matched and route.prior else None
    further = select_inputs(route.with_, usable) | (dict(prior.inputs) if prior else {})
    return matched, further, prior


def _enqueue(
    session: Session,
    study: Study,
    config: Config,
    route: Route,
    matched: Sequence[SeriesInput],
    further: Mapping[str, list[int]],
    chosen: Choice | None,
    now: datetime,
) -> list[Job]:
    """Enqueue a route's jobs, on the route's own model or the ``chosen`` one, each with its shadow job if any.

    ``further``: row numbers of the instances of all inputs besides the matched series, by input name.
    """
    version = chosen.version if chosen else deployments.DEFAULT
    if version == deployments.DEFAULT:
        version = pipeline_names.pin_default(route.pipeline, route.model, config)
    notify = config.recipients_by_route.get(name_with_settings(route.name), {})
    helpers = deployments.find_current_by_bundle(session)

    def enqueue(unit: list[int], model: Version, **how: Any) -> Job | None:
        return jobs.enqueue(
            session,
            study_id=study.id,
            revision=study.revision,
            route=route.name,
            pipeline=route.pipeline,
            model=model.model,
            model_digest=model.digest,
            helper_models=helpers,
            options=route.options,
            inputs={MAIN_INPUT: unit, **further},
            now=now,
            **how,
        )

    made: list[Job | None] = []
    for unit in (unit for series in matched for unit in _split_into_units(series)):
        job = enqueue(unit, version, destinations=route.destinations, priority=route.priority, notify=notify)
        made.append(job)
        if job and chosen and chosen.shadow:
            made.append(enqueue(unit, chosen.shadow, destinations=(), priority=_LOWEST_PRIORITY, shadow_of=job))
    return [job for job in made if job]


def _split_into_units(series: SeriesInput) -> list[list[int]]:
    """Return the instances' row numbers by job: one job for each Raw Data instance, one for all images."""
    raw = [row.id for row in series.instances if row.sop_class_uid == _RAW_DATA_STORAGE]
    images = [row.id for row in series.instances if row.sop_class_uid != _RAW_DATA_STORAGE]
    return [[id] for id in raw] + ([images] if images else [])


def _must_wait(snapshot: StudySnapshot, routes: Sequence[Route], now: datetime) -> bool:
    """Return whether a study waits for retrievals. Both kinds are requested in one pass, so that both begin at once."""
    waits_for_series = missing_series.blocks_routing(snapshot, routes, now=now)
    return priors.blocks_routing(snapshot, routes, now=now) or waits_for_series


def _describe_prior(prior: priors.Prior | None) -> str:
    return f"{'prior' if prior.inputs else 'no prior'}: {prior.reason}" if prior else ""


def _add_retrievals(snapshot: StudySnapshot, explanation: RouteExplanation, route: Route) -> RouteExplanation:
    if not explanation.matched:
        return explanation
    details = (missing_series.explain_retrieval(snapshot, route), priors.explain_prior(snapshot, route))
    return replace(explanation, why="; ".join([explanation.why, *filter(None, details)]))


def _explain_route(route: Route, series: Sequence[SeriesAttributes]) -> RouteExplanation:
    results = [result for each in series for result in _evaluate("", route.match, each)]
    matched = tuple(each.series_uid for each in series if matches(route.match, each.attributes))
    for name, conditions in route.with_.items():
        results += [result for each in series for result in _evaluate(name, conditions, each)]
    return RouteExplanation(
        route.name, route.pipeline, matched, tuple(results), _describe_match(route, series, matched)
    )


def _evaluate(name: str, conditions: Mapping[str, Condition], series: SeriesAttributes) -> list[ConditionResult]:
    return [
        ConditionResult(series.series_uid, name, keyword, condition.text, value, condition.holds(value))
        for keyword, condition in conditions.items()
        for value in [series.attributes.get(keyword)]
    ]


def _describe_match(route: Route, series: Sequence[SeriesAttributes], matched: Sequence[str]) -> str:
    """Return the decisive attributes in words: of the first matching series, or of the one that came nearest."""
    if not series:
        return "the study has no series"
    if matched:
        first = next(each for each in series if each.series_uid == matched[0])
        held = [_describe_result(result) for result in _evaluate("", route.match, first)]
        missing = [name for name, match in route.with_.items() if not any(matches(match, s.attributes) for s in series)]
        without = f"; no series for {', '.join(missing)}" if missing else ""
        return "matched on " + ", ".join(held) + without
    nearest = min(series, key=lambda each: sum(not result.holds for result in _evaluate("", route.match, each)))
    return f"no series matches; nearest failed on {_describe_failed(route, nearest)}"


def _describe_failed(route: Route, series: SeriesAttributes) -> str:
    return ", ".join(_describe_result(each) for each in _evaluate("", route.match, series) if not each.holds)


def _describe_result(result: ConditionResult) -> str:
    value = "is absent" if result.value in (None, "") else f"is {result.value!r}"
    return f"{result.keyword} {value} (wanted {result.condition})"
