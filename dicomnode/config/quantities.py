"""The bounded values of node.toml: a duration that the calendar cannot hold is refused when the file is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field

__all__ = ["Count", "Days", "Hours", "PathText", "Seconds", "TimeZone", "check_written_out"]

_YEARS = 10
_DAYS = 366 * _YEARS

Seconds = Annotated[float, Field(gt=0, le=_DAYS * 86400)]
Hours = Annotated[float, Field(gt=0, le=_DAYS * 24)]
Days = Annotated[float, Field(ge=0, le=_DAYS)]
"""Zero stands for ever."""
Count = Annotated[int, Field(ge=1, le=1_000_000)]


def check_written_out(value: Any) -> Any:
    """Return the value; refuse a path that begins with '~', which a service's account would take for another folder."""
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, Path) and str(each).startswith("~"):
            raise ValueError("'~' is not expanded: write the whole path")
    return value


def _check_text(value: str) -> str:
    check_written_out(Path(value))
    return value


PathText = Annotated[str, AfterValidator(_check_text)]


def _check_zone(value: str) -> str:
    try:
        if value:
            ZoneInfo(value)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise ValueError(f"{value!r} is no time zone of the IANA database, such as 'Europe/Berlin'") from None
    return value


TimeZone = Annotated[str, AfterValidator(_check_zone)]
"""Empty: the machine's."""
