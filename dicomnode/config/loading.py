"""node.toml read and checked; each mistake is named with its line."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from dicomnode.config import references, toml_lines
from dicomnode.config.config import Config
from dicomnode.config.section import Section
from dicomnode.errors import ConfigError

__all__ = ["load", "parse"]


def load(path: Path) -> Config:
    """Read and check the file; all paths are absolute, relative ones below its folder.

    Raises ConfigError, which names the line and, for an unknown key, the nearest known one.
    """
    return parse(path, _read_toml_text(path))


def parse(path: Path, text: str) -> Config:
    """Check the text of the file as ``load`` does. ``path``: where it lies or will lie. Raises ConfigError."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from None
    if "path" in values:
        raise ConfigError(f"{path}, line {toml_lines.line_of(text, ('path',))}: unknown key 'path'")
    whole_path = path.resolve()
    try:
        config = Config.model_validate(values | {"path": whole_path}).with_absolute_paths(whole_path.parent)
    except ValidationError as error:
        raise ConfigError(_explain_error(path, text, error)) from None
    for place, reason in references.find_violations(config):
        raise ConfigError(f"{path}, line {toml_lines.line_of(text, place)}: {reason}")
    return config


def _read_toml_text(path: Path) -> str:
    """Return the text of the file without a byte order mark. Raises ConfigError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: run 'dicomnode init' or name another with --config") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or type(error).__name__}") from None
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise ConfigError(f"{path}, line {line}: byte 0x{byte:02x} is no UTF-8; save the file as UTF-8") from None
    if not text.strip():
        raise ConfigError(f"{path} is empty: 'dicomnode init' writes one with every key")
    return text


def _explain_error(path: Path, text: str, error: ValidationError) -> str:
    """Return one line on the first error, with the number of others."""
    first, *others = error.errors(include_url=False, include_input=False)
    place = tuple(part for part in first["loc"] if part != "[key]")
    line = toml_lines.line_of(text, place)
    name = ".".join(str(part + 1) if isinstance(part, int) else part for part in place)
    if first["type"] == "extra_forbidden":
        message = f"unknown key {place[-1]!r}{_suggest_key(place)}"
    elif first["type"] == "missing":
        message = f"{place[-1]!r} is missing"
    elif first["type"] == "tuple_type" and len(place) == 1:
        message = f"there may be several: write [[{name}]]"
    elif first["type"] == "model_type" and len(place) == 1:
        message = f"there is one: write [{name}]"
    else:
        message = first["msg"].removeprefix("Value error, ")
    more = f" (and {len(others)} more)" if others else ""
    return f"{path}, line {line}: {name}: {message}{more}" if place else f"{path}: {message}{more}"


def _suggest_key(place: tuple[str | int, ...]) -> str:
    known = _known_keys(place[:-1])
    near = get_close_matches(str(place[-1]), known, n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(sorted(known))}"


def _known_keys(place: tuple[str | int, ...]) -> list[str]:
    section: type[Section] = Config
    for part in place:
        if isinstance(part, str):
            section = section.list_keys()[part] or section
    return list(section.list_keys())
