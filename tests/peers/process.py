"""Programs under test, each stopped by its process ID."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

__all__ = ["Program", "accepts_connections", "free_port", "require_program", "wait_for"]

T = TypeVar("T")
_STEP = threading.Event()  # never set: its wait is the pause between two looks


def wait_for(condition: Callable[[], T], what: str, *, within_s: float = 30.0) -> T:
    """Return the value of ``condition`` once it is true. Raises TimeoutError."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:g} s: {what}")
        _STEP.wait(0.02)


def free_port() -> int:
    """Return a free port of 127.0.0.1."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def accepts_connections(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1.0)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def require_program(program: str, package: str) -> str:
    """Return the path of a Debian program; skip the test where its package is missing."""
    if not os.access(program, os.X_OK):
        pytest.skip(f"{program} is missing: install Debian's package {package}")
    return program


class Program:
    """One process with its output in ``log``; ``start`` again after ``stop`` or ``kill`` makes a new one."""

    def __init__(self, command: Sequence[str], *, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.command = list(command)
        self.folder = folder
        self.log = folder / "program.log"
        # DCMTK, which Orthanc links, leaves Nagle's algorithm on by default.
        self.environment = {**os.environ, "TCP_NODELAY": "1", **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, ready: Callable[[], object], *, within_s: float = 30.0) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            wait_for(lambda: not self.running or ready(), f"{self.command[0]} answers", within_s=within_s)
            if not self.running:
                raise RuntimeError(f"{self.command[0]} ended at once")
        except BaseException as exc:
            self.kill()
            exc.add_note(self.log.read_text(errors="replace")[-2000:])
            raise

    def stop(self, *, within_s: float = 20.0) -> int | None:
        """Send SIGTERM, then SIGKILL after a time limit; return the exit status."""
        return self._end(signal.SIGTERM, within_s)

    def kill(self) -> int | None:
        return self._end(signal.SIGKILL, 20.0)

    def _end(self, how: signal.Signals, within_s: float) -> int | None:
        if self._process is None:
            return None
        if self.running:
            self._process.send_signal(how)
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
