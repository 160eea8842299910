"""Configurations of bundles as plain values: JSON and YAML within limits that every honest bundle keeps.

Endless nesting, aliases and repeated keys raise ValueError before they cost memory.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

__all__ = ["read_json", "read_yaml"]

MOST_BYTES = 2_000_000
MOST_BYTES_OF_YAML = 200_000
"""Limit for YAML, which takes a hundred times as long to read."""
DEEPEST = 64
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises OSError or ValueError."""
    content = _read(path, MOST_BYTES)
    _check_depth(content)
    value = json.loads(content.decode("utf-8"), object_pairs_hook=_table)
    json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair cannot be written again
    return value


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file, plain values only.

    Aliases are refused: a few of them stand for more values than any machine holds. Raises OSError or ValueError,
    ModuleNotFoundError without PyYAML.
    """
    import yaml

    text = _read(path, MOST_BYTES_OF_YAML).decode("utf-8")
    try:
        _check_events(text)
        loader = _loader()(text)
        try:
            root = loader.get_single_node()
            _check_keys(root)
            return None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(type(error).__name__) from None


def _read(path: Path, most: int) -> bytes:
    if path.stat().st_size > most:
        raise ValueError(f"it has more than {most / 1_000_000:g} MB")
    return path.read_bytes()


def _check_depth(content: bytes) -> None:
    depth = 0
    for bracket in _BRACKETS.finditer(_QUOTED.sub(b"", content)):
        depth += 1 if bracket[0] in (b"[", b"{") else -1
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it says {next(name for name in names if names.count(name) > 1)!r} twice")
    return table


def _loader() -> Any:
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _check_events(text: str) -> None:
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=_loader()):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it holds the alias *{event.anchor}; write out what it stands for")


def _check_keys(node: Any) -> None:
    import yaml

    if isinstance(node, yaml.MappingNode):
        names = [str(key.value) for key, _ in node.value]
        if len(set(names)) < len(names):
            raise ValueError(f"it says {next(name for name in names if names.count(name) > 1)!r} twice")
        for _, value in node.value:
            _check_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_keys(value)
