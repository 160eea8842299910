"""A worker in this process, as ``dicomnode work`` and an actor of Ray run it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from db import clock, jobs, workers
from db import engine as engines
from dicomnode.config import Config
from dicomnode.monitoring import gpus
from dicomnode.storage.high_water import check_nothing_lost
from dicomnode.storage.shared import SpoolMarker, check_spool_matches_database

__all__ = ["SpoolGuard", "build_worker_name", "run_worker_process"]

log = logging.getLogger("dicomnode.execution.worker")

_REPORT_S = 10.0


def build_worker_name(config: Config) -> str:
    """Return the name with which the worker in this process signs its leases."""
    return jobs.worker_name(os.getpid(), config.worker.host)


def run_worker_process(config: Config, *, once: bool, stop: threading.Event) -> int:
    """Run jobs until ``stop`` is set, or with ``once`` until none is waiting; return the number of jobs run.

    Raises ConfigError where this host's spool does not belong to the database, StorageDamaged where rows were lost.
    """
    from dicomnode.execution import worker

    engine = engines.connect(config.database_url)
    try:
        now, sessions, name = clock.make_clock(engine), engines.sessions(engine), build_worker_name(config)
        with engines.readers(engine)() as session:
            check_spool_matches_database(session, config.spool_dir)
            check_nothing_lost(session, config.spool_dir)
        mark = SpoolMarker(config.spool_dir, name)
        with _report_regularly(sessions, name, mark, now):
            may_take = SpoolGuard(mark).may_take
            return worker.run_worker(sessions, config, worker=name, stop=stop, once=once, may_take=may_take, now=now)
    finally:
        engine.dispose()


class SpoolGuard:
    """The check that this worker's mark is in the spool: no job is taken while it is missing."""

    def __init__(self, mark: SpoolMarker) -> None:
        self._mark, self._was_present = mark, True

    def may_take(self) -> bool:
        """Return whether a job may be taken; log when that changes."""
        is_present = self._mark.is_there()
        if is_present != self._was_present:
            if is_present:
                log.warning("the spool is back")
            else:
                log.error("the spool is not the one of this worker's start: is it mounted? No job is taken meanwhile")
        self._was_present = is_present
        return is_present


@contextmanager
def _report_regularly(
    sessions: sessionmaker[Session], name: str, mark: SpoolMarker, now: Callable[[], datetime]
) -> Iterator[None]:
    """Report the worker and its GPUs in the database every ten seconds, as long as the context is open."""
    done = threading.Event()

    def report() -> None:
        while True:
            mark.renew()
            with suppress(SQLAlchemyError), sessions.begin() as session:
                workers.report(session, name, gpus=gpus.read_gpus(), now=now())
            if done.wait(_REPORT_S):
                return

    mark.set()
    thread = threading.Thread(target=report, name="report of the worker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        mark.remove()
        with suppress(SQLAlchemyError), sessions.begin() as session:
            workers.forget(session, name)
