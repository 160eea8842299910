"""The machine under the node: its clocks, the boundaries that the node crosses, the planned faults, and death.

This module imports nothing of the node: ``loading`` hands it to the node's modules in place of ``time``.
"""

from __future__ import annotations

import errno
import os
import pickle
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from tests.simulation import scheduling
from tests.simulation.plan import Fault
from tests.simulation.scheduling import Scheduler, Task

__all__ = ["EPOCH", "Machine", "Outside", "PlannedError", "machine", "monotonic", "start_machine"]

EPOCH = datetime(2026, 1, 1, 8, 0, tzinfo=UTC)
_STALL_S = 200.0


class PlannedError(OSError):
    """An error of the disk that the plan holds."""


class HeldObject(NamedTuple):
    """What a peer knows of an object: SHA-256 of the data set, Study and Series Instance UID."""

    sha256: str
    study_uid: str
    series_uid: str


@dataclass
class Outside:
    """What outlives the node's process: the senders, the peers, the clock, and what an observer wrote down."""

    passed_s: float = 0.0
    clock_offset_s: float = 0.0
    acknowledged: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the data set of each instance whose sender got a success."""
    open_dispatches: dict[int, list[int]] = field(default_factory=dict)
    """By dispatch the places of the instances that its sender still has to send."""
    conflicts: set[str] = field(default_factory=set)
    held: dict[str, dict[str, HeldObject]] = field(default_factory=dict)
    """By peer the objects that it holds, by UID."""
    accepted: list[tuple[str, str, str]] = field(default_factory=list)
    """Peer, UID and SHA-256 of each object that a peer answered with success."""
    proven: set[tuple[str, str]] = field(default_factory=set)
    """Peer and UID of each object that a peer confirmed to hold when it was searched."""
    runs: list[tuple[str, str, str]] = field(default_factory=list)
    """Run of a pipeline: "begin", "end", "kill" or "stall", job key and worker; "over" at the end of a life."""
    removed: list[tuple[str, frozenset[tuple[str, str]], frozenset[tuple[str, str]]]] = field(default_factory=list)
    """SHA-256 of each file that the node deleted, with what peers had accepted and what they had confirmed by then."""
    denied: set[tuple[str, str]] = field(default_factory=set)
    """Peer and UID of each object that a peer answered with success and did not keep."""
    surprises: list[str] = field(default_factory=list)
    heads: list[tuple[int, str]] = field(default_factory=list)
    """Number and hash of the newest event of the trail at the end of each life."""
    pending_disk: Any = None
    crossings: Counter[str] = field(default_factory=Counter)
    trace: list[str] = field(default_factory=list)


class Machine:
    """One life's machine."""

    def __init__(
        self, outside: Outside, scheduler: Scheduler, faults: tuple[Fault, ...], seed: str, home: Path
    ) -> None:
        self.outside, self.scheduler, self.home = outside, scheduler, home
        self.random = random.Random(f"machine {seed}")
        self._faults = {(each.at, each.number): each.act for each in faults}
        self._counts: Counter[str] = Counter()
        self.workers: dict[Task, str] = {}
        self.job_s = 0.0
        self.before_death: list[Callable[[bool], None]] = []
        self.on_kill: Callable[[Task], None] = lambda task: None
        self._is_dying = False

    def now(self) -> datetime:
        """Return the moment that the wall clock shows."""
        return EPOCH + timedelta(seconds=self.scheduler.passed_s + self.outside.clock_offset_s)

    def cross(self, boundary: str) -> str:
        """Cross a boundary: perhaps die, raise the planned error, or return what the caller has to let happen."""
        task = self.scheduler.current
        if task is None or self._is_dying:
            return ""
        act = self._take_fault(boundary)
        if (worker := self._find_worker(task)) is not None and not act:
            act = self._take_fault("work")
            if act == "kill":
                self._kill(worker)
        if act in ("die", "cut"):
            self.die(is_cut=act == "cut")
        if act == "stall":
            if worker is not None:  # it may lose its lease
                self.outside.runs.append(("stall", "", self.workers[worker]))
            self.scheduler.sleep(_STALL_S)
        if act in ("ENOSPC", "EIO"):
            number = getattr(errno, act)
            raise PlannedError(number, os.strerror(number))
        self.scheduler.cross()
        return act

    def name_worker(self) -> str:
        """Return the name of the worker whose task runs."""
        worker = self._find_worker(self.scheduler.current)
        return self.workers[worker] if worker is not None else ""

    def die(self, *, is_cut: bool) -> None:
        """End the process here and now; with a power cut, what was not synchronised may be lost."""
        self._is_dying = True
        self.note(f"the process ends{' by a power cut' if is_cut else ''}")
        for act in self.before_death:
            act(is_cut)
        self.save()
        os._exit(0)

    def save(self) -> None:
        """Write down what outlives the process."""
        self.outside.passed_s = self.scheduler.passed_s
        self.outside.crossings.update(self._counts)
        (self.home / "outside").write_bytes(pickle.dumps(self.outside))

    def note_removal(self, digest: str) -> None:
        """Write down what was proven at the moment when a stored file went."""
        outside = self.outside
        accepted = frozenset((peer, uid) for peer, uid, _ in outside.accepted)
        outside.removed.append((digest, accepted, frozenset(outside.proven)))
        self.note(f"the file {digest[:12]} is deleted")

    def note(self, text: str) -> None:
        """Add a line to the trace of the trial."""
        task = self.scheduler.current
        self.outside.trace.append(f"{self.scheduler.passed_s:9.3f} {task.name if task else '-'}: {text}")

    def _take_fault(self, boundary: str) -> str:
        self._counts[boundary] += 1
        act = self._faults.pop((boundary, self._counts[boundary]), "")
        if act:
            self.note(f"{act} at {boundary} {self._counts[boundary]}")
        return act

    def _find_worker(self, task: Task | None) -> Task | None:
        while task is not None and task not in self.workers:
            task = task.parent
        return task

    def _kill(self, worker: Task) -> None:
        """Kill a worker, unless it holds a lock of the database: then its next crossing does."""
        family = [worker, self.scheduler.current]
        if any(task is not None and task.held for task in family):
            self._faults["work", self._counts["work"] + 1] = "kill"
            return
        self.scheduler.kill(worker)
        self.on_kill(worker)
        self.scheduler.leave()


_machine: Machine | None = None


def start_machine(new: Machine) -> None:
    """Let ``machine`` return the new one."""
    global _machine
    _machine = new


def machine() -> Machine:
    """Return the machine of the present life."""
    assert _machine is not None
    return _machine


def monotonic() -> float:
    """Return the monotonic clock, in the place of time.monotonic."""
    return scheduling.active().passed_s
