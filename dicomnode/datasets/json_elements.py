"""Elements of a data set as DICOM JSON (PS3.18 F), built from values by keyword."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword

__all__ = ["Elements", "encode_element", "encode_keywords"]

_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


def _finite_number(value: Any) -> int | float:
    found = float(value)
    if not math.isfinite(found):
        raise ValueError("not a finite number")
    return int(found) if found.is_integer() else found


_NUMBERS: dict[str, Callable[[Any], int | float]] = dict.fromkeys(("DS", "FD", "FL"), _finite_number) | dict.fromkeys(
    ("IS", "SL", "SS", "SV", "UL", "US", "UV"), lambda value: int(float(value))
)

Elements = dict[str, dict[str, Any]]
"""Elements by tag, of eight upper-case hexadecimal digits."""


def encode_keywords(values: Mapping[str, Any]) -> Elements:
    """Encode values by keyword (text, number or a list of them; None or "" for an empty element)."""
    found: Elements = {}
    for keyword, value in values.items():
        tag = tag_for_keyword(keyword)
        if tag is not None:
            found[f"{tag:08X}"] = encode_element(dictionary_VR(tag), value)
    return dict(sorted(found.items()))


def encode_element(vr: str, value: Any) -> dict[str, Any]:
    """Encode one element of a dictionary VR, without a value where it is empty or invalid for the VR."""
    vr = vr.partition(" or ")[0]
    values = value if isinstance(value, list | tuple) else [] if value is None or value == "" else [value]
    if vr == "SQ":
        return {"vr": vr, "Value": [encode_keywords(item) for item in values]} if values else {"vr": vr}
    try:
        encoded = (
            [_NUMBERS[vr](each) for each in values] if vr in _NUMBERS else [_encode_text(vr, each) for each in values]
        )
    except (OverflowError, ValueError):
        return {"vr": vr}
    return {"vr": vr, "Value": encoded} if encoded else {"vr": vr}


def _encode_text(vr: str, value: Any) -> str | dict[str, str] | None:
    text = str(value)
    if vr != "PN":
        return text or None
    return {name: group for name, group in zip(_NAME_GROUPS, text.split("="), strict=False) if group}
