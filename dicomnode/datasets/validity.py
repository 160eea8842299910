"""Validation of elements by PS3.5 6.2 and PS3.6; no message quotes a value."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from pydicom.charset import python_encoding
from pydicom.config import RAISE
from pydicom.datadict import dictionary_has_tag, dictionary_VM, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import validate_value

from dicomnode.datasets.titles import title
from dicomnode.datasets.vrs import CHARACTER_SET_TEXT, TEXT

__all__ = ["find_fault", "has_known_character_set"]

_LINES = frozenset({"LT", "ST", "UT"})
_TM = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d|60)?)?(\.\d{1,6})?")
_COMPONENTS, _GROUPS = 5, 3
_ALLOWED: Mapping[str, re.Pattern[str]] = MappingProxyType({
    "PatientSex": re.compile("[MFO]"), "PatientIdentityRemoved": re.compile("YES|NO"), "Laterality": re.compile("[LR]"),
    "ImageLaterality": re.compile("[LRUB]"), "LossyImageCompression": re.compile("00|01"),
    "TimezoneOffsetFromUTC": re.compile(r"\+(0\d|1[0-3])[0-5]\d|\+1400|-(?!0000)(0\d|1[01])[0-5]\d|-1200"),
})  # fmt: skip
"""Enumerated values of attributes (PS3.3) and the range of the offset (C.12.1.1.8)."""


def find_fault(element: DataElement, *, declared: bool = True) -> str:
    """Return the fault of an element of the data dictionary as a phrase for a message; empty where it has none.

    ``declared``: True where the header names a known character set; otherwise, text has to be ASCII.
    """
    if element.is_empty:
        return ""
    vr = dictionary_VR(element.tag)
    if vr == "SQ" or element.VR == "SQ":
        return _find_fault_of_items(element, declared) if vr == element.VR else "has the wrong VR"
    if vr not in TEXT:
        return "" if element.VR in vr.split(" or ") else "has the wrong VR"
    values = list(element.value) if isinstance(element.value, MultiValue | list) else [element.value]
    most = dictionary_VM(element.tag).split("-")[-1]
    if most.isdigit() and len(values) > int(most):
        return "has too many values"
    return next((fault for each in values if (fault := _find_fault_of_text(vr, element.keyword, each, declared))), "")


def has_known_character_set(ds: Dataset) -> bool:
    """Return whether a data set names one or more character sets, all of them known."""
    value = ds.get("SpecificCharacterSet")
    terms = [value] if isinstance(value, str) else list(value or [])
    return any(terms) and all(term in python_encoding for term in terms)


def _find_fault_of_items(element: DataElement, declared: bool) -> str:
    for item in element.value:
        for each in item:
            if dictionary_has_tag(each.tag) and (fault := find_fault(each, declared=declared)):
                return f"has an item whose {title(each.keyword)} {fault}"
    return ""


def _find_fault_of_text(vr: str, keyword: str, value: Any, declared: bool) -> str:
    if isinstance(value, bytes):
        return "has the wrong VR"
    text = str(value)
    if "\ufffd" in text or (vr in CHARACTER_SET_TEXT and not declared and not text.isascii()):
        return "holds characters that its character set does not have"
    if any(unicodedata.category(each) == "Cc" and not (vr in _LINES and each in "\t\n\f\r") for each in text):
        return "holds control characters"
    if not _is_valid(vr, text) or (keyword in _ALLOWED and not _ALLOWED[keyword].fullmatch(text)):
        return f"holds no valid value (VR {vr})"
    return ""


def _is_valid(vr: str, text: str) -> bool:
    if vr == "DA":
        return _is_date(text)
    if vr == "TM":
        return _TM.fullmatch(text.rstrip()) is not None
    if vr == "PN":
        groups = text.split("=")
        if len(groups) > _GROUPS or any(group.count("^") >= _COMPONENTS for group in groups):
            return False
    if vr == "UI":  # a component with a leading zero is not allowed, and is common
        return len(text) <= 64 and re.fullmatch(r"\d+(\.\d+)*", text) is not None
    try:
        validate_value(vr, text, RAISE)
    except ValueError:
        return False
    return True


def _is_date(text: str) -> bool:
    try:
        return len(text) == 8 and text.isdigit() and bool(datetime.strptime(text, "%Y%m%d"))
    except ValueError:
        return False
