"""The node itself as its users run it: ``python -m dicomnode serve`` with a node.toml of its own."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from db.models import Delivery, Job
from dicomnode.config import Config, Peer, load
from tests.peers.process import Program, free_port, wait_for

__all__ = ["Node"]

_ROOT = Path(__file__).resolve().parents[2]


class Node:
    """``with Node(folder, peers=[orthanc.peer], destinations=["orthanc"]) as node:`` runs until the block ends."""

    def __init__(
        self,
        folder: Path,
        *,
        peers: Sequence[Peer] = (),
        destinations: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        workers: int = 1,
        database_url: str = "",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.peer = Peer(name="node", ae_title="TESTNODE", host="127.0.0.1", port=free_port())
        self.toml = folder / "node.toml"
        self.toml.write_text(_toml(self.peer, peers, destinations, options or {}, database_url))
        self.config: Config = load(self.toml)
        command = [sys.executable, "-m", "dicomnode", "--config", str(self.toml), "serve", "--workers", str(workers)]
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        # One thread: two workers that each take every core are slower than one
        environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self._program = Program(command, folder=folder, environment=environment)
        self._engine = engines.connect(self.config.database_url)
        self.sessions: sessionmaker[Session] = engines.readers(self._engine)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        self._engine.dispose()

    @property
    def pid(self) -> int:
        return self._program.pid

    @property
    def log(self) -> str:
        return self._program.log.read_text(errors="replace")

    @property
    def worker_pids(self) -> list[int]:
        """Processes that the node has started."""
        if not self._program.running:
            return []
        tasks = Path(f"/proc/{self.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]

    def start(self) -> None:
        already = self.log.count("ready: ") if self._program.log.exists() else 0
        self._program.start(lambda: self.log.count("ready: ") > already, within_s=60)

    def stop(self) -> int | None:
        """SIGTERM; returns the exit status."""
        return self._program.stop(within_s=60)

    def kill(self) -> None:
        """kill -9 of the node and of its workers, as when the machine loses power."""
        workers = self.worker_pids
        self._program.kill()
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def jobs(self) -> list[Job]:
        with self.sessions() as session:
            return list(session.scalars(select(Job).order_by(Job.id)))

    def deliveries(self) -> list[Delivery]:
        with self.sessions() as session:
            return list(session.scalars(select(Delivery).order_by(Delivery.id)))

    def wait_for_job(self, *states: str, within_s: float = 120.0) -> Job:
        """The newest job, once it is in one of the states."""

        def there() -> Job | None:
            newest = self.jobs()[-1:]
            return newest[0] if newest and newest[0].state in states else None

        job = wait_for(there, f"a job is {' or '.join(states)}", within_s=within_s)
        assert job is not None
        return job


def _toml(
    own: Peer, peers: Sequence[Peer], destinations: Sequence[str], options: Mapping[str, Any], database_url: str
) -> str:
    peer_tables = "".join(
        f'\n[[peers]]\nname = "{p.name}"\nae_title = "{p.ae_title}"\nhost = "{p.host}"\nport = {p.port}\n'
        for p in peers
    )
    inline = ", ".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
    return f"""
[node]
ae_title = "{own.ae_title}"
host = "127.0.0.1"
port = {own.port}
network_timeout_s = 10

[database]
url = "{database_url}"

[completion]
quiet_s = 0.5

[worker]
device = "cpu"
lease_s = 5
poll_s = 0.1
backoff_s = 0.1

[delivery]
backoff_s = 0.2
backoff_max_s = 1
breaker_open_s = 0.5
{peer_tables}
[[routes]]
name = "raw-to-image"
pipeline = "mri_reconstruction"
match = {{ SOPClassUID = "1.2.840.10008.5.1.4.1.1.66" }}
destinations = {json.dumps(list(destinations))}
options = {{ {inline} }}
"""
