"""Types of values in node.toml: a duration that the calendar cannot hold is refused when the file is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Field

__all__ = ["AETitle", "Count", "Days", "Hours", "OptionalPath", "Port", "Seconds", "TimeZone", "check_written_out"]

_YEARS = 10
_DAYS = 366 * _YEARS

Seconds = Annotated[float, Field(gt=0, le=_DAYS * 86400)]
Hours = Annotated[float, Field(gt=0, le=_DAYS * 24)]
Days = Annotated[float, Field(ge=0, le=_DAYS)]
"""Zero stands for ever."""
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Port = Annotated[int, Field(ge=0, le=65535)]


def check_written_out(value: Any) -> Any:
    """Return the value; refuse a path that begins with '~', which a service's account would take for another folder."""
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, Path) and str(each).startswith("~"):
            raise ValueError("'~' is not expanded: write the whole path")
    return value


OptionalPath = Annotated[Path | None, BeforeValidator(lambda value: None if value == "" else value)]
"""An empty text stands for None."""


def _check_zone(value: str) -> str:
    try:
        if value:
            ZoneInfo(value)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise ValueError(f"{value!r} is no time zone of the IANA database, such as 'Europe/Berlin'") from None
    return value


TimeZone = Annotated[str, AfterValidator(_check_zone)]
"""An empty text stands for the zone of the machine."""


def _normalize_ae_title(value: str) -> str:
    # PS3.5 6.2, AE: at most 16 characters of the default repertoire, no backslash, not only spaces
    title = value.strip()
    if not 1 <= len(title) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash")
    return title


AETitle = Annotated[str, AfterValidator(_normalize_ae_title)]
