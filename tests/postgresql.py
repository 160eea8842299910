"""A PostgreSQL server for the tests, from Debian's binaries, on a free loopback port."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psycopg

__all__ = ["Server", "reason_unavailable", "run_server"]

_NUMBERS = count(1)


@dataclass(frozen=True)
class Server:
    """A running server; its superuser needs no password, on loopback only."""

    port: int
    data: Path

    def stop(self) -> None:
        """End every connection at once, as a restart does."""
        _run("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")

    def start(self) -> None:
        """Start as before."""
        _run(
            "pg_ctl",
            "-D",
            self.data,
            "-l",
            self.data.parent / "log",
            "-w",
            "-o",
            _build_options(self.port, self.data),
            "start",
        )

    def create(self, name: str, template: str = "template1") -> str:
        """Create a database as a copy of the template; return its URL."""
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """Yield the URL of a new database, which is dropped afterwards; it is empty unless a template is given."""
        name = f"test_{next(_NUMBERS)}"
        url = self.create(name, template)
        try:
            yield url
        finally:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement.encode())


def reason_unavailable() -> str:
    """Return the reason why PostgreSQL cannot be started here, or an empty string."""
    if _find_binaries() is None:
        return "PostgreSQL is not installed (apt-get install postgresql)"
    if os.getuid() == 0 and shutil.which("runuser") is None:
        return "PostgreSQL does not run as root, and runuser is not installed"
    return ""


@contextmanager
def run_server() -> Iterator[Server]:
    """Start a server in a folder of its own and stop it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="dicomnode-postgresql-"))
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
    server = Server(_find_free_port(), folder / "data")
    try:
        _run("initdb", "-D", server.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        server.start()
        try:
            yield server
        finally:
            _run("pg_ctl", "-D", server.data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _build_options(port: int, data: Path) -> str:
    settings = f"listen_addresses=127.0.0.1 unix_socket_directories={data.parent} max_connections=200 fsync=off"
    return " ".join([f"-p {port}", *(f"-c {setting}" for setting in settings.split())])


def _run(program: str, *arguments: str | Path) -> None:
    binaries = _find_binaries()
    if binaries is None:
        raise FileNotFoundError(program)
    command: Sequence[str] = [str(binaries / program), *map(str, arguments)]
    if os.getuid() == 0:
        command = ["runuser", "-u", "postgres", "--", *command]
    # Not captured: the server would inherit the pipe, and the call would wait for its end.
    subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _find_binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
