"""Retention: sources and results expire when they are delivered and old enough, never when held, failed or awaited.

A study's sources go when all its jobs are over and delivered, no job of another study still takes them, no search
brings more of it, no open workitem names it, and no route may want it as the next study's earlier examination. A job's
results go when no open workitem names their study, and every object is where it should be, proven by the destinations
that are asked to prove it. A job without destinations has delivered nothing: what it made stays, its sources too,
unless its route states ``keep_results_days``, or [worklist] for what workitems order: then its end counts in place of a
delivery. A trial without destinations keeps no sources once it has ended, and its results go when they are old enough.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from db import notifications, retention, workitems
from db.models import Delivery, Job, Study
from db.states import DeliveryState, JobState
from dicomnode.commitment import proving
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
_COMMITTED = "it was committed to a sender, which may have deleted its own copy"
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
        self._logged: set[int] = set()

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
        count = sum(_expire_study(self._sessions, self._config, id, now) for id in ids)
        self._log_committed(ids, now())
        return count

    def _log_committed(self, ids: Sequence[int], now: datetime) -> None:
        """Log each study once that stays only because it was committed to a sender."""
        with engines.readers(self._sessions.kw["bind"])() as session:
            for study in session.scalars(select(Study).where(Study.id.in_(set(ids) - self._logged))):
                if explain_kept(session, study, self._config, now=now) == _COMMITTED:
                    self._logged.add(study.id)
                    _log.info("retention: study %d stays: %s", study.id, _COMMITTED)


def shortest_days(config: Config) -> float:
    """Return the shortest retention period in days; 0 where nothing ever expires."""
    section = config.retention
    periods = [section.sources_days, section.results_days, section.unrouted_days, config.worklist.keep_results_days]
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
    waiting = [job for job in jobs if not is_settled(job, config)]
    if waiting:
        return f"job {waiting[0].id} is {waiting[0].state} and not delivered"
    if reason := next(filter(None, (_explain_unproven(job, config) for job in jobs)), ""):
        return reason
    if retention.is_input_elsewhere(session, study):
        return "a job of another study takes it"
    if retention.has_open_retrievals(session, study):
        return "something is being fetched"
    if reason := _explain_workitem(session, study, config):
        return reason
    days = _source_days(config, jobs)
    if not days or now < _last_activity(study, jobs, config) + timedelta(days=days):
        return "it is not old enough"
    if not config.retention.delete_committed and retention.has_committed_sources(session, study):
        return _COMMITTED
    return _describe_use_as_prior(session, study, config, now)


def _explain_workitem(session: Session, study: Study, config: Config) -> str:
    """Return which open workitem names the study as input, or ""; none counts where the worklist is not enabled."""
    found = workitems.list_open_of_study(session, study.study_uid) if config.worklist.enabled else ()
    return f"workitem {found[0].uid} is {found[0].state}" if found else ""


def is_settled(job: Job, config: Config) -> bool:
    """Return whether the job has ended and all its results are delivered; shadow jobs and most trials deliver none."""
    if job.is_trial and not job.destinations:
        return job.state in (*_OVER, JobState.DEAD)
    if job.state not in _OVER:
        return False
    if _stays_on_purpose(job, config):
        return True
    rows = _deliveries(job)
    done = [row for row in rows if row.state is DeliveryState.DELIVERED]
    rest = [
        row for row in rows if row.state is not DeliveryState.DELIVERED and not notifications.is_replaced(row, rows)
    ]
    return job.shadow_of_id is not None or (bool(done) and not rest)


def _stays_on_purpose(job: Job, config: Config) -> bool:
    """Return whether the job delivers nothing, and node.toml states how long the results are kept all the same."""
    return not job.destinations and bool(_stated_days(job, config))


def _stated_days(job: Job, config: Config) -> float:
    """Return how long the results of a job without destinations are kept, as its route states, or [worklist]; or 0."""
    route = config.find_route(job.route)
    if route is not None and route.keep_results_days is not None:
        return route.keep_results_days
    return config.worklist.keep_results_days if workitems.uid_of_route(job.route) else 0.0


def _explain_unproven(job: Job, config: Config) -> str:
    """Return which destination has not proven that it keeps a result that was sent to it, or ""."""
    names = {peer.name for peer in config.peers if proving.needs_proof(peer)}
    for row in _deliveries(job):
        if row.destination in names and row.proof is not None and row.proof.is_owed:
            return f"job {job.id} is not proven at {row.destination}"
    return ""


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
    own = 0.0 if job.destinations else _stated_days(job, config)
    days = own or _days(config, job.route, "keep_results_days", config.retention.results_days)
    there = _list_ends(job, config)
    if not days or not there or now < max(there) + timedelta(days=days):
        return False
    if not is_settled(job, config) or _explain_unproven(job, config) or _explain_workitem(session, job.study, config):
        return False
    compared = select(Job.id).where(Job.shadow_of_id == job.id, Job.state.in_((JobState.READY, JobState.RUNNING)))
    held = any(output.expired_at is None for output in job.outputs)
    return held and session.scalar(compared.limit(1)) is None


def _source_days(config: Config, jobs: Sequence[Job]) -> float:
    """Return the longest period that a route of the jobs requires, in days; 0: for ever. Trials require none."""
    routes = {job.route for job in jobs if not job.is_trial}
    if not routes:
        return config.retention.unrouted_days
    periods = [_days(config, route, "keep_sources_days", config.retention.sources_days) for route in routes]
    return 0.0 if 0.0 in periods else max(periods)


def _days(config: Config, route: str, key: str, default: float) -> float:
    """Return the period of the route in days, or the default, also where the route does not exist any more."""
    period = getattr(config.find_route(route), key, None)
    return default if period is None else float(period)


def _last_activity(study: Study, jobs: Sequence[Job], config: Config) -> datetime:
    """Return the moment of the last arrival or delivery, or end of a job that delivers nothing."""
    return max([study.last_received_at, *(end for job in jobs for end in _list_ends(job, config))])


def _list_ends(job: Job, config: Config) -> list[datetime]:
    """Return the moments of the job's deliveries, or that of its end where it delivers nothing on purpose."""
    if (job.is_trial and not job.destinations) or _stays_on_purpose(job, config):
        return [job.finished_at] if job.finished_at is not None else []
    return [row.delivered_at for row in _deliveries(job) if row.delivered_at is not None]


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
