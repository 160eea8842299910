"""Health of a running node: the last success of each sweep, and the number of local workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

__all__ = ["Heartbeat", "SweepHealth"]


@dataclass(frozen=True)
class Heartbeat:
    """The last success of a sweep and the number of its failures.

    ``deadline_s``: the longest time allowed from one success to the next. ``succeeded_at_s``: moment of the monotonic
    clock; the moment of registration where the sweep has not succeeded yet.
    """

    deadline_s: float
    succeeded_at_s: float
    failures: int = 0


class SweepHealth:
    """Heartbeats of all sweeps: written by the scheduler, read by /readyz and /metrics, from any thread.

    ``expected_workers``: the number of local workers that the node starts. ``count_workers``: returns how many run.
    """

    def __init__(self, passed_s: Callable[[], float] = time.monotonic) -> None:
        self._passed_s, self._lock = passed_s, threading.Lock()
        self._heartbeats: dict[str, Heartbeat] = {}
        self.expected_workers = 0
        self.count_workers: Callable[[], int] = lambda: 0

    def watch(self, name: str, deadline_s: float) -> None:
        """Register a sweep that has to succeed at least once in ``deadline_s``."""
        with self._lock:
            self._heartbeats[name] = Heartbeat(deadline_s, self._passed_s())

    def record_success(self, name: str) -> None:
        """Record that the sweep has come to its end."""
        with self._lock:
            self._heartbeats[name] = replace(self._heartbeats[name], succeeded_at_s=self._passed_s())

    def record_failure(self, name: str) -> None:
        """Record that the sweep broke off; the scheduler runs it again."""
        with self._lock:
            heartbeat = self._heartbeats[name]
            self._heartbeats[name] = replace(heartbeat, failures=heartbeat.failures + 1)

    def heartbeats(self) -> dict[str, Heartbeat]:
        """Return a copy of all heartbeats, by sweep."""
        with self._lock:
            return dict(self._heartbeats)

    def measure_age_s(self, heartbeat: Heartbeat) -> float:
        """Return the seconds since the sweep's last success."""
        return self._passed_s() - heartbeat.succeeded_at_s

    def list_late(self) -> list[str]:
        """Return the names of the sweeps that are past their deadline, sorted."""
        late = (name for name, each in self.heartbeats().items() if self.measure_age_s(each) > each.deadline_s)
        return sorted(late)
