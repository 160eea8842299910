"""The data kit by its own index: what it holds, where that comes from, and whether every file is unchanged.

``README.md`` of the kit has a table with a row for each item. ``README.md`` of an item has the SHA-256 of each file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

__all__ = ["FileState", "Item", "check_item", "read_index"]

_COLUMNS = ("item", "path", "what", "size (mb)", "licence", "origin")
_DIGEST = re.compile(r"^[\s|`]*([0-9a-f]{64})[`|\s]+(.+?)(?:\s+\(\d[\d ]* bytes\))?[\s|`]*$", re.MULTILINE)
_GOOD_FOR = re.compile(r"^- good for: (.+)$", re.MULTILINE | re.IGNORECASE)
_PURPOSES = MappingProxyType({
    "anatomy": "simulation for training and evaluation: heads, regions, lesions",
    "ct": "tests of CT and of the bundle pipeline",
    "dicom": "tests of reading: encodings, vendors, broken files",
    "kspace": "demo, benchmarks and tests of reconstruction",
    "mri": "evaluation on real scans and tests",
    "pet": "evaluation and tests of PET and SUV",
    "unfit": "tests: images that must be held or refused",
})  # fmt: skip
"""Use in this project, by the first folder of an item's path."""


@dataclass(frozen=True)
class Item:
    """A row of the index; ``folder`` is absolute, ``path`` relative to the kit."""

    name: str
    path: str
    what: str
    size_mb: float
    licence: str
    origin: str
    purpose: str
    folder: Path


@dataclass(frozen=True)
class FileState:
    """A file of an item: "ok", "missing", "changed" or "not listed"."""

    path: str
    state: str


def read_index(root: Path) -> list[Item]:
    """Return the items of the kit. Raises FileNotFoundError without an index, ValueError for one that has no table."""
    index = root / "README.md"
    if not index.is_file():
        raise FileNotFoundError(f"no index at {index}: it is the data kit's own README.md")
    rows = [_split_row(line) for line in index.read_text().splitlines() if line.startswith("|")]
    heads = [at for at, row in enumerate(rows) if tuple(cell.casefold() for cell in row) == _COLUMNS]
    if not heads:
        raise ValueError(f"{index} has no table with the columns {', '.join(_COLUMNS)}")
    return [_make_item(root, row) for row in rows[heads[0] + 2 :] if len(row) == len(_COLUMNS)]


def check_item(item: Item) -> Iterator[FileState]:
    """Yield the state of every file that the item's README.md lists, then of those that it does not list.

    Raises FileNotFoundError where the item or its README.md is missing.
    """
    readme = item.folder / "README.md"
    if not readme.is_file():
        raise FileNotFoundError(f"no {readme}: the item {item.path} is not there, or not whole")
    digests = {name.strip().strip("`"): digest for digest, name in _DIGEST.findall(readme.read_text())}
    for name, digest in digests.items():
        path = item.folder / name
        if not path.is_file():
            yield FileState(f"{item.path}{name}", "missing")
        else:
            is_same = hashlib.sha256(path.read_bytes()).hexdigest() == digest
            yield FileState(f"{item.path}{name}", "ok" if is_same else "changed")
    for path in sorted(each for each in item.folder.rglob("*") if each.is_file()):
        name = path.relative_to(item.folder).as_posix()
        if name not in digests and path != readme:
            yield FileState(f"{item.path}{name}", "not listed")


def _split_row(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _make_item(root: Path, row: list[str]) -> Item:
    name, path, what, size, licence, origin = row
    relative = path.strip("`").rstrip("/") + "/"
    folder = root / relative
    return Item(name, relative, what, float(size), licence, origin, _find_purpose(folder, relative), folder)


def _find_purpose(folder: Path, relative: str) -> str:
    """Return what the item's own README.md says it is good for, else the use of its kind."""
    readme = folder / "README.md"
    found = _GOOD_FOR.search(readme.read_text()) if readme.is_file() else None
    return found[1].strip() if found else _PURPOSES.get(relative.partition("/")[0], "")
