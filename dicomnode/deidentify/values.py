"""Replacement values: dummies, shifted dates, capped ages, and text reduced to words that name nobody."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from pydicom.dataelem import DataElement

from dicomnode.datasets.vrs import CHARACTER_SET_TEXT

__all__ = ["OLDEST_YEARS", "cap_age", "keep_known_words", "make_dummy", "remove_words", "shift_date"]

OLDEST_YEARS = 89
"""Greatest age that stays; greater ones become 90 (HIPAA's safe harbour: 45 CFR 164.514(b)(2)(i)(C))."""
_DUMMIES: MappingProxyType[str, Any] = MappingProxyType({
    "AE": "REMOVED", "AS": "000D", "CS": "REMOVED", "DA": "19000101", "DS": "0", "DT": "19000101000000", "IS": "0",
    "TM": "000000", "UR": "urn:removed", "AT": 0, "FD": 0.0, "FL": 0.0, "SL": 0, "SS": 0, "SV": 0, "UL": 0, "US": 0,
    "UV": 0,
})  # fmt: skip
_DAY = re.compile(r"(\d{4})[.]?(\d\d)[.]?(\d\d)")
_WORD = re.compile(r"[^\W_]+(?:[.][0-9]+)?")


def make_dummy(element: DataElement) -> Any:
    """Return a value that the VR allows and that carries no information; bytes become as many zeros."""
    if element.VR in CHARACTER_SET_TEXT:
        return "REMOVED"
    if isinstance(element.value, bytes):
        return bytes(len(element.value))
    return _DUMMIES.get(str(element.VR), "")


def shift_date(value: Any, days: int) -> Any:
    """Shift a date or a date and time by days; the time of day stays, and a value without a valid day becomes empty."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [shift_date(each, days) for each in value]
    found = _DAY.match(str(value or ""))
    if found is None:
        return ""
    try:
        day = date(*map(int, found.groups())) + timedelta(days=days)
    except (ValueError, OverflowError):
        return ""
    return f"{day:%Y%m%d}".zfill(8) + str(value)[found.end() :]


def cap_age(value: str) -> str:
    """Return an Age String (PS3.5 6.2), 90 years where it is more than 89."""
    years = value.strip()
    return "090Y" if years[-1:] == "Y" and years[:-1].isdigit() and int(years[:-1]) > OLDEST_YEARS else value


def keep_known_words(text: str) -> str:
    """Keep the words of a description that the vocabulary lists (how, or of which part, an image was made), and short
    numbers."""
    known = [each for each in _WORD.findall(text) if each.casefold() in _vocabulary() or _is_short_number(each)]
    return " ".join(known)


def remove_words(text: str, identifying: Iterable[str]) -> str:
    """Remove every whole occurrence of the identifiers from a text, in upper or lower case."""
    for each in sorted(identifying, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(each)}(?!\w)", "", text, flags=re.IGNORECASE)
    return text


def _is_short_number(text: str) -> bool:
    """Return whether a text has up to three digits: an angle or a thickness, but no identifier and no year."""
    return len(text) <= 3 and text.replace(".", "", 1).isdigit()


@cache
def _vocabulary() -> frozenset[str]:
    text = files("dicomnode.deidentify").joinpath("words.txt").read_text()
    return frozenset(term for line in text.splitlines() if not line.startswith("#") for term in line.split())
