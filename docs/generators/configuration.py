"""Reference of node.toml: keys, types and defaults from the models, meanings from the comments of the shipped file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from dicomnode.config import Config
from dicomnode.config.section import Section
from docs.generators.tables import format_code, format_table

__all__ = ["SHIPPED", "make_page", "read_comments"]

SHIPPED = Path(__file__).parents[2] / "dicomnode" / "node.toml"
_HEADER = re.compile(r"^(?:# )?\[\[?([a-z_.]+)\]\]?$")
_KEY = re.compile(r"^(?:# )?([a-z_]+) = .*?(?:\s+# (.*))?$")
_PAGE = re.compile(r"\bdocs/([\w/-]+)\.md")
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_UNBOUNDED = 1_000_000
"""Bounds from this size on only refuse nonsense; the page leaves them out."""
_SAME_KEYS = {"senders": "limits", "peers": "results"}
"""Sections whose keys replace those of another section, which has the comments."""
_WORDS = {str: "text", bool: "true or false", int: "whole number", float: "number", Path: "path"}


def make_page() -> str:
    """Return the reference of all sections as Markdown."""
    comments = read_comments(SHIPPED.read_text())
    return "\n".join(_format_section(*found, comments) for found in _walk("", Config, is_list=False))


def read_comments(text: str) -> dict[str, str]:
    """Return the comments of a node.toml by section, and by ``section.key``; keys that are commented out count."""
    found: dict[str, str] = {}
    section = ""
    prose: list[str] = []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            section = header[1]
            found.setdefault(section, " ".join(prose))
        elif key := _KEY.match(line):
            found.setdefault(f"{section}.{key[1]}", key[2] or "")
        prose = [*prose, line[2:]] if line.startswith("# ") and not _KEY.match(line) else []
    return found


def _walk(name: str, section: type[Section], *, is_list: bool) -> Iterator[tuple[str, type[Section], bool]]:
    """Yield every section below one, in the order of the file, with whether the file may repeat it."""
    if name:
        yield name, section, is_list
    fields = _fields_by_key(section)
    for key, kind in section.list_keys().items():
        if kind is not None:
            yield from _walk(f"{name}.{key}".strip("."), kind, is_list=_is_tuple(fields[key].annotation))


def _format_section(name: str, section: type[Section], is_list: bool, comments: Mapping[str, str]) -> str:
    heading = f"## `[[{name}]]`" if is_list else f"## `[{name}]`"
    docstring = " ".join((section.__doc__ or "").split())
    kinds = section.list_keys()
    rows = [
        (f"`{key}`", _describe_type(field), _describe_default(field), _find_meaning(name, key, comments))
        for key, field in sorted(_fields_by_key(section).items(), key=lambda item: not item[1].is_required())
        if kinds[key] is None
    ]
    table = format_table(["key", "value", "default", "meaning"], rows) if rows else ""
    return "\n\n".join(part for part in (heading, _link_pages(comments.get(name, "")), docstring, table) if part)


def _find_meaning(name: str, key: str, comments: Mapping[str, str]) -> str:
    comment = comments.get(f"{name}.{key}") or comments.get(f"{_SAME_KEYS.get(name, name)}.{key}", "")
    return _link_pages(comment)


def _link_pages(text: str) -> str:
    """Return the text with links in place of the paths of pages."""
    return _PAGE.sub(r"{doc}`/\1`", text)


def _fields_by_key(section: type[Section]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in section.model_fields.items() if not field.exclude}


def _is_tuple(annotation: Any) -> bool:
    return get_origin(annotation) is tuple


def _describe_type(field: FieldInfo) -> str:
    bounds = [
        f"{words} {getattr(each, name):g}"
        for each in field.metadata
        for name, words in _BOUNDS.items()
        if getattr(each, name, None) is not None and abs(getattr(each, name)) < _UNBOUNDED
    ]
    return ", ".join([_describe_annotation(field.annotation), *bounds])


def _describe_annotation(annotation: Any) -> str:
    """Return the kind of TOML value that an annotation stands for."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{_format_value(each)}`" for each in inner)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_describe_annotation(each) for each in inner if each is not NoneType))
    if origin is tuple:
        return f"list of {_describe_annotation(inner[0])}"
    if origin is dict or (isinstance(annotation, type) and not issubclass(annotation, tuple(_WORDS))):
        return "table" if origin is dict or issubclass(annotation, Section) else "text"
    if hasattr(annotation, "__metadata__"):
        return _describe_annotation(inner[0])
    return next((word for kind, word in _WORDS.items() if annotation is kind), "text")


def _describe_default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    return format_code(_format_value(field.get_default(call_default_factory=True)))


def _format_value(value: Any) -> str:
    """Return a value as node.toml spells it; nothing for None and for empty values."""
    match value:
        case None | "" | () | {}:
            return ""
        case bool():
            return str(value).lower()
        case str() | Path():
            return f'"{value}"'
        case tuple():
            return f"[{', '.join(map(_format_value, value))}]"
        case float():
            return f"{value:g}"
        case _:
            return str(value)
