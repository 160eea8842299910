"""How much one query or retrieval may ask: its size, its elements, its values, and the wildcards of a value."""

from __future__ import annotations

import re

from pydicom.uid import UID

from dicomnode.datasets import inflating
from dicomnode.datasets.encoded import Window, tag_name, walk
from dicomnode.errors import CannotUnderstand

__all__ = ["check_value", "checked"]

_MOST_BYTES = 1 << 20
_MOST_ELEMENTS = 1000
_MOST_VALUES = 10_000
_MOST_ASTERISKS = 6  # a database tries every place of each


class _Held:
    """Bytes in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, at: int, count: int) -> bytes:
        return self._content[at : at + count]


def checked(content: bytes, syntax: UID) -> bytes:
    """An identifier as it came, inflated where it is deflated. Raises CannotUnderstand where it is too much."""
    if syntax.is_deflated:
        content = inflating.inflated(content, at_most=_MOST_BYTES)
    if len(content) > _MOST_BYTES:
        raise CannotUnderstand(f"the identifier is larger than {_MOST_BYTES} bytes")
    plain = "1.2.840.10008.1.2.1" if syntax.is_deflated else syntax
    for number, element in enumerate(walk(Window(_Held(content), 0, len(content)), plain), start=1):
        if number > _MOST_ELEMENTS:
            raise CannotUnderstand(f"the identifier has more than {_MOST_ELEMENTS} keys")
        if element.vr == "SQ" and element.length > _MOST_BYTES >> 4:
            raise CannotUnderstand(f"{tag_name(element.tag)} of the identifier is too large")
    return content


def check_value(keyword: str, value: str) -> None:
    """Raise CannotUnderstand for a value that is a longer list, or a more branching pattern, than a search may take."""
    if value.count("\\") >= _MOST_VALUES:
        raise CannotUnderstand(f"{keyword} lists more than {_MOST_VALUES} values")
    if any(len(re.findall(r"\*+", each)) > _MOST_ASTERISKS for each in value.split("\\") if "*" in each):
        raise CannotUnderstand(f"{keyword} has more than {_MOST_ASTERISKS} asterisks in a value")
