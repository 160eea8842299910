"""Retention: sources and results expire when they are delivered and old enough, never when held, failed or awaited.

A study's sources go when all its jobs are over and delivered, no job of another study still takes them, no search
brings more of it, and no route may want it as the next study's earlier examination. A job's results go when every
object is where it should be. A job without destinations has delivered nothing: what it made stays, its sources too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from db import notifications, retention
from db.models import Delivery, Job, Study
from db.states import DeliveryState, JobState
from dicomnode.routing.examination import Examination, read_examination
from dicomnode.routing.study_snapshot import StudySnapshot
from dicomnode.storage import spool

if TYPE_CHECKING:
    from dicomnode.config import Config, Route

__all__ = ["Retention", "explain_kept", "remove_files"]

_log = logging.getLogger(__name__)
_STUDIES = 20
"""Studies checked in one step."""
_FILES = 200
"""Files removed, and recorded, at once."""
_REASON = "delivered and old enough"
_OVER = (JobState.DONE, JobState.REFUSED)
_EVERY = timedelta(minutes=10)
"""Time between the end of one walk and the next."""


Clock = Callable[[], datetime]


class Retention:
    """Repeated walk over all studies, in steps, for the node's scheduler."""

    def __init__(self, sessions: sessionmaker[Session], config: Config) -> None:
        self._sessions, self._config = sessions, config
        self._after = 0
        self._not_before: datetime | None = None
        self._files_left = True

    def step(self, *, now: Clock) -> int:
        """Expire what may go of the next studies, and remove unclaimed files; return how many files."""
        if self._not_before is not None and now() < self._not_before:
            return 0
        expired = self._expire(now)
        if not expired and not self._files_left:
            return 0
        self._files_left = False
        return remove_files(self._sessions, self._config, now=now())

    def _expire(self, now: Clock) -> int:
        days = shortest_days(self._config)
        if not days:
            self._not_before, self._files_left = now() + _EVERY, True  # quarantined files may have been discarded
            return 0
        with self._sessions() as session:
            quiet = now() - timedelta(days=days)
            ids = retention.list_candidates(session, after=self._after, limit=_STUDIES, quiet_since=quiet)
        self._after = ids[-1] if ids else 0
        if not ids:
            self._not_before, self._files_left = now() + _EVERY, True
        return sum(_expire_study(self._sessions, self._config, id, now) for id in ids)


def shortest_days(config: Config) -> float:
    """Return the shortest retention period in days; 0 where nothing ever expires."""
    periods = [config.retention.sources_days, config.retention.results_days, config.retention.unrouted_days]
    of_routes = [each for route in config.routes for each in (route.keep_sources_days, route.keep_results_days)]
    return min((each for each in [*periods, *of_routes] if each), default=0.0)


def remove_files(
    sessions: sessionmaker[Session], config: Config, *, now: datetime, remove: Callable[..., bool] = spool.remove
) -> int:
    """Delete the files that no row claims any more; return how many. Recently written files wait."""
    count, waiting = 0, set[str]()
    while True:
        with sessions() as session:
            digests = retention.list_removable(session, limit=_FILES, skip=waiting)
            claimed = retention.find_claimed(session, digests)
        if not digests:
            return count
        gone = {each for each in digests if each not in claimed and remove(config.spool_dir, each, now=now)}
        waiting |= set(digests) - claimed - gone
        with sessions.begin() as session:
            retention.mark_removed(session, sorted(gone | claimed), gone=gone, now=now)
        count += len(gone)


def explain_kept(session: Session, study: Study, config: Config, *, now: datetime) -> str:
    """Return the reason why the study's sources stay; "" where they may expire."""
    jobs = [job for job in study.jobs if job.state is not JobState.CANCELLED]
    waiting = [job for job in jobs if not is_settled(job)]
    if waiting:
        return f"job {waiting[0].id} is {waiting[0].state} and not delivered"
    if retention.is_input_elsewhere(session, study):
        return "a job of another study takes it"
    if retention.has_open_retrievals(session, study):
        return "something is being fetched"
    days = _source_days(config, jobs)
    if not days or now < _last_activity(study, jobs) + timedelta(days=days):
        return "it is not old enough"
    return _describe_use_as_prior(session, study, config, now)


