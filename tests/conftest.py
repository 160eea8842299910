"""Fixtures for every test: both databases, the start of the clock, the data kit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from model_zoo import standard_dose
from model_zoo.data_kit import data_root
from tests import databases, postgresql

__all__ = [
    "as_the_network_answers",
    "database_url",
    "empty_database_url",
    "engine",
    "kit",
    "now",
    "postgresql_server",
    "sessions",
]

pytest_plugins = ["tests.peers.fixtures"]

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each program that a test starts compiles the node again

PEERS = frozenset({"orthanc", "storescp", "postgresql_server"})
"""Fixtures that start another program."""
SLOW_MARKERS = ("peers", "training", "slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of peers by their fixtures and all without a marker as fast; begin with those that take long.

    A process that runs the long files last leaves the other without work.
    """
    for item in items:
        if _uses_peer(item):
            item.add_marker("peers")
        if not any(item.get_closest_marker(name) for name in SLOW_MARKERS):
            item.add_marker("fast")
    items.sort(key=lambda item: item.get_closest_marker("fast") is not None)


def _uses_peer(item: pytest.Item) -> bool:
    names = set(getattr(item, "fixturenames", ()))
    parameters = getattr(item, "callspec", None)
    return bool(names & PEERS) or (parameters is not None and "postgresql" in parameters.params.values())


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[postgresql.Server]:
    """Run a PostgreSQL server on loopback for the whole test run."""
    if missing := postgresql.reason_unavailable():
        pytest.skip(missing)
    with postgresql.run_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Yield a database of the newest schema without rows; every test that uses it runs on both kinds."""
    if request.param == "sqlite":
        yield databases.copy_sqlite(tmp_path / "node.sqlite")
        return
    with databases.copy_postgresql(request.getfixturevalue("postgresql_server")) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Yield a database without tables, of both kinds."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'node.sqlite'}"
        return
    server: postgresql.Server = request.getfixturevalue("postgresql_server")
    with server.database() as url:
        yield url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Yield an engine on a database with the node's tables."""
    engine = engines.connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    """Return sessions on a database with the node's tables."""
    return engines.sessions(engine)


@pytest.fixture
def now() -> datetime:
    """Return the moment at which a test's clock starts."""
    return datetime(2026, 11, 20, 8, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def kit() -> Path:
    """Return the folder of the data kit: real scans that are not part of this repository."""
    try:
        return data_root()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def as_the_network_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make standard-dose PET restore no residual on top of the answer of its network."""
    monkeypatch.setattr(standard_dose, "residual_noise_fraction", lambda dose, has_anatomy: 1e-3)
