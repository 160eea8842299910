"""A node as its own processes, and k-space small enough for it to reconstruct in seconds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from sqlalchemy.orm import Session

from db import engine as engines
from dicomnode import config as configuration
from dicomnode import mrd
from dicomnode.config import Config
from tests.peers.process import Program

__all__ = ["RunningNode", "raw_data", "write_config"]

_ROOT = Path(__file__).parent.parent


def raw_data(path: Path, now: datetime, *, seed: int = 0, **facts: str) -> Path:
    """Raw Data Storage with one slice of an ellipse, one coil, every second line and a calibration block."""
    n, generator = 64, np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j]
    image = ((y / 0.8) ** 2 + (x / 0.7) ** 2 < 1) + 0.5 * ((y - 0.2) ** 2 + (x + 0.1) ** 2 < 0.05)
    samples = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image), norm="ortho"))
    samples = samples + 0.01 * (generator.standard_normal((n, n)) + 1j * generator.standard_normal((n, n)))
    mask = np.zeros((n, n), bool)
    mask[::2] = mask[24:40] = True
    grid = mrd.axial((1, n, n), (5.0, 3.0, 3.0))
    file = path.with_suffix(".h5")
    mrd.write(mrd.from_array((samples * mask)[None, None], grid=grid, slice_thickness_mm=5.0, mask=mask), file)
    mrd.wrap(file.read_bytes(), now=now, facts=facts).save_as(path, enforce_file_format=True)
    return path


def write_config(folder: Path, **sections: Any) -> Path:
    """A node.toml for a node on loopback that closes studies quickly; JSON values are TOML values."""
    values: dict[str, Any] = {
        "node": {"host": "127.0.0.1", "port": 0},
        "completion": {"quiet_s": 0.5},
        "spool": {"min_free_gb": 0.0, "refuse_at_percent": 100},
        "worker": {"device": "cpu", "poll_s": 0.1, "backoff_s": 0.1},
    }
    for name, section in sections.items():
        values[name] = section if isinstance(section, list) else values.get(name, {}) | section
    lines = []
    for name, section in values.items():
        for table in section if isinstance(section, list) else [section]:
            lines.append(f"[[{name}]]" if isinstance(section, list) else f"[{name}]")
            lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
    path = folder / "node.toml"
    path.write_text("\n".join(lines))
    return path


class RunningNode:
    """``dicomnode serve`` (or another command) on a configuration, waited for, stopped by its process id."""

    def __init__(self, config_path: Path, *arguments: str) -> None:
        self.config: Config = configuration.load(config_path)
        command = [sys.executable, "-m", "dicomnode", "--config", str(config_path), *(arguments or ("serve",))]
        self.program = Program(command, folder=config_path.parent / "log", environment={"PYTHONPATH": str(_ROOT)})

    @contextmanager
    def sessions(self) -> Iterator[Session]:
        """A look into its database."""
        engine = engines.connect(self.config.database_url)
        try:
            with engines.readers(engine)() as session:
                yield session
        finally:
            engine.dispose()

    @property
    def port(self) -> int:
        """Where it listens, as its ready line says."""
        ready = re.search(r"^ready: DICOM \S+:(\d+),", self.program.log.read_text(), re.MULTILINE)
        return int(ready[1]) if ready else 0

    def __enter__(self) -> Self:
        if "serve" in self.program.command:
            self.program.start(lambda: self.port, within_s=60)
        else:
            self.program.start(lambda: True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            error.add_note(self.program.log.read_text(errors="replace")[-4000:])
        self.program.stop()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command on the same configuration."""
        command = [sys.executable, "-m", "dicomnode", "--config", str(self.config.path), *arguments]
        environment = os.environ | {"PYTHONPATH": str(_ROOT)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
