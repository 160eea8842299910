"""Age Strings (PS3.5 6.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["parse_age"]

_AGE = re.compile(r"(\d{1,3})([DWMY])")  # PS3.5 6.2 has three digits
_PER_YEAR: Mapping[str, float] = MappingProxyType({"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0})


def parse_age(text: str) -> float | None:
    """Return the age in years, or None for a text that is no Age String."""
    age = _AGE.fullmatch(text)
    return int(age[1]) / _PER_YEAR[age[2]] if age else None
