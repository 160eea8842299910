"""Size limits of the identifier of a query or retrieval; ``db.matching.check_value`` limits its values."""

from __future__ import annotations

from pydicom.uid import UID

from dicomnode.datasets import inflating
from dicomnode.datasets.encoding import Window, format_tag, walk
from dicomnode.errors import CannotUnderstand

__all__ = ["check_identifier"]

_MOST_BYTES = 1 << 20
_MOST_ELEMENTS = 1000


class _Buffer:
    """Encoded bytes in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, at: int, count: int) -> bytes:
        return self._content[at : at + count]


def check_identifier(content: bytes, syntax: UID) -> bytes:
    """Return the encoded identifier, inflated where it is deflated. Raises CannotUnderstand where it is too large."""
    if syntax.is_deflated:
        content = inflating.inflate(content, at_most=_MOST_BYTES)
    if len(content) > _MOST_BYTES:
        raise CannotUnderstand(f"the identifier is larger than {_MOST_BYTES} bytes")
    plain = "1.2.840.10008.1.2.1" if syntax.is_deflated else syntax
    for number, element in enumerate(walk(Window(_Buffer(content), 0, len(content)), plain), start=1):
        if number > _MOST_ELEMENTS:
            raise CannotUnderstand(f"the identifier has more than {_MOST_ELEMENTS} keys")
        if element.vr == "SQ" and element.length > _MOST_BYTES >> 4:
            raise CannotUnderstand(f"{format_tag(element.tag)} of the identifier is too large")
    return content
