"""Revisions of the schema, and the upgrade of a database to the newest one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

__all__ = ["current", "downgrade", "head", "upgrade"]

_LOCK = 0x0D1C0  # any number of our own: one process migrates at a time


def upgrade(engine: Engine) -> None:
    """Upgrade the database to the newest revision; several processes may call this at once."""
    with _lock_schema(engine) as connection:
        if _current(connection) != head():
            command.upgrade(_config(connection), "head")


def downgrade(engine: Engine, revision: str) -> None:
    """Downgrade the database to an older revision; values that it cannot express become the nearest that it can."""
    with _lock_schema(engine) as connection:
        command.downgrade(_config(connection), revision)


def current(engine: Engine) -> str | None:
    """Return the revision of the database; None when it is empty."""
    with engine.connect() as connection:
        return _current(connection)


def head() -> str | None:
    """Return the newest revision of the program."""
    return ScriptDirectory.from_config(_config()).get_current_head()


@contextmanager
def _lock_schema(engine: Engine) -> Iterator[Connection]:
    """Open a transaction during which no other process migrates.

    SQLite changes a constraint by copying the table, and dropping the old one would count as deleting its rows; foreign
    keys are therefore checked at the end. The pragma does nothing inside a transaction.
    """
    with engine.connect() as connection:
        sqlite = connection.dialect.name == "sqlite"
        if sqlite:
            _foreign_keys(connection, on=False)
        try:
            with connection.begin():
                if not sqlite:
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
                yield connection
                if sqlite and (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").all()):
                    raise RuntimeError(f"the migration would leave {len(broken)} rows without what they refer to")
        finally:
            if sqlite:
                _foreign_keys(connection, on=True)


def _foreign_keys(connection: Connection, *, on: bool) -> None:
    """Set SQLite's checks of foreign keys, bypassing SQLAlchemy, which would begin a transaction."""
    driver = connection.connection.driver_connection
    if driver is not None:
        driver.execute(f"PRAGMA foreign_keys = {'ON' if on else 'OFF'}")


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
