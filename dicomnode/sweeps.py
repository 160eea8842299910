"""Run the sweeps of a node, each on a thread of its own, once a second by the monotonic clock.

APScheduler is not used: its triggers compute the next run from the wall clock, and a clock that is set back by an hour
stops them for that hour.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from dicomnode.monitoring.sweep_health import SweepHealth

__all__ = ["Sweeps"]

log = logging.getLogger("dicomnode.node")

PAUSE_S = 1.0


class Sweeps:
    """Threads that call ``sweeps`` by name until ``stop``. A slow sweep does not hold up another one.

    ``before`` is called ahead of each sweep; a sweep returns how many things it did, for the log.
    """

    def __init__(
        self,
        sweeps: Mapping[str, Callable[[], int]],
        *,
        sweep_health: SweepHealth,
        before: Callable[[], None],
        pause_s: float = PAUSE_S,
    ) -> None:
        self._health, self._before, self._pause_s = sweep_health, before, pause_s
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(name, sweep), name=f"sweep {name}", daemon=True)
            for name, sweep in sweeps.items()
        ]

    def start(self) -> None:
        """Start the thread of every sweep."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait for running sweeps to end, and start no further ones."""
        self._ended.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _repeat(self, name: str, sweep: Callable[[], int]) -> None:
        while not self._ended.wait(self._pause_s):
            self._run(name, sweep)

    def _run(self, name: str, sweep: Callable[[], int]) -> None:
        """Run one sweep. It is tried again after a failure, whose own words may name a patient and are not logged."""
        try:
            self._before()
            if done := sweep():
                log.debug("%s: %d", name, done)  # what was done has lines of its own
            self._health.record_success(name)
        except Exception as error:
            self._health.record_failure(name)
            last = traceback.extract_tb(error.__traceback__)[-1]
            log.error("%s: %s in %s, line %s", name, type(error).__name__, Path(last.filename).name, last.lineno)
