"""The state of a run on disk: tensors, numbers and text only, so that it is read back with ``weights_only``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["NAME", "Checkpoint", "read", "write_durably"]

NAME = "checkpoint.pt"


@dataclass(frozen=True)
class Checkpoint:
    """State of a run: all that the next step depends on and that a bundle is made of.

    ``recipe``: its name; ``configuration``: JSON; ``data``: ``Source.data`` of the training; ``step``: steps done;
    ``world``: processes that trained together;
    ``network``, ``optimiser``: state dicts; ``average``: averaged parameters by name; ``metrics``: last validation;
    ``opponent``: of runs against one, ``OpponentRun.get_state``.
    """

    recipe: str
    configuration: str
    data: str
    step: int
    world: int
    network: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimiser: Mapping[str, Any]
    metrics: Mapping[str, float]
    opponent: Mapping[str, Any] | None = None

    def merge_average(self) -> dict[str, Tensor]:
        """Return the network's state with the averaged weights in it, which is evaluated and shipped."""
        return {**self.network, **self.average}

    def write(self, path: Path) -> None:
        """Replace ``path`` completely or not at all."""
        with write_durably(path) as temporary:
            torch.save({each.name: getattr(self, each.name) for each in fields(self)}, temporary)


def read(path: Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Return the checkpoint at ``path``. Raises ValueError where the file is no checkpoint of this loop."""
    try:
        return Checkpoint(**torch.load(path, map_location=device, weights_only=True))
    except (TypeError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a checkpoint of this loop: {' '.join(str(error).split())}") from error


@contextmanager
def write_durably(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``: on success fsynced and renamed to it, on failure removed."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
