"""DCMTK's storescp, which writes the instances as files and is slow or refuses on demand."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomnode.config import Peer
from tests.peers.process import Program, accepts_connections, free_port, require_program

__all__ = ["StoreScp"]


class StoreScp:
    """A storescp that runs in ``with StoreScp(folder, "--sleep-after", "2") as scp:``; options are storescp's."""

    def __init__(self, folder: Path, *options: str, ae_title: str = "STORESCP", port: int | None = None) -> None:
        # Not the storescp of a virtual environment, which is pynetdicom's.
        program = require_program("/usr/bin/storescp", "dcmtk")
        self.port = port or free_port()
        self.received = folder / "received"
        self.received.mkdir(parents=True, exist_ok=True)
        self.peer = Peer(name="storescp", ae_title=ae_title, host="127.0.0.1", port=self.port)
        keep = ["--promiscuous", "--bit-preserving", "--output-directory", str(self.received)]
        accept = [] if any(o.startswith(("+x", "--prefer", "--implicit")) for o in options) else ["+xa"]
        command = [program, "--aetitle", ae_title, *keep, *accept, *options, str(self.port)]
        self._program = Program(command, folder=folder)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        self._program.start(lambda: accepts_connections(self.port))

    def stop(self) -> None:
        self._program.kill()

    def files(self) -> list[Path]:
        return sorted(self.received.iterdir())

    def datasets(self) -> list[Dataset]:
        return [dcmread(path) for path in self.files()]
