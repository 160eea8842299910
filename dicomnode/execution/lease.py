"""The lease that a worker has on a job, renewed by a thread of its own while the job runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Self

from sqlalchemy.orm import Session, sessionmaker

from db import jobs
from db.jobs import LeaseLost
from dicomnode.config import Config

__all__ = ["Interrupted", "Lease"]

log = logging.getLogger("dicomnode.execution.worker")

Clock = Callable[[], datetime]


class Interrupted(Exception):
    """The stop of a worker in the middle of a job."""


class Lease:
    """The lease of a job: a thread renews it, and ``progress`` raises when the job has to stop."""

    def __init__(
        self,
        sessions: sessionmaker[Session],
        config: Config,
        job_id: int,
        worker: str,
        stop: threading.Event,
        now: Clock,
    ) -> None:
        self._sessions, self._config, self._now = sessions, config, now
        self._job_id, self._worker, self._stop = job_id, worker, stop
        self._done, self._lost = threading.Event(), threading.Event()
        self._progress = (0.0, "")
        self._thread = threading.Thread(target=self._renew_until_done, name=f"lease of job {job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def progress(self, fraction: float, step: str) -> None:
        """Record a pipeline's progress. Raises LeaseLost or Interrupted when the job has to stop."""
        self._progress = (fraction, step)
        if self._lost.is_set():
            raise LeaseLost(f"job {self._job_id} was cancelled or taken by another worker")
        if self._stop.is_set():
            raise Interrupted

    def _renew_until_done(self) -> None:
        lease_s = self._config.worker.lease_s
        while not self._done.wait(min(2.0, lease_s / 3)):
            try:
                is_held = self._renew(lease_s)
            except Exception as error:  # the database may come back before the lease lapses
                log.warning("lease of job %d not renewed: %s", self._job_id, type(error).__name__)
                continue
            if not is_held:
                self._lost.set()
                return

    def _renew(self, lease_s: float) -> bool:
        fraction, step = self._progress
        with self._sessions.begin() as session:
            return jobs.renew(
                session,
                job_id=self._job_id,
                worker=self._worker,
                lease_s=lease_s,
                fraction=fraction,
                step=step,
                now=self._now(),
            )
