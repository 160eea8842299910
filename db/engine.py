"""Engine of the database URL: SQLite, durable and with one writer at a time, or PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session, sessionmaker

__all__ = ["connect", "readers", "sessions"]

BUSY_TIMEOUT_MS = 60_000

_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",  # in WAL mode, NORMAL loses committed transactions with the power
    "PRAGMA foreign_keys = ON",
)


def connect(url: str) -> Engine:
    """Return an engine for ``sqlite:///path`` or ``postgresql://...``; it opens no connection yet."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}, pool_size=20)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    return create_engine(parsed, pool_pre_ping=True, pool_size=10, max_overflow=20)


def sessions(engine: Engine) -> sessionmaker[Session]:
    """Return a factory of sessions that write: on SQLite ``begin`` waits for the write lock.

    A clock that is read inside of ``with sessions.begin()`` is therefore read after that wait, and the moments of
    events have the order of their transactions.
    """
    return _WritingSessions(engine, expire_on_commit=False)


def readers(engine: Engine) -> sessionmaker[Session]:
    """Return a factory of sessions that only read, and never block a writer."""
    return sessionmaker(engine.execution_options(read_only=True), expire_on_commit=False)


class _WritingSessions(sessionmaker[Session]):
    @contextmanager
    def begin(self) -> Iterator[Session]:
        with super().begin() as session:
            session.connection()
            yield session


def _prepare_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own kind
    for pragma in _PRAGMAS:
        connection.execute(pragma)


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that reads and then writes may find the row already taken (SQLITE_BUSY_SNAPSHOT).
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
