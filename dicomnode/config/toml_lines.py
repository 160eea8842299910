"""Where in a TOML file a key stands: the parser of the standard library does not say."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["line_of"]

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?")
_KEY = re.compile(r"^\s*([A-Za-z0-9_.\"'-]+?)\s*=")

Where = tuple[str | int, ...]


def line_of(text: str, where: Sequence[str | int]) -> int:
    """The line (from 1) of the deepest part of the path that has a line of its own."""
    wanted, best, best_line = tuple(where), 0, 1
    table: Where = ()
    counts: dict[Where, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = here = _table(header, counts)
        elif key := _KEY.match(line):
            here = table + _parts(key[1])
        else:
            continue
        if len(here) > best and wanted[: len(here)] == here:
            best, best_line = len(here), number
    return best_line


def _table(header: re.Match[str], counts: dict[Where, int]) -> Where:
    """The path of a table, with the number of its element where it is an array of tables."""
    path: Where = ()
    *outer, last = _parts(header[2])
    for part in outer:
        path = (*path, part)
        if path in counts:
            path = (*path, counts[path])
    path = (*path, last)
    if header[1] == "[[":
        counts[path] = counts.get(path, -1) + 1
        path = (*path, counts[path])
    return path


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
