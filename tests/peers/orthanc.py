"""Orthanc of Debian as the PACS of the tests, with the part of its REST interface that they need."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomnode.config import Peer
from tests.peers.process import Program, accepts_connections, free_port, require_program

__all__ = ["Orthanc"]


class Orthanc:
    """An Orthanc with its own folder and ports. Debian's build listens on all addresses; REST answers loopback only."""

    def __init__(self, folder: Path, *, ae_title: str = "ORTHANC", settings: dict[str, Any] | None = None) -> None:
        program = require_program("/usr/sbin/Orthanc", "orthanc")
        self.http_port, dicom_port = free_port(), free_port()
        self.peer = Peer(name="orthanc", ae_title=ae_title, host="127.0.0.1", port=dicom_port)
        folder.mkdir(parents=True, exist_ok=True)
        configuration = folder / "orthanc.json"
        values = _configuration(folder, ae_title, dicom_port, self.http_port) | (settings or {})
        configuration.write_text(json.dumps(values))
        self._program = Program([program, str(configuration)], folder=folder)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()  # an orderly stop takes seconds

    def start(self) -> None:
        self._program.start(lambda: accepts_connections(self.peer.port) and accepts_connections(self.http_port))

    def stop(self) -> None:
        self._program.stop()

    def kill(self) -> None:
        self._program.kill()

    def instances(self) -> list[str]:
        """Return Orthanc's identifiers of its instances."""
        return list(self.ask("GET", "/instances"))

    def dataset(self, instance: str) -> Dataset:
        return dcmread(io.BytesIO(self.file(instance)))

    def datasets(self) -> list[Dataset]:
        return [self.dataset(instance) for instance in self.instances()]

    def file(self, instance: str) -> bytes:
        with urllib.request.urlopen(self._url(f"/instances/{instance}/file"), timeout=60) as answer:
            return bytes(answer.read())

    def upload(self, path: Path) -> str:
        request = urllib.request.Request(self._url("/instances"), data=path.read_bytes(), method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(json.load(answer)["ID"])

    def register_peer(self, peer: Peer) -> None:
        """Register the peer as a modality, for C-STORE and C-MOVE to it."""
        known = {"AET": peer.ae_title, "Host": peer.host, "Port": peer.port, "UseDicomTls": peer.tls}
        self.ask("PUT", f"/modalities/{peer.name}", known)

    def send(self, peer: Peer, instances: list[str]) -> None:
        """Let Orthanc send instances by C-STORE; raise where it reports a failure."""
        self.register_peer(peer)
        self.ask("POST", f"/modalities/{peer.name}/store", {"Resources": instances, "Synchronous": True})

    def ask(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url(path), data=data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as exc:
            with exc:
                raise RuntimeError(f"Orthanc: {method} {path}: {exc.read().decode(errors='replace')}") from None
        return json.loads(text) if text else None

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http_port}{path}"


def _configuration(folder: Path, ae_title: str, dicom_port: int, http_port: int) -> dict[str, Any]:
    everybody_may = ("Echo", "Store", "Find", "Get", "Move")
    return {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "SyncStorageArea": True,
        "StorageCompression": False,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAet": ae_title,
        "DicomPort": dicom_port,
        "DicomCheckCalledAet": False,
        "UnknownSopClassAccepted": True,
        "StableAge": 1,
        "Plugins": [],
        **{f"DicomAlwaysAllow{service}": True for service in everybody_may},
    }
