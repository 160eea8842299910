"""The query string of a search as far as it is understood (PS3.18 8.3.4); what is not known is ignored and named."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from starlette.exceptions import HTTPException
from starlette.requests import Request

from db import catalogue
from db.catalogue import Level
from dicomnode.web.holdings import checked_uid

__all__ = ["SearchParameters", "read"]

_MOST_ANSWERS = 10_000
"""Answers of one request; more come page by page."""
_LONGEST_QUERY = 16_384
_MOST_PARAMETERS = 200
_MOST_FIELDS = 500
_MOST_NAMED = 10
_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_NUMBER = re.compile(r"[0-9]{1,12}")
_HARMLESS_NAME = re.compile(r"[A-Za-z0-9.]{1,64}")
_CONTROLS = frozenset({"accept", "charset", "fuzzymatching", "includefield", "limit", "offset"})
_AS_ALWAYS = frozenset({("emptyvaluematching", "false"), ("multiplevaluematching", "false")})


@dataclass(frozen=True)
class SearchParameters:
    """A query string as it was understood; ``ignored``: names of parameters and fields that are not supported."""

    keys: dict[str, str] = field(repr=False)
    fields: tuple[str, ...]
    everything: bool
    fuzzy: bool
    limit: int
    offset: int
    ignored: tuple[str, ...]


def read(request: Request, level: Level, path: dict[str, str]) -> SearchParameters:
    """The query of a search at a level, below the UIDs of its path.

    Raises 400 for a value that cannot be followed and for what stands there twice, 404 for a path without a UID.
    """
    given = _decode_parameters(request)
    query = {name: value for name, value in given if name in _CONTROLS}
    keys = [(_keyword(name), name, value) for name, value in given if name not in _CONTROLS]
    _check_once([name for name in query if name != "includefield"], given)
    can = catalogue.supported_keywords(level)
    known = [(keyword, _value(keyword, value)) for keyword, _, value in keys if keyword in can]
    if len(dict(known)) < len(known):
        raise HTTPException(400, "an attribute stands there more than once")
    fields = [part for name, value in given if name == "includefield" for part in value.split(",") if part]
    if len(fields) > _MOST_FIELDS:
        raise HTTPException(400, f"includefield names more than {_MOST_FIELDS} attributes")
    wanted = {part: _keyword(part) for part in fields if part != "all"}
    unknown = [name for keyword, name, value in keys if keyword not in can and (name, value) not in _AS_ALWAYS]
    return SearchParameters(
        _with_path(dict(known), path),
        tuple(keyword for keyword in wanted.values() if keyword in can),
        "all" in fields,
        _flag(query.get("fuzzymatching", "false")),
        min(_number("limit", query.get("limit", str(_MOST_ANSWERS))), _MOST_ANSWERS),
        _number("offset", query.get("offset", "0")),
        _harmless_names([*unknown, *(part for part, keyword in wanted.items() if not keyword)]),
    )


def _decode_parameters(request: Request) -> list[tuple[str, str]]:
    """Names and values in their order. Raises 400 for too much of them, and for bytes that are not UTF-8."""
    raw: bytes = request.scope["query_string"]
    if len(raw) > _LONGEST_QUERY:
        raise HTTPException(400, f"the query is longer than {_LONGEST_QUERY} bytes; ask for it in parts")
    try:
        unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise HTTPException(400, "the query is not UTF-8") from None
    given = request.query_params.multi_items()
    if len(given) > _MOST_PARAMETERS:
        raise HTTPException(400, f"the query has more than {_MOST_PARAMETERS} parameters")
    return given


def _check_once(names: Sequence[str], given: Sequence[tuple[str, str]]) -> None:
    counted = Counter(name for name, _ in given)
    for name in names:
        if counted[name] > 1:
            raise HTTPException(400, f"{name} stands there more than once")


def _keyword(name: str) -> str:
    """Keyword of a keyword, a tag, or a path of them into sequences; empty for what is no attribute."""
    parts = [keyword_for_tag(int(part, 16)) if _TAG.fullmatch(part) else part for part in name[:256].split(".")]
    return ".".join(parts) if len(name) <= 256 and all(tag_for_keyword(part) for part in parts) else ""


def _value(keyword: str, value: str) -> str:
    """Lists of UIDs come with commas (PS3.18 8.3.4.1)."""
    tag = tag_for_keyword(keyword.rpartition(".")[2])
    return value.replace(",", "\\") if tag and dictionary_VR(tag) == "UI" else value


def _with_path(keys: dict[str, str], path: dict[str, str]) -> dict[str, str]:
    for name, uid in path.items():
        if keys.get(name, uid) != checked_uid(uid):
            raise HTTPException(400, "the query names another study or series than the path")
    return keys | path


def _number(name: str, value: str) -> int:
    if not _NUMBER.fullmatch(value):
        raise HTTPException(400, f"{name} is a whole number from 0")
    return int(value)


def _flag(value: str) -> bool:
    if value not in ("true", "false"):
        raise HTTPException(400, "fuzzymatching is true or false")
    return value == "true"


def _harmless_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names that can stand in a header; of what a name should not hold, and of many, only that there are more."""
    harmless = sorted({name for name in names if _HARMLESS_NAME.fullmatch(name)})[:_MOST_NAMED]
    return (*harmless, "others") if len(harmless) < len(set(names)) else tuple(harmless)
