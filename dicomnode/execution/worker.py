"""A worker: claims jobs that its host can run, and runs them one after the other."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from db import jobs
from db.clock_jumps import ClockWatch
from db.jobs import LeaseLost
from dicomnode.config import Config
from dicomnode.execution.host_capabilities import HostCapabilities
from dicomnode.execution.job_run import JobRun, WorkerContext
from dicomnode.execution.lease import Lease
from dicomnode.execution.model_cache import ModelCache

__all__ = ["run_worker"]

log = logging.getLogger("dicomnode.execution.worker")

Clock = Callable[[], datetime]

_DATABASE_PAUSE_S = 2.0


def run_worker(
    sessions: sessionmaker[Session],
    config: Config,
    *,
    worker: str,
    stop: threading.Event,
    once: bool = False,
    may_take: Callable[[], bool] = lambda: True,
    now: Clock = lambda: datetime.now(UTC),
) -> int:
    """Run jobs until ``stop`` is set, or with ``once`` until none is waiting; return the number of jobs run.

    ``may_take``: returns whether the host is in order to take a job.
    """
    context = WorkerContext(sessions, config, worker, stop, now, ModelCache(config.worker.warm_models))
    capabilities = HostCapabilities(sessions, config, worker, now)
    watch = ClockWatch(sessions, now, lease_s=config.worker.lease_s, moves_rows=False)
    count = 0
    while not stop.is_set():
        try:
            watch.check()
            job_id = _claim_job(context, capabilities) if may_take() else None
            if job_id is not None:
                count += 1
                JobRun(context, job_id).run()
            elif once:
                break
            else:
                stop.wait(config.worker.poll_s)
        except (InterfaceError, OperationalError) as error:  # the lease of a job in hand lapses; it is claimed again
            if once:
                raise
            log.error("the database does not answer (%s); asked again in %g s", type(error).__name__, _DATABASE_PAUSE_S)
            stop.wait(_DATABASE_PAUSE_S)
    return count


def _claim_job(context: WorkerContext, capabilities: HostCapabilities) -> int | None:
    """Claim the next job that this host can run, and return its number; None where none is waiting."""
    config, worker, now = context.config, context.name, context.now
    while True:
        with context.sessions.begin() as session:
            jobs.expire_leases(session, attempts=config.worker.attempts, now=now())
            excluded = capabilities.unmet_needs()
            job = jobs.claim(session, worker=worker, lease_s=config.worker.lease_s, exclude=excluded, now=now())
        if job is None:
            return None
        with Lease(context.sessions, config, job.id, worker, context.stop, now):  # reading large weights takes time
            reason = capabilities.reason_unable(job)
        if not reason:
            return job.id
        log.warning("job %d: not for this host; %s", job.id, reason)
        with suppress(LeaseLost), context.sessions.begin() as session:
            jobs.return_to_queue(session, job_id=job.id, worker=worker, reason=reason, now=now())
