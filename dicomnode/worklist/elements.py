"""Data sets of workitems as DICOM JSON: values by keyword, without pydicom's objects.

Sequences whose items refer to others are built with plain values by keyword, as ``json_elements`` takes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from pydicom.datadict import tag_for_keyword

from dicomnode.datasets import json_elements
from dicomnode.datasets.json_elements import Elements

__all__ = [
    "code",
    "first",
    "format_moment",
    "has_value",
    "items",
    "list_input_studies",
    "put",
    "read_code",
    "tag",
    "text",
    "values",
]

_LONGEST_CODE = 16


@cache
def tag(keyword: str) -> str:
    """Return the tag of a keyword as DICOM JSON writes it."""
    number = tag_for_keyword(keyword)
    if number is None:
        raise KeyError(keyword)
    return f"{number:08X}"


def values(elements: Mapping[str, Any], keyword: str) -> list[Any]:
    """Return the values of an element; none where it is absent or empty."""
    found: list[Any] = elements.get(tag(keyword), {}).get("Value", [])
    return found


def first(elements: Mapping[str, Any], keyword: str) -> Any:
    """Return the first value of an element, or None."""
    return next(iter(values(elements, keyword)), None)


def text(elements: Mapping[str, Any], keyword: str) -> str:
    """Return the first value of an element as text without outer spaces, or ""."""
    value = first(elements, keyword)
    if isinstance(value, Mapping):
        value = value.get("Alphabetic")
    return "" if value is None else str(value).strip(" ")


def items(elements: Mapping[str, Any], keyword: str) -> list[Elements]:
    """Return the items of a sequence that are data sets."""
    return [item for item in values(elements, keyword) if isinstance(item, dict)]


def list_input_studies(elements: Mapping[str, Any]) -> set[str]:
    """Return the UIDs of the studies that a workitem names as inputs."""
    places = [elements, *items(elements, "InputInformationSequence")]
    return {text(each, "StudyInstanceUID") for each in places} - {""}


def has_value(elements: Mapping[str, Any], keyword: str) -> bool:
    """Return whether an element is present with a value."""
    return any(value not in (None, "", {}) for value in values(elements, keyword))


def put(elements: Elements, **by_keyword: Any) -> None:
    """Set elements in place: text, number, list, or for a sequence a list of mappings by keyword; None: empty."""
    elements.update(json_elements.encode_keywords(by_keyword))


def code(value: str, scheme: str, meaning: str) -> dict[str, str]:
    """Return a coded entry by keyword."""
    name = "CodeValue" if len(value) <= _LONGEST_CODE else "LongCodeValue"
    return {name: value, "CodingSchemeDesignator": scheme, "CodeMeaning": meaning[:64]}


def format_moment(moment: datetime) -> str:
    """Return a moment as a DT with its offset from UTC."""
    return moment.strftime("%Y%m%d%H%M%S.%f%z")


def read_code(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Return value and scheme of a coded entry. A value of more than 16 characters is a Long Code Value (PS3.3 8.1)."""
    return text(entry, "CodeValue") or text(entry, "LongCodeValue"), text(entry, "CodingSchemeDesignator")
