"""The node's web in the test's own process, on SQLite and loopback, with its rows and files in reach."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset
from sqlalchemy import select

from db import engine as engines
from db import jobs, keywords
from db.jobs import OutputFile
from db.models import Instance, Quarantine, Study
from dicomnode import tls
from dicomnode.config import Config
from dicomnode.config.node import NodeConfig
from dicomnode.config.spool import SpoolConfig
from dicomnode.config.web import WebConfig
from dicomnode.datasets import headers
from dicomnode.monitoring.meters import Meters
from dicomnode.storage import spool
from dicomnode.web import server
from dicomnode.web.app import create_app
from tests import databases
from tests.peers.process import wait_for

__all__ = ["BOUNDARY", "DICOM", "LIMITS", "Web", "encode_multipart", "encode_part10", "web"]

LIMITS = SpoolConfig(min_free_gb=0, refuse_at_percent=100)
BOUNDARY = "a-boundary"
DICOM = {"Content-Type": f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'}


@dataclass
class Web:
    """A running server, with ``now`` as its clock and ``sections`` of its configuration."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    limits: SpoolConfig = LIMITS
    now: datetime = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
    sections: dict[str, Any] = field(default_factory=dict)
    meters: Meters = field(default_factory=Meters)

    def __enter__(self) -> Self:
        self.config = Config(
            node=NodeConfig(data_dir=self.folder / "data"),
            spool=self.limits,
            web=WebConfig(**{"port": 0} | self.settings),
            path=self.folder / "node.toml",
            **self.sections,
        ).with_absolute_paths(self.folder)
        databases.prepare(self.config)
        self.engine = engines.connect(self.config.database_url)
        self.sessions = engines.sessions(self.engine)
        self.app = create_app(self.config, self.sessions, now=lambda: self.now, meters=self.meters)
        identity = tls.web_identity(self.config.web)
        self.server = server.start_server(self.app, self.config.web.host, 0, identity)
        self.port, self.address = self.server.port, self.server.address
        self.client = httpx.Client(base_url=self.address, timeout=30)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.stop()
        self.engine.dispose()

    @property
    def dicomweb(self) -> DICOMwebClient:
        """Return a client of dicomweb-client, as an independent implementation."""
        return DICOMwebClient(f"{self.address}/dicom-web")

    def get(self, path: str, accept: str = "*/*", **headers: str) -> httpx.Response:
        return self.client.get(path, headers={"Accept": accept} | headers)

    def store(self, paths: Iterable[Path]) -> httpx.Response:
        """Store files unchanged by STOW-RS."""
        content = encode_multipart([path.read_bytes() for path in paths])
        return self.client.post("/dicom-web/studies", content=content, headers=DICOM)

    def rows(self, table: type[Any] = Instance) -> list[Any]:
        with engines.readers(self.engine)() as session:
            return list(session.scalars(select(table)))

    def quarantined(self) -> list[Quarantine]:
        return self.rows(Quarantine)

    def files_left(self) -> list[Path]:
        """Return every file in the spool, incomplete ones included."""
        return sorted(path for path in self.config.spool_dir.glob("*/*") if path.is_file())

    def wait_until(self, condition: Callable[[], object]) -> None:
        wait_for(condition, "the server has seen it")

    def add_results(self, results: Iterable[Dataset], *, held: bool = False) -> None:
        """Add results of a job on the newest study, which must have been received before."""
        outputs = [self._make_output(ds) for ds in results]
        with self.sessions.begin() as session:
            study = session.scalars(select(Study).order_by(Study.id.desc())).first()
            assert study is not None
            instances = [instance.id for series in study.series for instance in series.instances]
            job = jobs.enqueue(
                session, study_id=study.id, revision=study.revision, route="r", pipeline="p", options={},
                inputs={"match": instances[:1]}, destinations=[], now=self.now,
            )  # fmt: skip
            assert job is not None
            claimed = jobs.claim(session, worker="w", lease_s=60, now=self.now)
            assert claimed is not None
            why = "a person must look" if held else ""
            jobs.finish(
                session, job_id=claimed.id, worker="w", outputs=outputs, report={}, held_because=why, now=self.now
            )

    def _make_output(self, ds: Dataset) -> OutputFile:
        content = encode_part10(ds)
        stored = spool.write(self.config.spool_dir, content)
        facts = headers.read(spool.path(self.config.spool_dir, stored))
        return OutputFile(
            sop_instance_uid=facts.sop_instance_uid, sop_class_uid=facts.sop_class_uid, series_uid=facts.series_uid,
            kind="image", file=stored, transfer_syntax_uid=facts.transfer_syntax_uid,
            attributes=keywords.pick(facts.attributes, keywords.RESULT_STORED),
        )  # fmt: skip


def encode_part10(ds: Dataset) -> bytes:
    """Encode a data set as a file."""
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def encode_multipart(files: Iterable[bytes], content_type: str = "application/dicom", *, end: bool = True) -> bytes:
    """Return a multipart message of BOUNDARY."""
    parts = [f"--{BOUNDARY}\r\nContent-Type: {content_type}\r\n\r\n".encode() + each + b"\r\n" for each in files]
    return b"".join(parts) + (f"--{BOUNDARY}--\r\n".encode() if end else b"")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """Yield a node's web that requires no token."""
    with Web(tmp_path) as running:
        yield running
