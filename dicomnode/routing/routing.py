"""Which studies go to which pipelines, and why.

A route matches a series when all its conditions hold on the series' attributes; a study may satisfy several routes.
Every matching series is a job of its own; of Raw Data every instance is, because each is one acquisition. A study that
was fetched only to be compared with (see priors.py) is nobody's work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import audit, deployments, jobs, retrievals
from db.deployments import Version
from db.models import Job, Series, Study
from db.states import StudyState
from db.studies import InstanceFacts
from dicomnode.config import Config, Route
from dicomnode.config.conditions import Condition, matches
from dicomnode.routing import missing_series, priors
from dicomnode.routing.received import Received, received

__all__ = [
    "MAIN_INPUT",
    "Answer",
    "Seen",
    "Verdict",
    "explain",
    "explain_file",
    "explain_study",
    "matches",
    "route_complete",
    "route_study",
]

MAIN_INPUT = "match"
"""The name under which a job keeps the series that the route matched; the pipeline knows what it calls it."""

_AFTER_ALL = -1_000_000
"""The priority of what nobody waits for."""

Told = Mapping[str, Mapping[str, Sequence[str]]]

_RAW_DATA_STORAGE = "1.2.840.10008.5.1.4.1.1.66"


@dataclass(frozen=True)
class Seen:
    """A series as the routes see it."""

    series_uid: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """One condition on one series: what was asked, what was there, and whether it holds."""

    series_uid: str
    input: str
    keyword: str
    condition: str
    value: Any
    holds: bool


@dataclass(frozen=True)
class Verdict:
    """One route on one study: the series it takes, every condition that was asked, and what ``why`` adds up to."""

    route: str
    pipeline: str
    matched: tuple[str, ...]
    answers: tuple[Answer, ...]
    why: str


def explain(routes: Sequence[Route], series: Sequence[Seen]) -> list[Verdict]:
    """Per route: which series it takes, on which attributes, or why none."""
    return [_verdict(route, series) for route in routes]


def explain_study(session: Session, study: Study, routes: Sequence[Route]) -> list[Verdict]:
    """``explain`` for a study that is here."""
    whole = Series.series_uid.not_in(retrievals.find_partial_series(session, study))
    rows = session.scalars(select(Series).where(Series.study_id == study.id, whole).order_by(Series.id))
    verdicts = explain(routes, [Seen(row.series_uid, row.attributes) for row in rows])
    return [_with_searches(session, study, each, route) for each, route in zip(verdicts, routes, strict=True)]


def explain_file(facts: InstanceFacts, routes: Sequence[Route]) -> list[Verdict]:
    """``explain`` for one file, as if it were a study of its own."""
    return explain(routes, [Seen(facts.series_uid, facts.attributes)])


def route_complete(sessions: sessionmaker[Session], config: Config, *, now: datetime) -> int:
    """Route every complete study that waits for no other; the number of new jobs.

    Each study is a transaction of its own.
    """
    made, held_up = 0, set[int]()
    while True:
        with sessions.begin() as session:
            complete = select(Study).where(Study.state == StudyState.COMPLETE, Study.id.not_in(held_up))
            oldest = complete.order_by(Study.completed_at, Study.id).limit(1)
            study = session.scalar(oldest.with_for_update(skip_locked=True))
            if study is None:
                return made
            if not retrievals.is_prefetched_only(session, study) and _held_up(session, study, config.routes, now):
                held_up.add(study.id)
            else:
                made += len(route_study(session, study, config.routes, notify=config.recipients_by_route, now=now))


def route_study(
    session: Session, study: Study, routes: Sequence[Route], *, notify: Told = MappingProxyType({}), now: datetime
) -> list[Job]:
    """Enqueue what the routes ask for; work that was done on the same content before is not repeated.

    ``notify``: by route who is told of which events of its jobs.
    """
    if retrievals.is_prefetched_only(session, study):
        audit.transition(
            session, study, StudyState.ROUTED, reason="fetched to be compared with, not to be worked on", now=now
        )
        return []
    series = received(session, study)
    made, reasons = [], []
    for route in routes:
        taken = [each for each in series if matches(route.match, each.attributes)]
        prior = priors.look(session, study, route) if taken and route.prior else None
        further = _further_inputs(route, series) | (dict(prior.inputs) if prior else {})
        new = _enqueue(session, study, route, taken, further, notify.get(route.name, {}), now)
        told = "".join(f"; {each}" for each in (missing_series.explain(session, study, route), _of(prior)) if each)
        reasons += [f"{job.route} (job {job.id}{told})" for job in new if job.shadow_of_id is None]
        made += new
    audit.transition(session, study, StudyState.ROUTED, reason=", ".join(reasons) or "nothing new to do", now=now)
    return made


def _enqueue(
    session: Session,
    study: Study,
    route: Route,
    taken: Sequence[Received],
    further: Mapping[str, list[int]],
    notify: Mapping[str, Sequence[str]],
    now: datetime,
) -> list[Job]:
    """The route's jobs, on the model that it names or that is deployed for its pipeline, each with its shadow."""
    chosen = None if route.model else deployments.choose(session, route.pipeline, study.study_uid)
    version = chosen.version if chosen else Version(route.model, "")
    helpers = deployments.find_current_by_bundle(session)

    def enqueue(unit: list[int], use: Version, **how: Any) -> Job | None:
        return jobs.enqueue(
            session,
            study_id=study.id,
            revision=study.revision,
            route=route.name,
            pipeline=route.pipeline,
            model=use.model,
            model_digest=use.digest,
            helper_models=helpers,
            options=route.options,
            inputs={MAIN_INPUT: unit, **further},
            now=now,
            **how,
        )

    made: list[Job | None] = []
    for unit in (unit for series in taken for unit in _units(series)):
        job = enqueue(unit, version, destinations=route.destinations, priority=route.priority, notify=notify)
        made.append(job)
        if job and chosen and chosen.shadow:
            made.append(enqueue(unit, chosen.shadow, destinations=(), priority=_AFTER_ALL, shadow_of=job))
    return [job for job in made if job]


