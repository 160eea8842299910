"""The nights of [[learning]]: one process at a time, started in its hours and killed when they are over.

Nights are started where jobs run: by ``serve`` with local workers, and by ``work``. This module imports no torch; the
work is that of ``dicomnode learn run``.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from db import learning
from dicomnode.config import Config
from dicomnode.config.learning import LearningConfig
from dicomnode.learning.folders import remove_ended

__all__ = ["LearningSupervisor", "is_due"]

_log = logging.getLogger("dicomnode.node")
_GRACE_S = 60.0
"""Seconds after which a process that did not end with its night is killed."""
_SWEEP_EVERY = timedelta(hours=1)


class LearningSupervisor:
    """Process that learns, for the sweeps of a node. Each [[learning]] is tried once a night."""

    def __init__(self, sessions: sessionmaker[Session], config: Config, now: Callable[[], datetime]) -> None:
        self._sessions, self._config, self._now = sessions, config, now
        self._process: subprocess.Popen[bytes] | None = None
        self._ends_at: datetime | None = None
        self._swept_at: datetime | None = None
        self._tried: dict[str, datetime] = {}

    def step(self) -> int:
        """Start the next night that is due, or look after the one that runs; return how many were started."""
        if self._is_running():
            return 0
        self._sweep()
        for entry in self._config.learning:
            night = entry.find_night(self._config.node.to_local_time(self._now()))
            if night is None or self._tried.get(entry.name) == night[0]:
                continue
            self._tried[entry.name] = night[0]
            if is_due(self._sessions, entry):
                self._start(entry, night[1])
                return 1
        return 0

    def _sweep(self) -> None:
        """Remove the images of ended runs, once an hour."""
        if self._swept_at is None or self._now() - self._swept_at > _SWEEP_EVERY:
            self._swept_at = self._now()
            remove_ended(self._config.learning_dir, self._sessions)

    def stop(self) -> None:
        """Kill the process; the run goes on in the next night, or when the node starts in the same one."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # also what outlives the process that started it
            self._process.wait()

    def _is_running(self) -> bool:
        if self._process is None or self._ends_at is None:
            return False
        status = self._process.poll()
        if status is None and (self._now() - self._ends_at).total_seconds() > _GRACE_S:
            _log.error("learning: process %d did not end with its night; killed", self._process.pid)
            self.stop()
        if status is not None:
            _log.info("learning: process %d ended with status %d", self._process.pid, status)
            self.stop()
            self._process = None
        return self._process is not None

    def _start(self, entry: LearningConfig, ends_at: datetime) -> None:
        hours = (ends_at - self._now()).total_seconds() / 3600
        command = [sys.executable, "-m", "dicomnode", "--config", str(self._config.path)]
        command += ["learn", "run", entry.name, "--hours", f"{hours:.4f}"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        self._ends_at = ends_at
        _log.info("learning %s: process %d, at most %.1f hours", entry.name, self._process.pid, hours)


def is_due(sessions: sessionmaker[Session], entry: LearningConfig) -> bool:
    """Return whether a run is to be gone on with, or enough cases were decided since the last one."""
    with engines.readers(sessions.kw["bind"])() as session:
        if learning.find_open(session, entry.name) is not None:
            return True
        return learning.count_new(session, entry.name, entry.pipeline) >= entry.new_cases