def is_settled(job: Job) -> bool:
    """Return whether the job has ended and all its results are delivered; a shadow job delivers none."""
    if job.state not in _OVER:
        return False
    rows = _deliveries(job)
    done = [row for row in rows if row.state is DeliveryState.DELIVERED]
    rest = [
        row for row in rows if row.state is not DeliveryState.DELIVERED and not notifications.is_replaced(row, rows)
    ]
    return job.shadow_of_id is not None or (bool(done) and not rest)


def _expire_study(sessions: sessionmaker[Session], config: Config, study_id: int, now: Clock) -> int:
    """Expire what may go of one study; a first check takes no lock, as most studies stay."""
    with engines.readers(sessions.kw["bind"])() as session:
        study, moment = session.get_one(Study, study_id), now()
        if not _may_go(session, study, config, moment) and not any(
            _is_due(session, job, config, moment) for job in study.jobs
        ):
            return 0
    count = 0
    with sessions.begin() as session:
        found, moment = retention.lock_study(session, study_id), now()
        for job in found.jobs if found else ():
            if _is_due(session, job, config, moment):
                count += retention.expire_results(session, job, reason=_REASON, now=moment)
        if found and _may_go(session, found, config, moment):
            count += retention.expire_sources(session, found, reason=_REASON, now=moment)
    if count:
        _log.info("retention: study %d: %d objects expired", study_id, count)
    return count


def _may_go(session: Session, study: Study, config: Config, now: datetime) -> bool:
    return retention.has_sources(session, study) and not explain_kept(session, study, config, now=now)


def _is_due(session: Session, job: Job, config: Config, now: datetime) -> bool:
    """Return whether the job has results that may expire."""
    days = _days(config, job.route, "keep_results_days", config.retention.results_days)
    there = [row.delivered_at for row in _deliveries(job) if row.delivered_at is not None]
    if not days or not there or not is_settled(job) or now < max(there) + timedelta(days=days):
        return False
    compared = select(Job.id).where(Job.shadow_of_id == job.id, Job.state.in_((JobState.READY, JobState.RUNNING)))
    held = any(output.expired_at is None for output in job.outputs)
    return held and session.scalar(compared.limit(1)) is None


def _source_days(config: Config, jobs: Sequence[Job]) -> float:
    """Return the longest period that a route of the jobs requires, in days; 0: for ever."""
    if not jobs:
        return config.retention.unrouted_days
    periods = [_days(config, job.route, "keep_sources_days", config.retention.sources_days) for job in jobs]
    return 0.0 if 0.0 in periods else max(periods)


def _days(config: Config, route: str, key: str, default: float) -> float:
    """Return the period of the route in days, or the default, also where the route does not exist any more."""
    periods = [getattr(each, key) for each in config.routes if each.name == route]
    return default if not periods or periods[0] is None else float(periods[0])


def _last_activity(study: Study, jobs: Sequence[Job]) -> datetime:
    """Return the moment of the last arrival or delivery."""
    rows = [row for job in jobs for row in _deliveries(job)]
    return max([study.last_received_at, *(row.delivered_at for row in rows if row.delivered_at is not None)])


def _deliveries(job: Job) -> list[Delivery]:
    return [row for output in job.outputs for row in output.deliveries]


def _describe_use_as_prior(session: Session, study: Study, config: Config, now: datetime) -> str:
    """Return which route may use the study as a prior examination, the patient's newest that matches it, or ""."""
    bound = config.retention.priors_days
    if bound and now >= study.last_received_at + timedelta(days=bound):
        return ""
    snapshot = StudySnapshot(session, study)
    mine = snapshot.examination
    for route in config.routes if isinstance(mine, Examination) else ():
        is_match = any(snapshot.has_match(conditions) for conditions in route.prior.values())
        if is_match and isinstance(mine, Examination) and not _has_newer(session, study, mine, route):
            return f"route {route.name!r} may want it as the earlier examination"
    return ""


def _has_newer(session: Session, study: Study, mine: Examination, route: Route) -> bool:
    first = next(iter(route.prior.values()))
    others = select(Study).where(Study.patient_id == study.patient_id, Study.id != study.id, Study.expired_at.is_(None))
    for other in session.scalars(others):
        for each in StudySnapshot(session, other).usable_series:
            then = read_examination(each.attributes)
            if then.is_same_patient(mine) and mine.precedes(then) and each.matches(first):
                return True
    return False
