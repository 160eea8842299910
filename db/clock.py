"""One clock for all hosts that share a database: the database's own.

A lease is written by one host and judged by another. Were each to read its own clock, one that runs ahead by more than
a lease would take jobs from workers that are well. SQLite's clock is the machine's, as only one machine uses it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

__all__ = ["DatabaseClock", "make_clock"]

log = logging.getLogger("dicomnode.clock")

_EVERY_S = 5.0
_WORTH_SAYING_S = 2.0


def make_clock(engine: Engine) -> Callable[[], datetime]:
    """The moment now, UTC, as everybody sees it who shares the database."""
    return DatabaseClock(engine) if engine.dialect.name == "postgresql" else lambda: datetime.now(UTC)


class DatabaseClock:
    """Asks every five seconds and counts on from there, on any thread. The first call raises where nobody answers."""

    def __init__(
        self,
        engine: Engine,
        *,
        own: Callable[[], datetime] = lambda: datetime.now(UTC),
        passed_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._own, self._passed_s = engine, own, passed_s
        self._asking = threading.Lock()
        self._read: tuple[datetime, float] | None = None
        self._ask_at = float("-inf")
        self._said = False

    def __call__(self) -> datetime:
        if self._read is None:
            with self._asking:
                self._ask()
        elif self._passed_s() >= self._ask_at and self._asking.acquire(blocking=False):
            try:
                self._ask()
            except SQLAlchemyError as error:  # the reading of before is still better than this machine's clock
                log.warning("the database was not asked for the time: %s", type(error).__name__)
            finally:
                self._asking.release()
        assert self._read is not None
        moment, at = self._read
        return moment + timedelta(seconds=self._passed_s() - at)

    def _ask(self) -> None:
        self._ask_at = self._passed_s() + _EVERY_S
        with self._engine.connect() as connection:
            connection.execute(select(1))  # the time to connect is none of the answer's
            before = self._passed_s()
            moment = connection.execute(select(func.clock_timestamp())).scalar_one().astimezone(UTC)
            after = self._passed_s()
        self._read = moment, (before + after) / 2
        ahead_s = (self._own() - moment).total_seconds()
        if abs(ahead_s) > _WORTH_SAYING_S and not self._said:
            self._said = True
            log.warning("this machine's clock is %+.1f s off the database's, which counts", ahead_s)
