"""What our log lines look like: text, or one JSON object per line with the numbers of the rows that they tell of.

Neither shows an exception's own words, which may quote a patient: only its kind and where it came from.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

__all__ = ["JsonLines", "TextLines", "begin"]

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_NUMBERED = re.compile(r"\b(job|study|instance|worker|delivery|notification|search|result) (\d+)\b")
_LIBRARIES = ("pynetdicom", "pydicom", "highdicom", "alembic", "matplotlib")


class TextLines(logging.Formatter):
    """For people."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def formatException(self, ei: Any) -> str:
        return _where(ei[1])


class JsonLines(logging.Formatter):
    """For machines: ``at``, ``level``, ``logger``, ``message``, ``process``, and ``job``, ``study`` ... by number."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            "process": record.process,
        }
        line |= {what: int(number) for what, number in reversed(_NUMBERED.findall(message))}
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = _where(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False)


def begin(kind: Literal["text", "json"] = "text") -> None:
    """Our own lines to stderr: libraries log data sets, and what they say is wrong is in our errors and rows."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if kind == "json" else TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
