"""Line numbers of keys in a TOML file, which the parser of the standard library does not give."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["line_of"]

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?")
_KEY = re.compile(r"^\s*([A-Za-z0-9_.\"'-]+?)\s*=")

Place = tuple[str | int, ...]


def line_of(text: str, place: Sequence[str | int]) -> int:
    """Return the line (from 1) of the deepest part of ``place`` that has a line of its own."""
    keys, best, best_line = tuple(place), 0, 1
    table: Place = ()
    counts: dict[Place, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = here = _table_path(header, counts)
        elif key := _KEY.match(line):
            here = table + _split_key(key[1])
        else:
            continue
        if len(here) > best and keys[: len(here)] == here:
            best, best_line = len(here), number
    return best_line


def _table_path(header: re.Match[str], counts: dict[Place, int]) -> Place:
    """Return the path of a table, with the number of its element where it is an array of tables."""
    path: Place = ()
    *outer, last = _split_key(header[2])
    for part in outer:
        path = (*path, part)
        if path in counts:
            path = (*path, counts[path])
    path = (*path, last)
    if header[1] == "[[":
        counts[path] = counts.get(path, -1) + 1
        path = (*path, counts[path])
    return path


def _split_key(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
