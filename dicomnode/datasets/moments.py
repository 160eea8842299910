"""Dates and times of DICOM headers (PS3.5 6.2: DA, TM, DT) with their offset from UTC, and the time between two."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

__all__ = ["Moment", "combine", "in_zone", "parse_datetime", "parse_offset", "seconds_between"]

_DATE = re.compile(r"\d{8}")
_TIME = re.compile(r"(\d{2})(?:(\d{2})(?:(\d{2})(?:\.(\d{1,6}))?)?)?")
_ZONE = re.compile(r"([+-])(\d{2})(\d{2})")
_WIDEST = timedelta(hours=14)
_YEARS = range(1000, 9999)
"""Years of real dates. Others, such as 00010101, are placeholders, and the day beside them may not exist."""


@dataclass(frozen=True)
class Moment:
    """A point in time from a header.

    ``local`` has no zone; ``offset`` is its distance from UTC, None where the header does not state it. ``precision_s``
    is 3600 or 60 where minutes or seconds are left out.
    """

    local: datetime
    offset: timedelta | None = None
    precision_s: float = 0.0


def combine(date: Any, time: Any, offset: timedelta | None) -> Moment | None:
    """Return the moment of a DA and a TM, or None unless both are stated and possible."""
    day, clock = _text(date), _TIME.fullmatch(_text(time))
    if clock is None or not _DATE.fullmatch(day):
        return None
    hour, minute, second, fraction = clock.groups()
    try:
        second_start = datetime.strptime(f"{day}{hour}{minute or '00'}{second or '00'}", "%Y%m%d%H%M%S")
    except ValueError:
        return None
    if second_start.year not in _YEARS:
        return None
    precision_s = 3600.0 if minute is None else 60.0 if second is None else 0.0
    return Moment(second_start + timedelta(seconds=float(f"0.{fraction or 0}")), offset, precision_s)


def parse_datetime(value: Any, offset: timedelta | None) -> Moment | None:
    """Return the moment of a DT, whose own suffix goes before ``offset``, or None for one without a time of day."""
    text = _text(value)
    zone = _ZONE.search(text)
    if zone is None:
        return combine(text[:8], text[8:], offset)
    own = parse_offset(text[zone.start() :])
    return None if own is None else combine(text[:8], text[8 : zone.start()], own)


def parse_offset(value: Any) -> timedelta | None:
    """Return an offset from UTC such as +0100, or None for one that is not stated or impossible."""
    zone = _ZONE.fullmatch(_text(value))
    if zone is None:
        return None
    sign, hours, minutes = zone.groups()
    size = timedelta(hours=int(hours), minutes=int(minutes))
    return None if size > _WIDEST or int(minutes) > 59 else size if sign == "+" else -size


def in_zone(moment: Moment, offset: timedelta | None) -> Moment | None:
    """Return the moment as a clock with this offset shows it, or None where only one of the two zones is known."""
    if moment.offset == offset:
        return moment
    if moment.offset is None or offset is None:
        return None
    return replace(moment, local=moment.local + offset - moment.offset, offset=offset)


def seconds_between(earlier: Moment, later: Moment) -> float | None:
    """Return the seconds from one moment to the other, or None where only one of them has an offset from UTC."""
    if (earlier.offset is None) != (later.offset is None):
        return None
    zones = (later.offset or timedelta()) - (earlier.offset or timedelta())
    return (later.local - earlier.local - zones).total_seconds()


def _text(value: Any) -> str:
    return str(value or "").strip(" \0")
