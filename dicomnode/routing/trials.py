"""Trials: jobs that a person starts to see what a pipeline makes of a study, with a route that no node.toml has.

A trial is a job like any other, except that it has a route name of its own, so that it supersedes no job of a route,
uses the version in force and no share or shadow, and delivers to nobody unless the person asks for it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import audit, studies
from db.models import Job, Study
from db.states import StudyState
from dicomnode.config import Config, Route
from dicomnode.config.routes import TRIAL_PREFIX
from dicomnode.deployment import in_use, pipeline_names
from dicomnode.errors import NotAllowed, NotFound
from dicomnode.routing import routing
from dicomnode.routing.study_snapshot import StudySnapshot

__all__ = ["Trial", "check_delivery", "reason_unable", "start_trial"]

_DIGITS = 8


@dataclass(frozen=True)
class Trial:
    """The jobs of a trial; ``is_new``: False where the same trial was started before."""

    job_ids: tuple[int, ...]
    is_new: bool


def start_trial(
    session: Session, study_uid: str, route: Route, config: Config, *, who: str, reason: str, now: datetime
) -> Trial:
    """Enqueue a job for each series of the study that the route matches. Its destinations get the results.

    Raises NotFound, NotAllowed where the study cannot be tried or no series matches, ConfigError for unknown names.
    """
    study = studies.find_by_uid(session, study_uid)
    if study is None:
        raise NotFound(f"no study with the UID {study_uid}")
    pipeline_names.check_pipeline(route.pipeline, config)
    for destination in route.destinations:
        config.find_peer(destination)
    if why := reason_unable(session, study):
        raise NotAllowed(why)
    (explanation,) = routing.explain_study(session, study, [route])
    trial = route.model_copy(update={"name": _name_trial(route)})
    made = routing.enqueue_now(StudySnapshot(session, study), trial, config, now)
    for job in made:
        detail = {"who": who, "reason": f"tried by {who}: {reason}", "destinations": list(route.destinations)}
        audit.append(session, subject="jobs", subject_id=job.id, event="trial", detail=detail, now=now)
    if made:
        return Trial(tuple(job.id for job in made), is_new=True)
    earlier = session.scalars(select(Job.id).where(Job.study_id == study.id, Job.route == trial.name)).all()
    if not earlier:
        why = "another study with the same files was tried so" if explanation.matched else explanation.why
        raise NotAllowed(f"nothing of this study can be tried: {why}")
    return Trial(tuple(earlier), is_new=False)


def check_delivery(session: Session, route: Route, config: Config) -> None:
    """Raise NotAllowed where a route has destinations and a model that is not in use.

    For trials and workitems of people who may not deploy models: delivering one comes to the same.
    """
    if route.destinations:
        in_use.check_in_use(session, config, route.pipeline, route.model)


def reason_unable(session: Session, study: Study) -> str:
    """Return why a study cannot be tried now, or ""."""
    if study.expired_at is not None:
        return "the study's files were deleted by retention: send it again"
    if study.state is StudyState.RECEIVING:
        return "the study is still arriving, and a part of a series gives no right result: wait until it is complete"
    return routing.reason_unroutable(StudySnapshot(session, study))


def _name_trial(route: Route) -> str:
    """Return a name that all that decides the trial determines, so that the same trial is not run twice."""
    deciding = route.model_dump_json(exclude={"name", "priority"})
    return f"{TRIAL_PREFIX}{route.pipeline}:{hashlib.sha256(deciding.encode()).hexdigest()[:_DIGITS]}"
