"""The log of a run: one JSON line per checkpoint, and TensorBoard's scalars where the package is installed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model_zoo.training import checkpoint

__all__ = ["NAME", "Log"]

NAME = "log.jsonl"


class Log:
    """``log.jsonl`` and TensorBoard's scalars, cut back to the step from which a run is resumed."""

    def __init__(self, out: Path, first: int, report: Callable[[dict[str, float]], None]) -> None:
        self._path, self._report = out / NAME, report
        lines = [line for line in _read_complete_lines(self._path) if line["step"] <= first]
        with checkpoint.write_durably(self._path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
        self._board = _open_tensorboard(out / "tensorboard", first)

    def write(self, line: dict[str, float]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in line.items():
                self._board.add_scalar(name, value, line["step"])
            self._board.flush()
        self._report(line)


def _read_complete_lines(path: Path) -> Sequence[dict[str, float]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _open_tensorboard(folder: Path, first: int) -> Any:
    """Return a writer for TensorBoard, or None where the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first + 1 if first else None)
