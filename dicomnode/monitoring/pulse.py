"""Whether the parts of a running node are alive: each sweep's last success, and its local workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Beat", "Pulse"]


@dataclass(frozen=True)
class Beat:
    """A sweep's last success by the monotonic clock, or its registration when it had none; how often it has failed."""

    patience_s: float
    succeeded_at_s: float
    failures: int = 0


class Pulse:
    """Told by the clock and asked by /readyz and /metrics, from whatever thread.

    ``expected_workers`` and ``count_workers``: how many local workers there should be, and are.
    """

    def __init__(self, passed_s: Callable[[], float] = time.monotonic) -> None:
        self._passed_s, self._lock = passed_s, threading.Lock()
        self._beats: dict[str, Beat] = {}
        self.expected_workers = 0
        self.count_workers: Callable[[], int] = lambda: 0

    def watch(self, name: str, patience_s: float) -> None:
        """That sweep has to succeed at least so often."""
        with self._lock:
            self._beats[name] = Beat(patience_s, self._passed_s())

    def succeeded(self, name: str) -> None:
        """The sweep has come to its end."""
        with self._lock:
            beat = self._beats[name]
            self._beats[name] = Beat(beat.patience_s, self._passed_s(), beat.failures)

    def failed(self, name: str) -> None:
        """The sweep broke off; it is tried again."""
        with self._lock:
            beat = self._beats[name]
            self._beats[name] = Beat(beat.patience_s, beat.succeeded_at_s, beat.failures + 1)

    def beats(self) -> dict[str, Beat]:
        """By sweep."""
        with self._lock:
            return dict(self._beats)

    def age_s(self, beat: Beat) -> float:
        """How long ago its last success was."""
        return self._passed_s() - beat.succeeded_at_s

    def late(self) -> list[str]:
        """The sweeps that have not succeeded for longer than may be."""
        return sorted(name for name, beat in self.beats().items() if self.age_s(beat) > beat.patience_s)
