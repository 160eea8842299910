"""Effort of a piece of work, measured so that other work on the machine does not change it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine, event

__all__ = ["Effort", "measure_effort"]


@dataclass
class Effort:
    """``statements``: SQL statements of this process; ``cpu_s``: its CPU time, of all threads; ``wall_s``: duration.

    SQLite works in this process, PostgreSQL in another: its work is in the number of statements and the duration.
    """

    statements: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0


@contextmanager
def measure_effort() -> Iterator[Effort]:
    """Yield an effort that is complete at the end of the block."""
    effort = Effort()

    def count(*_: object) -> None:
        effort.statements += 1

    cpu, wall = time.process_time(), time.monotonic()
    event.listen(Engine, "before_cursor_execute", count)
    try:
        yield effort
    finally:
        event.remove(Engine, "before_cursor_execute", count)
        effort.cpu_s, effort.wall_s = time.process_time() - cpu, time.monotonic() - wall
