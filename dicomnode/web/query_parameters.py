"""The query string of a search (PS3.18 8.3.4); unsupported parameters are ignored and named in the answer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from starlette.exceptions import HTTPException
from starlette.requests import Request

from db import catalogue
from db.catalogue import Level
from dicomnode.web.holdings import require_uid

__all__ = ["SearchParameters", "parse_search", "parse_worklist_search", "warning_header"]

_MOST_MATCHES = 10_000
"""Greatest number of matches in an answer; further ones come page by page."""
_MOST_WORKITEMS = 1000
"""The same of workitems, which are whole data sets."""
_MOST_QUERY_BYTES = 16_384
_MOST_PARAMETERS = 200
_MOST_FIELDS = 500
_MOST_WARNED_NAMES = 10
_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_NUMBER = re.compile(r"[0-9]{1,12}")
_HEADER_SAFE_NAME = re.compile(r"[A-Za-z0-9.]{1,64}")
_CONTROL_PARAMETERS = frozenset({"accept", "charset", "fuzzymatching", "includefield", "limit", "offset"})
_DEFAULT_PARAMETERS = frozenset({("emptyvaluematching", "false"), ("multiplevaluematching", "false")})


class _EveryKeyword:
    """All names that ``_parse_keyword`` knows."""

    def __contains__(self, name: object) -> bool:
        return name != ""


_EVERY_KEYWORD = _EveryKeyword()


@dataclass(frozen=True)
class SearchParameters:
    """The parsed query string of a search; ``ignored``: names of unsupported parameters and fields."""

    keys: dict[str, str] = field(repr=False)
    fields: tuple[str, ...]
    everything: bool
    fuzzy: bool
    limit: int
    offset: int
    ignored: tuple[str, ...]


def parse_search(request: Request, level: Level, path: dict[str, str]) -> SearchParameters:
    """Parse the query of a search at a level, below the UIDs of its path.

    Raises 400 for an invalid value or a repeated parameter, 404 for a path with an invalid UID.
    """
    return _parse(request, catalogue.supported_keywords(level), catalogue.find_unmatched, path, _MOST_MATCHES)


def parse_worklist_search(request: Request) -> SearchParameters:
    """Parse the query of a search of the worklist, whose every attribute can be matched. Raises 400 as above."""
    return _parse(request, _EVERY_KEYWORD, lambda keys: (), {}, _MOST_WORKITEMS)


def warning_header(request: Request, parameters: SearchParameters, *, more: bool) -> dict[str, str]:
    """Return the Warning header on ignored parameters and on further matches (PS3.18 8.3.4.4 and 10.6.3.2)."""
    warnings = (
        [f"these parameters are not supported and were ignored: {', '.join(parameters.ignored)}"]
        if parameters.ignored
        else []
    )
    if more and "limit" not in request.query_params:
        warnings.append("there are more results that can be requested")
    return {"Warning": f'299 dicomnode: "{"; ".join(warnings)}"'} if warnings else {}


def _parse(
    request: Request,
    supported: Container[str],
    find_unmatched: Callable[[Mapping[str, str]], Container[str]],
    path: dict[str, str],
    most: int,
) -> SearchParameters:
    parameters = _decode_parameters(request)
    query = {name: value for name, value in parameters if name in _CONTROL_PARAMETERS}
    keys = [(_parse_keyword(name), name, value) for name, value in parameters if name not in _CONTROL_PARAMETERS]
    _require_unique([name for name in query if name != "includefield"], parameters)
    known = [(keyword, _parse_value(keyword, value)) for keyword, _, value in keys if keyword in supported]
    unmatched = find_unmatched(dict(known))
    if len(dict(known)) < len(known):
        raise HTTPException(400, "the query names an attribute more than once")
    fields = [part for name, value in parameters if name == "includefield" for part in value.split(",") if part]
    if len(fields) > _MOST_FIELDS:
        raise HTTPException(400, f"includefield names more than {_MOST_FIELDS} attributes")
    requested = {part: _parse_keyword(part) for part in fields if part != "all"}
    unknown = [
        name
        for keyword, name, value in keys
        if keyword in unmatched or (keyword not in supported and (name, value) not in _DEFAULT_PARAMETERS)
    ]
    return SearchParameters(
        _merge_path(dict(known), path),
        tuple(keyword for keyword in requested.values() if keyword in supported),
        "all" in fields,
        _parse_flag(query.get("fuzzymatching", "false")),
        min(_parse_number("limit", query.get("limit", str(most))), most),
        _parse_number("offset", query.get("offset", "0")),
        _header_safe_names([*unknown, *(part for part, keyword in requested.items() if not keyword)]),
    )


def _decode_parameters(request: Request) -> list[tuple[str, str]]:
    """Decode names and values in order. Raises 400 for too many or too long ones and for bytes that are not UTF-8."""
    raw: bytes = request.scope["query_string"]
    if len(raw) > _MOST_QUERY_BYTES:
        raise HTTPException(400, f"the query is longer than {_MOST_QUERY_BYTES} bytes; ask for it in parts")
    try:
        unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise HTTPException(400, "the query is not UTF-8") from None
    parameters = request.query_params.multi_items()
    if len(parameters) > _MOST_PARAMETERS:
        raise HTTPException(400, f"the query has more than {_MOST_PARAMETERS} parameters")
    return parameters


def _require_unique(names: Sequence[str], parameters: Sequence[tuple[str, str]]) -> None:
    counted = Counter(name for name, _ in parameters)
    for name in names:
        if counted[name] > 1:
            raise HTTPException(400, f"the query names {name} more than once")


def _parse_keyword(name: str) -> str:
    """Return the keyword of a keyword, a tag, or a path of them into sequences; "" for anything else."""
    parts = [keyword_for_tag(int(part, 16)) if _TAG.fullmatch(part) else part for part in name[:256].split(".")]
    return ".".join(parts) if len(name) <= 256 and all(tag_for_keyword(part) for part in parts) else ""


def _parse_value(keyword: str, value: str) -> str:
    """Replace the commas in a list of UIDs by backslashes (PS3.18 8.3.4.1), and remove spaces at both ends, which
    have no meaning (PS3.5 6.2)."""
    tag = tag_for_keyword(keyword.rpartition(".")[2])
    return value.replace(",", "\\") if tag and dictionary_VR(tag) == "UI" else value.strip(" ")


def _merge_path(keys: dict[str, str], path: dict[str, str]) -> dict[str, str]:
    for name, uid in path.items():
        if keys.get(name, uid) != require_uid(uid):
            raise HTTPException(400, "the query names another study or series than the path")
    return keys | path


def _parse_number(name: str, value: str) -> int:
    if not _NUMBER.fullmatch(value):
        raise HTTPException(400, f"{name} is a whole number from 0")
    return int(value)


def _parse_flag(value: str) -> bool:
    if value not in ("true", "false"):
        raise HTTPException(400, "fuzzymatching is true or false")
    return value == "true"


def _header_safe_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names that a header can hold, at most _MOST_WARNED_NAMES; "others" stands for the rest."""
    harmless = sorted({name for name in names if _HEADER_SAFE_NAME.fullmatch(name)})[:_MOST_WARNED_NAMES]
    return (*harmless, "others") if len(harmless) < len(set(names)) else tuple(harmless)
