"""DCMTK's dcmqrscp: an archive with a table of peers, and with few attributes of its instances."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from dicomnode.config import Peer
from tests.peers.process import Program, accepts_connections, free_port, require_program

__all__ = ["QueryScp"]


class QueryScp:
    """Archive by dcmqrscp with its own options: ``with QueryScp(folder, "--disable-get") as archive:``."""

    def __init__(self, folder: Path, *options: str, ae_title: str = "QRSCP") -> None:
        program = require_program("/usr/bin/dcmqrscp", "dcmtk")
        self.port = free_port()
        self.peer = Peer(name="dcmqrscp", ae_title=ae_title, host="127.0.0.1", port=self.port)
        self._storage, self._configuration = folder / "storage", folder / "dcmqrscp.cfg"
        self._storage.mkdir(parents=True)
        self._write([])
        command = [program, "--config", str(self._configuration), *options, str(self.port)]
        self._program = Program(command, folder=folder)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def start(self) -> None:
        self._program.start(lambda: accepts_connections(self.port))

    def kill(self) -> None:
        self._program.kill()

    def upload(self, path: Path) -> None:
        """Put a file into the archive's folder and index, without the network."""
        copy = self._storage / f"{len(list(self._storage.glob('*.dcm')))}.dcm"
        copy.write_bytes(path.read_bytes())
        index = require_program("/usr/bin/dcmqridx", "dcmtk")
        subprocess.run([index, str(self._storage), str(copy)], check=True, capture_output=True)

    def register_peer(self, peer: Peer) -> None:
        """Add a peer to the table, and start the archive again: it reads the table when it starts."""
        self._write([peer])
        self.kill()
        self.start()

    def _write(self, known: Sequence[Peer]) -> None:
        hosts = [f"{each.name} = ({each.ae_title}, {each.host}, {each.port})" for each in known]
        lines = [
            f"NetworkTCPPort = {self.port}",
            "MaxPDUSize = 16384",
            "MaxAssociations = 16",
            "HostTable BEGIN",
            *hosts,
            "HostTable END",
            "VendorTable BEGIN",
            "VendorTable END",
            "AETable BEGIN",
            f"{self.peer.ae_title} {self._storage} RW (200, 1024mb) ANY",
            "AETable END",
        ]
        self._configuration.write_text("\n".join(lines) + "\n")
