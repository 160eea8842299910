"""The plan of a trial: pure data that follow from the seed alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

__all__ = ["ACTS", "Dispatch", "Fault", "Life", "Plan", "make_plan"]

ACTS: dict[str, tuple[tuple[str, ...], int]] = {
    "open": (("die", "cut", "ENOSPC", "EIO"), 24),
    "write": (("die", "cut", "ENOSPC", "EIO", "torn", "short"), 24),
    "fsync": (("die", "cut", "ENOSPC", "EIO"), 48),
    "rename": (("die", "cut", "EIO"), 24),
    "link": (("die", "cut"), 6),
    "unlink": (("die", "cut"), 12),
    "begin": (("die", "cut", "locked"), 60),
    "commit": (("die", "cut", "fails"), 60),
    "committed": (("die", "cut"), 60),
    "receive": (("drop", "die"), 24),
    "answer": (("drop", "die", "cut"), 20),
    "associate": (("refuse", "stall", "die"), 12),
    "store": (("lose", "refuse", "keep nothing", "stall", "die", "cut"), 10),
    "stored": (("lose", "stall", "die", "cut"), 10),
    "find": (("lose", "die"), 6),
    "work": (("kill", "stall", "die"), 20),
}
"""By boundary: what may happen there, and the highest number of the crossing at which it is planned."""


@dataclass(frozen=True)
class Fault:
    """The ``number``-th crossing of the boundary ``at`` in one life does ``act``."""

    at: str
    number: int
    act: str

    def __str__(self) -> str:
        return f"{self.act} at {self.at} {self.number}"


@dataclass(frozen=True)
class Dispatch:
    """One association of a sender: instances (study, series, number, content) from ``start_s`` on."""

    sender: str
    start_s: float
    instances: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True)
class Life:
    """One life of the node's process, which ends by death after ``duration_s``; ``is_cut``: with a power cut."""

    duration_s: float
    is_cut: bool
    faults: tuple[Fault, ...]
    clock_jump_s: float = 0.0


@dataclass(frozen=True)
class Plan:
    """One trial. After the lives a last one without faults runs until nothing is left to do."""

    seed: int
    lives: tuple[Life, ...]
    dispatches: tuple[Dispatch, ...]
    workers: int
    job_s: float
    is_retaining: bool
    switch_share: float

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.workers} workers, jobs of {self.job_s:.0f} s, retention {self.is_retaining}"]
        for number, life in enumerate(self.lives):
            faults = ", ".join(map(str, life.faults)) or "no faults"
            end = "power cut" if life.is_cut else "death"
            jump = f", clock set by {life.clock_jump_s:+.0f} s" if life.clock_jump_s else ""
            lines.append(f"  life {number}: {faults}{jump}, then {end} after {life.duration_s:.0f} s")
        lines += [f"  {each.sender} at {each.start_s:.0f} s: {each.instances}" for each in self.dispatches]
        return "\n".join(lines)


def make_plan(seed: int) -> Plan:
    """Return the plan of a seed."""
    source = random.Random(f"plan {seed}")
    return Plan(
        seed=seed,
        lives=tuple(_make_life(source) for _ in range(source.choice((1, 1, 2, 2, 3)))),
        dispatches=tuple(_make_dispatches(source)),
        workers=source.choice((1, 2)),
        job_s=source.choice((0.0, 5.0, 100.0)),
        is_retaining=source.random() < 0.5,
        switch_share=source.choice((0.0, 0.1, 0.5)),
    )


def _make_life(source: random.Random) -> Life:
    faults = tuple(_make_fault(source) for _ in range(source.choice((0, 1, 1, 2, 3))))
    jump = source.choice((-3600.0, 3600.0)) if source.random() < 0.1 else 0.0
    return Life(source.uniform(5, 250), source.random() < 0.5, faults, jump)


def _make_fault(source: random.Random) -> Fault:
    at = source.choice(list(ACTS))
    acts, highest = ACTS[at]
    return Fault(at, 1 + int(highest * source.random() ** 2), source.choice(acts))


def _make_dispatches(source: random.Random) -> list[Dispatch]:
    dispatches: list[Dispatch] = []
    for study in range(source.choice((1, 1, 2))):
        for series in range(source.choice((1, 1, 2))):
            start_s = source.choice((0.0, 0.0, 60.0))
            instances = tuple((study, series, number, 0) for number in range(source.randint(1, 3)))
            dispatches.append(Dispatch(f"SCANNER{len(dispatches)}", start_s, instances))
    if source.random() < 0.4:  # the same series from another sender, sometimes with one other content
        again = source.choice(dispatches)
        changed = int(source.random() < 0.5)
        instances = tuple((*each[:3], changed * (each[2] == 0)) for each in again.instances)
        dispatches.append(replace(again, sender="SCANNER9", start_s=source.choice((0.0, 30.0)), instances=instances))
    return dispatches
