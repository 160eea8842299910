"""Matching of PS3.4 C.2.2.2 as SQL conditions, for both databases."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import ColumnElement, SQLColumnExpression, and_, func, or_, true

from db.keywords import Kind, fold_name

__all__ = ["BadValue", "check_value", "make_condition", "make_fuzzy_condition", "make_moment_condition"]

Column = SQLColumnExpression[Any]
Condition = ColumnElement[bool]

_DATE = re.compile(r"\d{4}(\d{2}(\d{2})?)?", re.ASCII)
_TIME = re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?\d{1,12}", re.ASCII)
_LONGEST = 1024
"""Length of the longest value that is stored (dicomnode/datasets/headers.py)."""
_MOST = {Kind.UID: 10_000, Kind.CODE: 100}
"""Largest number of values in one list."""
_MOST_WORDS = 20
_MOST_ASTERISKS = 6
"""Largest number of asterisks: a database tries every position of each."""
_LAST_TIME = "235959" + "9" * 16
"""The last time as text, with as many digits as ``_clock`` gives to a time with all six of its fraction."""


class BadValue(ValueError):
    """Value of a key that cannot be matched, such as an invalid date; the message names the keyword only."""


def check_value(keyword: str, kind: Kind, value: str) -> None:
    """Raise BadValue for a value that no attribute can have, and for one whose search would be too expensive."""
    values = _several(value) if kind in _MOST else [value]
    if kind in _MOST and len(values) > _MOST[kind]:
        raise BadValue(f"{keyword} lists more than {_MOST[kind]} values; ask for them in parts")
    if any(len(each) > _LONGEST for each in values):
        raise BadValue(f"{keyword} is longer than {_LONGEST} characters")
    if any(len(re.findall(r"\*+", each)) > _MOST_ASTERISKS for each in values if "*" in each):
        raise BadValue(f"{keyword} has more than {_MOST_ASTERISKS} asterisks in a value")
    if "\0" in value or (not value.isascii() and re.search("[\ud800-\udfff]", value)):
        raise BadValue(f"{keyword} has a character that no value has")


def make_condition(keyword: str, kind: Kind, column: Column, value: str, dialect: str) -> Condition:
    """Return the condition that a text column (of names from ``fold_name`` for names) matches the value, not empty."""
    if kind is Kind.UID:
        return column.in_(_several(value))
    if kind is Kind.CODE:
        return or_(*(_text(column, each, dialect) for each in _several(value)))
    if kind is Kind.NAME:
        return _name(column, value, dialect)
    if kind is Kind.DATE:
        return _between(column, *_dates(keyword, value))
    if kind is Kind.TIME:
        return (column != "") & _between(_clock(column), *_times(keyword, value))
    if kind is Kind.NUMBER:
        return column == _number(keyword, value)
    return _text(column, value, dialect)


def make_fuzzy_condition(keyword: str, column: Column, value: str, dialect: str) -> Condition:
    """Return the condition that every word begins a word of the name (PS3.18 8.3.4.2 allows any algorithm).

    Without any word every name matches. Raises BadValue.
    """
    words = [text for text in re.split(r"[\s^=,*?]+", fold_name(value)) if text]
    if len(words) > _MOST_WORDS:
        raise BadValue(f"{keyword} has more than {_MOST_WORDS} words")
    begins = [[_like(column, f"*{mark}{_literal(text)}*", dialect) for mark in ("=", "^", " ")] for text in words]
    return and_(true(), *(or_(*each) for each in begins))


def make_moment_condition(dates: Column, times: Column, date: str, time: str) -> Condition:
    """Return the condition on date and time ranges combined (PS3.4 C.2.2.2.5): a bound without date has no time."""
    first_day, last_day = _dates("StudyDate", date)
    begin, end = _times("StudyTime", time)
    low = first_day + begin if first_day else ""
    high = last_day + (end or _LAST_TIME) if last_day else ""
    return (dates != "") & _between(dates + _clock(times), low, high)


def _several(value: str) -> list[str]:
    return [part.strip() for part in value.split("\\") if part.strip()]


def _text(column: Column, value: str, dialect: str) -> Condition:
    """Return the condition of single value and wildcard matching, case-sensitive (PS3.4 C.2.2.2.1, C.2.2.2.4)."""
    if "*" in value or "?" in value:
        return _like(column, _wild(value), dialect)
    return column == value


def _name(column: Column, value: str, dialect: str) -> Condition:
    """Return the condition on a name: one component group matches any group, several match from the first on."""
    name = fold_name(value)
    pattern = f"{_wild(name)}*" if "=" in value else f"*{_wild(name)}*"
    return _like(column, pattern, dialect)


def _wild(value: str) -> str:
    """Escape the bracket, GLOB's only special character beside the wildcards of DICOM."""
    return value.replace("[", "[[]")


def _literal(value: str) -> str:
    return _wild(value).replace("*", "[*]").replace("?", "[?]")


def _like(column: Column, pattern: str, dialect: str) -> Condition:
    """Return the condition of a GLOB pattern; SQLite's LIKE would ignore case."""
    if dialect == "sqlite":
        return column.op("GLOB", is_comparison=True)(pattern)
    escaped = re.sub(r"([\\%_])", r"\\\1", pattern)
    parts = re.split(r"(\[.\])", escaped)  # the literals of GLOB
    like = [part[1] if re.fullmatch(r"\[.\]", part) else part.replace("*", "%").replace("?", "_") for part in parts]
    return column.like("".join(like), escape="\\")


def _between(column: Column, low: str, high: str) -> Condition:
    found: Condition = column != ""
    if low:
        found = found & (column >= low)
    return found & (column <= high) if high else found


def _clock(column: Column) -> Column:
    """Return a time that compares as text: twelve digits or more, without point and without old-style colons."""
    return func.replace(func.replace(column, ":", ""), ".", "") + "0000000000"


def _dates(keyword: str, value: str) -> tuple[str, str]:
    """Return the first and last day as text; a year or a month means all its days."""
    low, high = _bounds(keyword, value.replace(".", ""), _DATE)
    return low, high.ljust(8, "9") if high else ""


def _times(keyword: str, value: str) -> tuple[str, str]:
    """Return the first and last time as text; an hour or a minute means all its seconds."""
    low, high = (bound.replace(".", "") for bound in _bounds(keyword, value.replace(":", ""), _TIME))
    return low, high + _LAST_TIME[len(high) :] if high else ""


def _bounds(keyword: str, value: str, form: re.Pattern[str]) -> tuple[str, str]:
    """Return both bounds of ``from-to``, ``from-``, ``-to`` or a single value (PS3.4 C.2.2.2.5)."""
    low, dash, high = (part.strip() for part in value.partition("-"))
    if not dash:
        high = low
    if not (low or high) or any(bound and not form.fullmatch(bound) for bound in (low, high)):
        raise BadValue(f"{keyword} is neither a value nor a range that can be matched")
    return low, high


def _number(keyword: str, value: str) -> str:
    if not _NUMBER.fullmatch(value.strip()):
        raise BadValue(f"{keyword} is no whole number")
    return str(int(value))