def _further_inputs(route: Route, received: Sequence[Received]) -> dict[str, list[int]]:
    """The first matching series for each of the route's ``with``; the pipeline knows which it cannot do without."""
    found: dict[str, list[int]] = {}
    for name, match in route.with_.items():
        for series in received:
            if matches(match, series.attributes):
                found[name] = [row.id for row in series.instances]
                break
    return found


def _units(series: Received) -> list[list[int]]:
    raw = [row.id for row in series.instances if row.sop_class_uid == _RAW_DATA_STORAGE]
    images = [row.id for row in series.instances if row.sop_class_uid != _RAW_DATA_STORAGE]
    return [[id] for id in raw] + ([images] if images else [])


def _held_up(session: Session, study: Study, routes: Sequence[Route], now: datetime) -> bool:
    """Both are asked, so that both searches begin at once."""
    lacks = missing_series.holds_up(session, study, routes, now=now)
    return priors.holds_up(session, study, routes, now=now) or lacks


def _of(prior: priors.Prior | None) -> str:
    return f"{'prior' if prior.inputs else 'no prior'}: {prior.why}" if prior else ""


def _with_searches(session: Session, study: Study, verdict: Verdict, route: Route) -> Verdict:
    if not verdict.matched:
        return verdict
    told = (missing_series.explain(session, study, route), priors.explain(session, study, route))
    return replace(verdict, why="; ".join([verdict.why, *filter(None, told)]))


def _verdict(route: Route, series: Sequence[Seen]) -> Verdict:
    answers = [answer for each in series for answer in _answers("", route.match, each)]
    matched = tuple(each.series_uid for each in series if matches(route.match, each.attributes))
    for name, match in route.with_.items():
        answers += [answer for each in series for answer in _answers(name, match, each)]
    return Verdict(route.name, route.pipeline, matched, tuple(answers), _why(route, series, matched))


def _answers(name: str, match: Mapping[str, Condition], series: Seen) -> list[Answer]:
    return [
        Answer(series.series_uid, name, keyword, condition.text, value, condition.holds(value))
        for keyword, condition in match.items()
        for value in [series.attributes.get(keyword)]
    ]


def _why(route: Route, series: Sequence[Seen], matched: Sequence[str]) -> str:
    """The decisive attributes in words: of the matching series, or of the one that came nearest."""
    if not series:
        return "the study has no series"
    if matched:
        first = next(each for each in series if each.series_uid == matched[0])
        held = [_in_words(answer) for answer in _answers("", route.match, first)]
        missing = [name for name, match in route.with_.items() if not any(matches(match, s.attributes) for s in series)]
        without = f"; no series for {', '.join(missing)}" if missing else ""
        return "matched on " + ", ".join(held) + without
    nearest = min(series, key=lambda each: sum(not answer.holds for answer in _answers("", route.match, each)))
    failed = [_in_words(answer) for answer in _answers("", route.match, nearest) if not answer.holds]
    return "no series matches; nearest failed on " + ", ".join(failed)


def _in_words(answer: Answer) -> str:
    value = "is absent" if answer.value in (None, "") else f"is {answer.value!r}"
    return f"{answer.keyword} {value} (wanted {answer.condition})"
