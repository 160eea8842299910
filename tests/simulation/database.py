"""The database under the node: transactions cross boundaries, wait for the write lock, and fail as planned.

SQLite's own writes are not simulated. Where a connection does not synchronise each commit, a power cut takes the
transactions since.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from db import engine as engines
from tests.simulation import scheduling
from tests.simulation.machine import Machine, machine

__all__ = ["Database", "PlannedDatabaseError", "set_database", "watch_engine"]

_FULL = 2


class PlannedDatabaseError(OperationalError):
    """An error of the database that the plan holds."""


class _WriteLock:
    """The one write lock of a database; a transaction holds it until its connection goes back to the pool."""

    def __init__(self) -> None:
        self._lock = scheduling.Lock()
        self._holder: object = None

    def take(self, connection: object) -> None:
        if self._holder is not connection:
            self._lock.acquire()
            self._holder = connection

    def leave(self, connection: object) -> None:
        if self._holder is connection:
            self._holder = None
            self._lock.release()


class Database:
    """The write lock of one life, and what a power cut leaves."""

    def __init__(self, machine: Machine, path: Path) -> None:
        self.lock = _WriteLock()
        self._machine, self._path = machine, path
        self._before: dict[Path, bytes] | None = None
        machine.before_death.append(self._end)

    def remember(self, connection: Connection) -> None:
        """Keep a copy of the files where the commit that follows is not synchronised."""
        if self._before is None and connection.exec_driver_sql("PRAGMA synchronous").scalar_one() < _FULL:
            self._before = {path: path.read_bytes() for path in self._files() if path.exists()}

    def _files(self) -> list[Path]:
        return [self._path, self._path.with_name(f"{self._path.name}-wal")]

    def _end(self, is_cut: bool) -> None:
        if is_cut and self._before is not None:
            self._machine.note("power cut: the transactions since the first one that was not synchronised are lost")
            for path in self._files():
                path.unlink(missing_ok=True)
                if path in self._before:
                    path.write_bytes(self._before[path])


_current: list[Database] = []


def watch_engine(url: str) -> Engine:
    """Return the node's engine, whose transactions cross the boundaries of the present machine."""
    engines.BUSY_TIMEOUT_MS = 0  # the simulated lock is the one that transactions wait for
    engine = engines.connect(url)
    event.listen(Engine, "begin", _begin)  # of the class: called ahead of the engine's own, which begins
    event.listen(engine, "commit", _commit)
    event.listen(engine, "checkin", _check_in)
    event.listen(Session, "after_commit", _note_commit)
    return engine


def set_database(database: Database) -> None:
    """Let the transactions from now on be those of this database."""
    _current[:] = [database]


def _is_reader(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get("read_only", False))


def _begin(connection: Connection) -> None:
    if not _current:  # the template of the database is made
        return
    act = machine().cross("begin")
    if act == "locked":
        raise PlannedDatabaseError("BEGIN", {}, sqlite3.OperationalError("database is locked"))
    if not _is_reader(connection):
        _current[0].lock.take(connection.connection.dbapi_connection)


def _commit(connection: Connection) -> None:
    if _is_reader(connection):
        return
    _current[0].remember(connection)
    if machine().cross("commit") == "fails":
        raise PlannedDatabaseError("COMMIT", {}, sqlite3.OperationalError("disk I/O error"))


def _note_commit(session: Session) -> None:
    del session
    machine().cross("committed")


def _check_in(connection: Any, record: Any) -> None:
    del record
    if _current:
        _current[0].lock.leave(connection)
