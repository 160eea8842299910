"""Titles of attributes for messages."""

from __future__ import annotations

from pydicom.datadict import dictionary_description, tag_for_keyword

from dicomnode.datasets.encoding import format_tag

__all__ = ["title"]


def title(keyword: str) -> str:
    """Return the name and tag of an attribute, such as ``Patient ID (0010,0020)``."""
    tag = tag_for_keyword(keyword) or 0
    return f"{dictionary_description(tag)} {format_tag(tag)}"
