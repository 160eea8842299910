"""One clock for all hosts that share a database: the database's own.

One host writes a lease and another judges it. If each read its own clock, a host whose clock is ahead by more than a
lease would take jobs from healthy workers. With SQLite the machine's clock is used, as only one machine is involved.
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

_INTERVAL_S = 5.0
_LOGGED_OFFSET_S = 2.0


def make_clock(engine: Engine) -> Callable[[], datetime]:
    """Return a function that returns the present moment (UTC), the same on every host that shares the database."""
    return DatabaseClock(engine) if engine.dialect.name == "postgresql" else lambda: datetime.now(UTC)


class DatabaseClock:
    """Clock of the database: read every five seconds, interpolated in between, on any thread.

    The first call raises SQLAlchemyError where the database does not answer.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        machine_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        passed_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._machine_clock, self._passed_s = engine, machine_clock, passed_s
        self._reading = threading.Lock()
        self._read: tuple[datetime, float] | None = None
        self._read_again_at = float("-inf")
        self._logged = False

    def __call__(self) -> datetime:
        if self._read is None:
            with self._reading:
                self._read_database()
        elif self._passed_s() >= self._read_again_at and self._reading.acquire(blocking=False):
            try:
                self._read_database()
            except SQLAlchemyError as error:  # the last reading is still better than this machine's clock
                log.warning("the database was not asked for the time: %s", type(error).__name__)
            finally:
                self._reading.release()
        assert self._read is not None
        moment, at = self._read
        return moment + timedelta(seconds=self._passed_s() - at)

    def _read_database(self) -> None:
        self._read_again_at = self._passed_s() + _INTERVAL_S
        with self._engine.connect() as connection:
            connection.execute(select(1))  # so that the time to connect is not measured
            before = self._passed_s()
            moment = connection.execute(select(func.clock_timestamp())).scalar_one().astimezone(UTC)
            after = self._passed_s()
        self._read = moment, (before + after) / 2
        ahead_s = (self._machine_clock() - moment).total_seconds()
        if abs(ahead_s) > _LOGGED_OFFSET_S and not self._logged:
            self._logged = True
            log.warning("this machine's clock is %+.1f s off the database's, which counts", ahead_s)
