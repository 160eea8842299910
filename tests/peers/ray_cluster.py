"""A Ray cluster on loopback: a head and further nodes, each a ``ray start`` of its own with its own environment."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.peers.process import Program, free_port, wait_for

__all__ = ["RayCluster", "RayNode", "descendants", "reason_unavailable"]

_ROOT = Path(__file__).resolve().parents[2]
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
_SMALL = ["--object-store-memory=80000000", "--disable-usage-stats", "--block"]


def reason_unavailable() -> str:
    """Return the reason why no cluster can be started here, or an empty string."""
    import importlib.util

    return "" if importlib.util.find_spec("ray") else "Ray is not installed (pip install 'dicomnode[ray]')"


class RayNode:
    """One machine of the cluster, with one CPU for actors."""

    def __init__(self, folder: Path, arguments: list[str], environment: Mapping[str, str]) -> None:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--num-cpus=1", *arguments, *_SMALL]
        self.program = Program(command, folder=folder, environment=_QUIET | dict(environment))
        self._own: list[int] = []

    def start(self) -> None:
        begun = "Ray runtime started"
        self.program.start(lambda: begun in self.program.log.read_text(errors="replace"), within_s=120)
        self._own = descendants(self.program.pid)

    def kill(self) -> None:
        """Kill all processes of the machine at once, as when its power fails."""
        own = {*self._own, *(descendants(self.program.pid) if self.program.running else [])}
        for pid in own:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.program.kill()
        wait_for(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in own), "its processes end")


class RayCluster:
    """A cluster with one head; it lasts as long as its ``with`` block, and ``add`` starts further nodes."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._port = folder, free_port()
        self._sockets = Path(tempfile.mkdtemp(prefix="ray-"))  # short: their paths are sockets' names
        head = ["--head", f"--port={self._port}", f"--temp-dir={self._sockets}", "--include-dashboard=false"]
        self._client_port = free_port()
        head.append(f"--ray-client-server-port={self._client_port}")
        self.nodes = [RayNode(folder / "head", head, environment)]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def client_address(self) -> str:
        """Return the environment of a process on no machine of the cluster."""
        return f"ray://127.0.0.1:{self._client_port}"

    def add(self, name: str, environment: Mapping[str, str]) -> RayNode:
        node = RayNode(self._folder / name, [f"--address={self.address}"], environment)
        self.nodes.append(node)
        node.start()
        return node

    def __enter__(self) -> Self:
        self.nodes[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            for node in self.nodes:
                error.add_note(node.program.log.read_text(errors="replace")[-1000:])
        for node in reversed(self.nodes):
            node.kill()
        shutil.rmtree(self._sockets, ignore_errors=True)


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, directly and indirectly."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found
