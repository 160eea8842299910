"""A [[routes]] block as text: made from values, read from a file, and added to node.toml.

Adding appends to the file: every byte of it stays, comments and other routes included.
"""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import json
import math
import os
import secrets
import stat
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dicomnode.config import loading
from dicomnode.config.config import Config
from dicomnode.config.routes import Route
from dicomnode.errors import ConfigError, NotAllowed

__all__ = [
    "Addition",
    "RouteBlock",
    "format_value",
    "make_block",
    "parse_table",
    "parse_value",
    "plan",
    "read",
    "restore",
    "write",
]

_COMMENT_CHARACTERS = 200


@dataclass(frozen=True)
class RouteBlock:
    """A route, and the text of its block in node.toml."""

    route: Route
    text: str


@dataclass(frozen=True)
class Addition:
    """A block at the end of node.toml: the digest of the file before, its content afterwards, and the difference."""

    path: Path
    sha256_before: str
    content: bytes
    diff: str
    config: Config


def make_block(values: Mapping[str, Any]) -> RouteBlock:
    """Return the block of a route; empty values are left out. Raises ConfigError that names the key.

    ``values``: by key, as node.toml has them.
    """
    chosen = {key: value for key, value in values.items() if value not in ("", None) and value not in ([], (), {})}
    try:
        lines = [f"{key} = {format_value(value)}" for key, value in chosen.items()]
        route = Route.model_validate(chosen | {"match": values.get("match") or {}})
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not route.match:
        raise ConfigError("match has no condition: such a route would take every series")
    return RouteBlock(route, "\n".join(["[[routes]]", *lines, ""]))


def read(path: Path) -> RouteBlock:
    """Return the only route of a file. Raises ConfigError."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: no [[routes]] block can be read from it: {error}") from None
    routes = values.get("routes")
    if set(values) != {"routes"} or not isinstance(routes, list) or len(routes) != 1:
        raise ConfigError(f"{path} must hold one [[routes]] block and nothing else")
    return make_block(routes[0])


def parse_table(text: str, name: str) -> dict[str, Any]:
    """Return the keys and values of TOML lines without headings of tables. Raises ConfigError that names the field."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: {error}") from None
    if any(line.lstrip().startswith("[") for line in text.splitlines()):
        raise ConfigError(f"{name}: one KEY = VALUE in a line, without headings in brackets")
    return values


def parse_value(text: str) -> Any:
    """Return the value that a text states in TOML, or the text where it states none."""
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return found["value"] if set(found) == {"value"} else text


def format_value(value: Any) -> str:
    """Return a value as TOML on one line. Raises ValueError for what a route does not take."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case int():
            return str(value)
        case float() if math.isfinite(value):
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(map(format_value, value))}]"
        case Mapping():
            pairs = [f"{_format_key(str(key))} = {format_value(each)}" for key, each in value.items()]
            return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    raise ValueError(f"{value!r} is no value of a route")


def plan(path: Path, block: RouteBlock, comment: str) -> Addition:
    """Return the change that adds the block with a comment, checked as at the start of a node. Raises ConfigError."""
    try:
        before = path.read_bytes()
        text = before.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}): copy the block by hand") from None
    line_end = "\r\n" if "\r\n" in text else "\n"
    lines = ["", *_make_comment(comment), *block.text.rstrip("\n").split("\n"), ""]
    gap = "" if text.endswith("\n") or not text else line_end
    content = before + (gap + line_end.join(lines)).encode()
    config = loading.parse(path, content.decode("utf-8-sig").replace("\r\n", "\n"))
    old, new = (each.decode("utf-8-sig").splitlines() for each in (before, content))
    diff = "\n".join(difflib.unified_diff(old, new, path.name, f"{path.name} with the route", lineterm=""))
    return Addition(path, hashlib.sha256(before).hexdigest(), content, diff, config)


def write(addition: Addition, *, now: datetime) -> Path:
    """Replace the file in one step and return the path of the old one, which stays beside it.

    Raises NotAllowed where the file has changed since the plan, ConfigError where it cannot be written.
    """
    path = addition.path.resolve()
    kept_path = path.with_name(f"{path.name}.{now:%Y%m%dT%H%M%SZ}")
    try:
        with _lock_folder(path.parent) as folder:
            if hashlib.sha256(path.read_bytes()).hexdigest() != addition.sha256_before:
                raise NotAllowed(f"{path.name} has changed meanwhile: look at the difference again")
            facts = path.stat()
            _write_new(kept_path, path.read_bytes(), facts)
            try:
                _replace(path, addition.content, facts)
            except OSError:
                kept_path.unlink()
                raise
            os.fsync(folder)
    except FileExistsError:
        raise NotAllowed(f"{kept_path.name} exists: another route was added this second, try again") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): copy the block into it by hand") from None
    return kept_path


def restore(addition: Addition, kept_path: Path) -> None:
    """Undo ``write``: give the old file its name back, unless somebody has changed the new one."""
    path = addition.path.resolve()
    with _lock_folder(path.parent) as folder:
        if path.read_bytes() == addition.content:
            kept_path.replace(path)
            os.fsync(folder)


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "missing":
        return f"{place} is missing"
    if first["type"] == "extra_forbidden":
        return f"a route has no key {place!r}; it has: {', '.join(Route.list_keys())}"
    return f"{place}: {first['msg'].removeprefix('Value error, ')}"


def _format_key(key: str) -> str:
    bare = key.replace("_", "a").replace("-", "a")
    return key if bare.isascii() and bare.isalnum() else json.dumps(key, ensure_ascii=False)


def _make_comment(comment: str) -> list[str]:
    line = "".join(each for each in comment if each.isprintable())[:_COMMENT_CHARACTERS].strip()
    return [f"# {line}"] if line else []


@contextmanager
def _lock_folder(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _write_new(path: Path, content: bytes, like: os.stat_result) -> None:
    """Write a new file with mode and owner of another; it is never readable for more than that one was."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            _set_owner(file.fileno(), like)
            os.fchmod(file.fileno(), stat.S_IMODE(like.st_mode))
            os.fsync(file.fileno())
    except OSError:
        path.unlink()
        raise


def _set_owner(fd: int, like: os.stat_result) -> None:
    """Give the file the owner of another. Raises PermissionError where the old owner could not read it otherwise."""
    own = os.fstat(fd)
    if (own.st_uid, own.st_gid) == (like.st_uid, like.st_gid):
        return
    try:
        os.fchown(fd, like.st_uid, like.st_gid)
    except PermissionError:
        is_group_enough = own.st_gid == like.st_gid and like.st_mode & stat.S_IRGRP
        if like.st_uid not in (0, own.st_uid) and not is_group_enough and not like.st_mode & stat.S_IROTH:
            raise


def _replace(path: Path, content: bytes, facts: os.stat_result) -> None:
    """Write a new file beside the old one, with its mode and owner, and give it the name of the old one."""
    new_path = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        _write_new(new_path, content, facts)
        new_path.replace(path)
    finally:
        new_path.unlink(missing_ok=True)
