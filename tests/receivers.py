"""A storage SCP in the test's own process, on either database, with access to its rows and files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from db import engine as engines
from db.models import Instance
from dicomnode.config import Config
from dicomnode.config.database import DatabaseConfig
from dicomnode.config.node import NodeConfig
from dicomnode.config.spool import SpoolConfig
from dicomnode.ingest import scp
from tests.peers.files import write_instance
from tests.sending import Encoded, read_encoded

__all__ = ["Receiver", "Start", "an_instance", "make_instances", "receiver", "start"]


class Receiver:
    """A running SCP, its database and its spool."""

    def __init__(self, config: Config, engine: Engine) -> None:
        self.config, self.engine = config, engine
        self.server = scp.start(config, now=lambda: datetime.now(UTC))
        self.port = self.server.port

    def rows(self, table: type[Any] = Instance) -> list[Any]:
        with engines.readers(self.engine)() as session:
            return list(session.scalars(select(table)))

    def files(self) -> list[Path]:
        found = (path for path in self.config.spool_dir.rglob("*") if path.is_file())
        return sorted(path for path in found if path.name != "high-water")

    def data_set(self, row: Instance) -> bytes:
        return read_encoded(self.config.spool_dir / row.relative_path).data_set


Start = Callable[..., Receiver]


@pytest.fixture
def start(engine: Engine, database_url: str, tmp_path: Path) -> Iterator[Start]:
    """Start receivers, with sections of node.toml by name; stop them at the end of the test."""
    started: list[Receiver] = []

    def begin(**sections: Any) -> Receiver:
        node = {"host": "127.0.0.1", "port": 0, "data_dir": tmp_path / "data"} | sections.pop("node", {})
        spool_limits = sections.pop("spool", SpoolConfig(min_free_gb=0, refuse_at_percent=100))
        config = Config(
            node=NodeConfig(**node),
            database=DatabaseConfig(url=database_url),
            spool=spool_limits,
            path=tmp_path / "node.toml",
            **sections,
        )
        started.append(Receiver(config, engine))
        return started[-1]

    yield begin
    for receiver in started:
        receiver.server.stop()


@pytest.fixture
def receiver(start: Start) -> Receiver:
    """Start a receiver without limits on senders."""
    return start()


@pytest.fixture
def an_instance(tmp_path: Path) -> Encoded:
    """Return a small MR image."""
    path = tmp_path / "an_instance.dcm"
    write_instance(path)
    return read_encoded(path)


def make_instances(folder: Path, count: int, **attributes: Any) -> list[Encoded]:
    for number in range(count):
        write_instance(folder / f"{number}.dcm", InstanceNumber=number + 1, **attributes)
    return [read_encoded(folder / f"{number}.dcm") for number in range(count)]
