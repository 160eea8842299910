"""Matching of workitems with search keys (PS3.4 C.2.2.2), on the data set itself: for searches and subscriptions.

A key is a keyword, or a path of them into sequences, such as ``ReferencedRequestSequence.AccessionNumber``: it matches
where any item does. An empty value matches everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from pydicom.datadict import dictionary_VR

from dicomnode.errors import WorkitemRefused
from dicomnode.worklist import elements as dicom
from dicomnode.worklist.payload import INVALID

__all__ = ["check_keys", "matches"]

_MOMENTS = frozenset({"DA", "DT", "TM"})
_MOST_CHARACTERS = 256
_WILDCARD_VRS = frozenset(["AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"])


def matches(attributes: Mapping[str, Any], keys: Mapping[str, str], *, fuzzy: bool = False) -> bool:
    """Return whether a data set in DICOM JSON matches all keys. ``fuzzy``: name parts match by their beginning."""
    return all(_matches_key(attributes, key.split("."), value, fuzzy) for key, value in keys.items() if value)


def check_keys(keys: Mapping[str, str]) -> None:
    """Raise WorkitemRefused for a value that is too long to be matched."""
    for key, value in keys.items():
        if len(value) > _MOST_CHARACTERS and not key.endswith("UID"):
            raise WorkitemRefused(INVALID, f"{key} is longer than {_MOST_CHARACTERS} characters")


def _matches_key(attributes: Mapping[str, Any], path: list[str], value: str, fuzzy: bool) -> bool:
    vr = dictionary_VR(int(dicom.tag(path[-1]), 16)).partition(" or ")[0]
    return any(_matches_value(vr, each, value, fuzzy) for each in _find(attributes, path))


def _find(attributes: Mapping[str, Any], path: list[str]) -> Iterator[str]:
    if len(path) > 1:
        for item in dicom.items(attributes, path[0]):
            yield from _find(item, path[1:])
        return
    for value in dicom.values(attributes, path[0]):
        yield "=".join(map(str, value.values())) if isinstance(value, dict) else str(value).strip(" ")


def _matches_value(vr: str, stored: str, pattern: str, fuzzy: bool) -> bool:
    if vr == "UI":
        return stored in pattern.split("\\")
    if vr in _MOMENTS:
        return _is_in_range(vr, stored, pattern)
    if vr == "PN" and fuzzy:
        parts_of_name = re.split(r"[\^= ]+", stored.casefold())
        return all(
            any(name_part.startswith(part) for name_part in parts_of_name)
            for part in re.split(r"[\^= ]+", pattern.casefold())
        )
    if vr in _WILDCARD_VRS:
        fold = str.casefold if vr == "PN" else str
        return _has_form(fold(stored), fold(pattern))
    return stored == pattern


def _has_form(stored: str, pattern: str) -> bool:
    """Return whether a text has the form of another with wildcards. Each part between asterisks is searched once."""
    head, *others = [_compile(part) for part in pattern.split("*")]
    if not others:
        return head.fullmatch(stored) is not None
    *middle, tail = others
    if (found := head.match(stored)) is None:
        return False
    at = found.end()
    for part in middle:
        if (found := part.search(stored, at)) is None:
            return False
        at = found.end()
    start = len(stored) - len(pattern.rpartition("*")[2])
    return start >= at and tail.fullmatch(stored, start) is not None


@lru_cache(maxsize=256)
def _compile(part: str) -> re.Pattern[str]:
    return re.compile(re.escape(part).replace(r"\?", "."), re.DOTALL)


def _is_in_range(vr: str, stored: str, pattern: str) -> bool:
    """Return whether a date or time is in a range, whose ends include all that they leave open.

    Offsets from UTC are not compared.
    """
    value = _without_offset(vr, stored)
    low, separator, high = _split_range(vr, pattern)
    if not separator:
        return value.startswith(low) if low else False
    return (not low or value >= low or value.startswith(low)) and (not high or value[: len(high)] <= high)


def _split_range(vr: str, pattern: str) -> tuple[str, str, str]:
    """Split a range at its hyphen; the hyphen of an offset such as -0500 follows a DT and ends it or its range."""
    if vr != "DT":
        return pattern.partition("-")
    bounds = re.fullmatch(r"([0-9.]*)(?:[+-]\d{4})?(?:(-)([0-9.]*)(?:[+-]\d{4})?)?", pattern)
    if bounds is None:
        return "", "", ""
    if bounds[2] is None and (only := re.fullmatch(r"(-?)([0-9.]+)(-?)", pattern)) and (only[1] or only[3]):
        return (only[2], "-", "") if only[3] else ("", "-", only[2])
    return bounds[1], bounds[2] or "", bounds[3] or ""


def _without_offset(vr: str, stored: str) -> str:
    return re.sub(r"[+-]\d{4}$", "", stored) if vr == "DT" else stored
