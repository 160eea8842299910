"""Fixtures of the peers; each stops when its test ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.orthanc import Orthanc
from tests.peers.storescp import StoreScp

__all__ = ["orthanc", "storescp"]


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    with Orthanc(tmp_path / "orthanc") as server:
        yield server


@pytest.fixture
def storescp(tmp_path: Path) -> Iterator[StoreScp]:
    with StoreScp(tmp_path / "storescp") as server:
        yield server
