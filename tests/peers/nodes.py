"""The node as a process of its own: ``python -m dicomnode serve`` with a node.toml for the test."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import engine as engines
from db.models import Delivery, Job
from dicomnode.config import Config, Peer, load
from tests.peers.process import Program, wait_for

__all__ = ["ENVIRONMENT", "Node", "make_route", "write_config"]

_ROOT = Path(__file__).resolve().parents[2]
# One thread: the tests' images are so small that threads cost more than they bring.
ENVIRONMENT = {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
_READY = re.compile(r"^ready: DICOM \S+:(\d+),", re.MULTILINE)
_HASTE: dict[str, dict[str, Any]] = {
    "node": {"host": "127.0.0.1", "port": 0, "network_timeout_s": 10},
    "completion": {"quiet_s": 0.5},
    "spool": {"min_free_gb": 0.0, "refuse_at_percent": 100},
    "web": {"port": 0},
    "worker": {"device": "cpu", "poll_s": 0.1, "backoff_s": 0.1},
    "delivery": {"backoff_s": 0.2, "backoff_max_s": 1, "breaker_open_s": 0.5},
}


def write_config(folder: Path, **sections: Any) -> Path:
    """Write a node.toml for a node on loopback with short waits; ``sections`` are tables, or lists of tables."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for name in _HASTE | sections:
        section = sections.get(name, {})
        if isinstance(section, list):
            for table in section:
                lines += _table(f"[[{name}]]", table)
        else:
            lines += _table(f"[{name}]", _HASTE.get(name, {}) | section)
    path = folder / "node.toml"
    path.write_text("\n".join(lines))
    return path


def make_route(*destinations: str, **options: int) -> dict[str, Any]:
    """Return a route from k-space to an MR image."""
    match = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66"}
    route = {"name": "kspace", "pipeline": "mri_reconstruction", "match": match}
    return route | {"destinations": list(destinations), "options": options}


class Node:
    """A process that serves, or runs another command, while ``with Node(write_config(folder, ...)) as node:`` lasts."""

    def __init__(self, config_path: Path, *arguments: str) -> None:
        self.config: Config = load(config_path)
        command = self._command(*(arguments or ("serve",)))
        self.program = Program(command, folder=config_path.parent / "log", environment=ENVIRONMENT)
        self._engine = engines.connect(self.config.database_url)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            error.add_note(self.log[-4000:])
        self.kill()

    @property
    def log(self) -> str:
        """Lines of the log since its beginning."""
        return self.program.log.read_text(errors="replace") if self.program.log.exists() else ""

    @property
    def port(self) -> int:
        """Port of the newest ready line in the log."""
        return int(_READY.findall(self.log)[-1])

    @property
    def peer(self) -> Peer:
        return Peer(name="node", ae_title=self.config.node.ae_title, host="127.0.0.1", port=self.port)

    @property
    def children(self) -> list[int]:
        """Process ids of the children."""
        if not self.program.running:
            return []
        tasks = Path(f"/proc/{self.program.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]

    def start(self) -> None:
        """Start the program; wait for the ready line of a node that serves."""
        already = len(_READY.findall(self.log))
        serves = "serve" in self.program.command
        self.program.start(lambda: not serves or len(_READY.findall(self.log)) > already, within_s=60)

    def stop(self) -> int | None:
        """Send SIGTERM; return the exit status."""
        return self.program.stop(within_s=60)

    def kill(self) -> None:
        """Kill the node and its workers with SIGKILL, as when the machine loses power."""
        children = self.children
        self.program.kill()
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command with the same configuration."""
        environment = os.environ | ENVIRONMENT
        return subprocess.run(self._command(*arguments), capture_output=True, text=True, env=environment, check=False)

    @contextmanager
    def sessions(self) -> Iterator[Session]:
        """Open a session of the node's database, and leave no connection open."""
        try:
            with engines.readers(self._engine)() as session:
                yield session
        finally:
            self._engine.dispose()

    def jobs(self) -> list[Job]:
        with self.sessions() as session:
            return list(session.scalars(select(Job).order_by(Job.id)))

    def deliveries(self) -> list[Delivery]:
        with self.sessions() as session:
            return list(session.scalars(select(Delivery).order_by(Delivery.id)))

    def wait_for_job(self, *states: str) -> Job:
        """Return the newest job as soon as it is in one of the states."""

        def find_job_in_state() -> Job | None:
            newest = self.jobs()[-1:]
            return newest[0] if newest and newest[0].state in states else None

        job = wait_for(find_job_in_state, f"a job is {' or '.join(states)}", within_s=240)
        assert job is not None
        return job

    def wait_until_delivered(self) -> None:
        """Wait until every result is delivered."""
        wait_for(lambda: {row.state for row in self.deliveries()} == {"delivered"}, "delivery", within_s=180)

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "dicomnode", "--config", str(self.config.path), *arguments]


def _table(heading: str, values: dict[str, Any] | Peer) -> list[str]:
    if isinstance(values, Peer):
        values = values.model_dump(mode="json", exclude_none=True)
    return [heading, *(f"{key} = {_toml(value)}" for key, value in values.items())]


def _toml(value: Any) -> str:
    """Return a value as TOML, whose scalars are those of JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
