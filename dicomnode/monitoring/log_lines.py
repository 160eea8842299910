"""Format of the log lines: text, or one JSON object per line with the numbers of the rows that the line names.

Neither shows the message of an exception, which may quote a patient: only its class and where it was raised.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

__all__ = ["JsonLines", "TextLines", "set_up_logging"]

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_NUMBERED = re.compile(r"\b(job|study|instance|worker|delivery|notification|search|result) (\d+)\b")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LIBRARIES = ("pynetdicom", "pydicom", "highdicom", "alembic", "matplotlib")
"""Libraries whose warnings quote data sets."""
_OWN = ("dicomnode", "db", "pipelines", "model_zoo")


class TextLines(logging.Formatter):
    """Formatter of text lines, for people."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return one line: control characters, line breaks included, are escaped."""
        return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return _describe_origin(ei[1])


class JsonLines(logging.Formatter):
    """Formatter of JSON lines, for machines.

    Keys: ``at``, ``level``, ``logger``, ``message``, ``process``, and ``job``, ``study`` and others by row number.
    """

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
            line["error"] = _describe_origin(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(kind: Literal["text", "json"] = "text") -> None:
    """Send log lines to stderr in that format: the node's from INFO, those of libraries from WARNING.

    Libraries whose warnings quote data sets log errors only. An error that a library reports is in the node's own
    errors and rows.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if kind == "json" else TextLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in _OWN:
        logging.getLogger(name).setLevel(logging.INFO)
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # its errors quote messages; the SCP logs them itself
    warnings.showwarning = _log_category


def _log_category(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Log the category and place of a library's warning, without its message, which may quote a data set."""
    logging.getLogger(__name__).debug("%s in %s, line %d", category.__name__, Path(filename).name, lineno)


def _describe_origin(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
