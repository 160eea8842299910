"""Payloads of the worklist: one data set as DICOM JSON, checked and bounded before anything is made of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from pydicom.datadict import dictionary_VR

from dicomnode.datasets.json_elements import Elements
from dicomnode.errors import WorkitemRefused

__all__ = ["INVALID", "MISSING", "MISSING_VALUE", "MOST_BYTES", "parse"]

INVALID, MISSING, MISSING_VALUE = 0x0106, 0x0120, 0x0121
"""Statuses: invalid attribute value, missing attribute, missing attribute value (PS3.7 C.5)."""
MOST_BYTES = 262_144
_MOST_ELEMENTS = 5_000
_MOST_DEPTH = 8
_TAG = re.compile(r"[0-9A-F]{8}")
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
"""NUL, which PostgreSQL refuses, and halves of characters, which no encoding has."""
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*", re.ASCII)
_TEXT_VRS = frozenset(["AE", "AS", "CS", "DA", "DT", "LO", "LT", "SH", "ST", "TM", "UC", "UR", "UT", "UI"])
_INTEGER_VRS = frozenset(["IS", "SL", "SS", "SV", "UL", "US", "UV"])
_DECIMAL_VRS = frozenset(["DS", "FD", "FL"])
_LONGEST = {"AE": 16, "CS": 16, "SH": 16, "LO": 64, "UI": 64, "ST": 1024, "LT": 10_240, "DT": 54, "DA": 18, "TM": 28}
_NAME_GROUPS = frozenset(("Alphabetic", "Ideographic", "Phonetic"))


def parse(body: bytes) -> Elements:
    """Return the data set of a body: an object, or an array of one. Raises WorkitemRefused.

    Binary values and references to bulk data are refused: no attribute of a workitem needs them.
    """
    try:
        found = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise WorkitemRefused(INVALID, "the body is no JSON") from None
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, dict):
        raise WorkitemRefused(INVALID, "the body must hold one data set")
    if sum(1 for _ in _check(found, "", 0)) > _MOST_ELEMENTS:
        raise WorkitemRefused(INVALID, f"the data set has more than {_MOST_ELEMENTS} elements")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _check(elements: Elements, place: str, depth: int) -> Iterator[None]:
    """Yield once for each element and value that is well-formed. Raises WorkitemRefused."""
    if depth > _MOST_DEPTH:
        raise WorkitemRefused(INVALID, f"the data set is nested deeper than {_MOST_DEPTH}")
    for tag, element in elements.items():
        if not _TAG.fullmatch(tag) or tag[:4] in ("0000", "0002") or tag[4:] == "0000":
            raise WorkitemRefused(INVALID, f"{place}: a key is no tag of a data set" if place else "a key is no tag")
        yield from _check_element(element, tag, f"{place}{tag}", depth)


def _check_element(element: Any, tag: str, place: str, depth: int) -> Iterator[None]:
    yield
    if not isinstance(element, dict) or not set(element) <= {"vr", "Value"}:
        raise WorkitemRefused(INVALID, f"{place}: an element has 'vr' and 'Value' only")
    vr, values = element.get("vr"), element.get("Value", [])
    if not isinstance(values, list) or not isinstance(vr, str) or not _is_vr_of(vr, tag):
        raise WorkitemRefused(INVALID, f"{place}: the VR or the form of the values is wrong")
    for value in values:
        yield
        if vr == "SQ" and isinstance(value, dict):
            yield from _check(value, f"{place}.", depth + 1)
        elif not (value is None or _is_valid(vr, value)):
            raise WorkitemRefused(INVALID, f"{place}: a value is invalid for {vr}")


def _is_vr_of(vr: str, tag: str) -> bool:
    """Return whether the dictionary gives the VR to the tag; private elements state their own."""
    number = int(tag, 16)
    try:
        return vr in dictionary_VR(number).split(" or ")
    except KeyError:
        return bool(number >> 16 & 1) and (vr in _TEXT_VRS | _INTEGER_VRS | _DECIMAL_VRS | {"SQ", "PN", "AT"})


def _is_valid(vr: str, value: Any) -> bool:
    match value:
        case bool():
            return False
        case str():
            is_text = (
                vr in _TEXT_VRS and _UNWRITABLE.search(value) is None and len(value) <= _LONGEST.get(vr, MOST_BYTES)
            )
            is_number = vr in _DECIMAL_VRS | _INTEGER_VRS and _is_number(value)
            return (is_text and (vr != "UI" or not value or _UID.fullmatch(value) is not None)) or is_number
        case int():
            return vr in _INTEGER_VRS | _DECIMAL_VRS and abs(value) < 2**63
        case float():
            return vr in _DECIMAL_VRS and math.isfinite(value)
        case dict():
            return vr == "PN" and set(value) <= _NAME_GROUPS and all(_is_name(each) for each in value.values())
        case _:
            return False


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 64 and _UNWRITABLE.search(value) is None


def _is_number(value: str) -> bool:
    """Return whether a text is a decimal number, which DICOM JSON allows for DS and IS (PS3.18 F.2.3)."""
    return len(value) <= 32 and re.fullmatch(r" *[+-]?\d+(\.\d*)?([eE][+-]?\d{1,3})? *", value, re.ASCII) is not None
