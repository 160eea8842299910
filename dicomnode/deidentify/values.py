"""Values in place of others: dummies, dates moved by days, words that are known to name nobody."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from pydicom.dataelem import DataElement

__all__ = ["OLDEST_YEARS", "aged", "dummy", "known_words", "shifted", "without"]

OLDEST_YEARS = 89
"""Greater ages are told as 90 (HIPAA's safe harbour: 45 CFR 164.514(b)(2)(i)(C))."""
_TEXT = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_DUMMIES: MappingProxyType[str, Any] = MappingProxyType({
    "AE": "REMOVED", "AS": "000D", "CS": "REMOVED", "DA": "19000101", "DS": "0", "DT": "19000101000000", "IS": "0",
    "TM": "000000", "UR": "urn:removed", "AT": 0, "FD": 0.0, "FL": 0.0, "SL": 0, "SS": 0, "SV": 0, "UL": 0, "US": 0,
    "UV": 0,
})  # fmt: skip
_DAY = re.compile(r"(\d{4})[.]?(\d\d)[.]?(\d\d)")
_WORD = re.compile(r"[^\W_]+(?:[.][0-9]+)?")


def dummy(element: DataElement) -> Any:
    """A value that the VR allows and that says nothing; bytes become as many zeros."""
    if element.VR in _TEXT:
        return "REMOVED"
    if isinstance(element.value, bytes):
        return bytes(len(element.value))
    return _DUMMIES.get(str(element.VR), "")


def shifted(value: Any, days: int) -> Any:
    """A date, or a date and time, moved; a time of day stays, and what states no day becomes empty."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [shifted(each, days) for each in value]
    found = _DAY.match(str(value or ""))
    if found is None:
        return ""
    try:
        day = date(*map(int, found.groups())) + timedelta(days=days)
    except (ValueError, OverflowError):
        return ""
    return f"{day:%Y%m%d}".zfill(8) + str(value)[found.end() :]


def aged(value: str) -> str:
    """An Age String (PS3.5 6.2), 90 years where it is more than 89."""
    years = value.strip()
    return "090Y" if years[-1:] == "Y" and years[:-1].isdigit() and int(years[:-1]) > OLDEST_YEARS else value


def known_words(text: str) -> str:
    """The words of a description that say how or of what an image was made, and short numbers; the rest is left out."""
    kept = [each for each in _WORD.findall(text) if each.casefold() in _vocabulary() or _is_short_number(each)]
    return " ".join(kept)


def without(text: str, identifying: Iterable[str]) -> str:
    """The text with every whole occurrence of these, in any case, left out."""
    for each in sorted(identifying, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(each)}(?!\w)", "", text, flags=re.IGNORECASE)
    return text


def _is_short_number(word: str) -> bool:
    """Up to three digits: an angle or a thickness, but no identifier and no year."""
    return len(word) <= 3 and word.replace(".", "", 1).isdigit()


@cache
def _vocabulary() -> frozenset[str]:
    text = files("dicomnode.deidentify").joinpath("words.txt").read_text()
    return frozenset(word for line in text.splitlines() if not line.startswith("#") for word in line.split())
