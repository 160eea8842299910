"""Value representations (PS3.5 6.2) by how their values are encoded."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["BINARY_FORMATS", "CHARACTER_SET_TEXT", "LONG_VRS", "SHORT_VRS", "TEXT"]

CHARACTER_SET_TEXT = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
"""Text in the Specific Character Set."""

TEXT = CHARACTER_SET_TEXT | {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"}
"""All values that are text; those outside ``CHARACTER_SET_TEXT`` are ASCII."""

BINARY_FORMATS: Mapping[str, str] = MappingProxyType({
    "FD": "d", "FL": "f", "SL": "l", "SS": "h", "SV": "q", "UL": "L", "US": "H", "UV": "Q",
})  # fmt: skip
"""Numbers, with their format in ``struct``."""

LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""Explicit VRs with a length of four bytes (PS3.5 7.1.2)."""

SHORT_VRS: Mapping[bytes, str] = MappingProxyType({
    vr.encode(): vr
    for vr in (
        *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO"),
        *("LT", "PN", "SH", "SL", "SS", "ST", "TM", "UI", "UL", "US"),
    )
})  # fmt: skip
"""Explicit VRs with a length of two bytes, by their encoding."""
