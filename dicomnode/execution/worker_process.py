"""A worker in this process: what ``dicomnode work`` runs, and what a Ray actor runs."""

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

__all__ = ["Guard", "name_of", "work"]

log = logging.getLogger("dicomnode.execution.worker")

_REPORT_S = 10.0


def name_of(config: Config) -> str:
    """How the worker in this process signs its leases."""
    return jobs.worker_name(os.getpid(), config.worker.host)


def work(config: Config, *, once: bool, stop: threading.Event) -> int:
    """Take jobs until told to stop, or with ``once`` until none is waiting; the number of jobs taken.

    Raises ConfigError where this host's spool is not that of the database, StorageDamaged where that lost rows.
    """
    from dicomnode.execution import worker

    engine = engines.connect(config.database_url)
    try:
        now, sessions, name = clock.make_clock(engine), engines.sessions(engine), name_of(config)
        with engines.readers(engine)() as session:
            check_spool_matches_database(session, config.spool_dir)
            check_nothing_lost(session, config.spool_dir)
        mark = SpoolMarker(config.spool_dir, name)
        with _reporting(sessions, name, mark, now):
            may_take = Guard(mark).may_take
            return worker.work(sessions, config, worker=name, stop=stop, once=once, may_take=may_take, now=now)
    finally:
        engine.dispose()


class Guard:
    """No job is taken while the worker's mark is not in the spool."""

    def __init__(self, mark: SpoolMarker) -> None:
        self._mark, self._was_there = mark, True

    def may_take(self) -> bool:
        there = self._mark.is_there()
        if there != self._was_there:
            if there:
                log.warning("the spool is back")
            else:
                log.error("the spool is not the one that it was: is it mounted? No job is taken meanwhile")
        self._was_there = there
        return there


@contextmanager
def _reporting(
    sessions: sessionmaker[Session], name: str, mark: SpoolMarker, now: Callable[[], datetime]
) -> Iterator[None]:
    """While inside, the worker of that name says every now and then that it is alive, and which GPUs it sees."""
    done = threading.Event()

    def tell() -> None:
        while True:
            mark.renew()
            with suppress(SQLAlchemyError), sessions.begin() as session:
                workers.report(session, name, gpus=gpus.read_gpus(), now=now())
            if done.wait(_REPORT_S):
                return

    mark.set()
    thread = threading.Thread(target=tell, name="report of the worker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        mark.remove()
        with suppress(SQLAlchemyError), sessions.begin() as session:
            workers.forget(session, name)
