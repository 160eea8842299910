"""Databases of the newest schema for the tests: migrated once per process, then copied for each test."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from db import engine as engines
from db import migrations
from dicomnode import node
from dicomnode.config import Config
from tests.postgresql import Server

__all__ = ["copy_postgresql", "copy_sqlite", "prepare"]


def copy_sqlite(path: Path) -> str:
    """Copy the template to the path; return its URL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_sqlite_template(), path)
    return f"sqlite:///{path}"


@contextmanager
def copy_postgresql(server: Server) -> Iterator[str]:
    """Yield the URL of a copy of the template, which is dropped afterwards."""
    with server.database(template=_postgresql_template(server)) as url:
        yield url


def prepare(config: Config) -> None:
    """Prepare the node's folders and database, as ``node.prepare`` does; a new SQLite file is copied."""
    kind, _, path = config.database_url.partition(":///")
    if kind == "sqlite" and not Path(path).exists():
        copy_sqlite(Path(path))
    node.prepare(config)


@cache
def _sqlite_template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="dicomnode-template-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _migrate(f"sqlite:///{folder / 'node.sqlite'}")
    return folder / "node.sqlite"


@cache
def _postgresql_template(server: Server) -> str:
    _migrate(server.create("template_of_tests"))
    return "template_of_tests"


def _migrate(url: str) -> None:
    engine = engines.connect(url)
    migrations.upgrade(engine)
    engine.dispose()  # SQLite then holds all in one file, and PostgreSQL copies no database that is in use
