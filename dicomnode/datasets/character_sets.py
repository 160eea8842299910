"""Text in the character sets of PS3.3 C.12.1.1.2, and in whatever a sender calls one."""

from __future__ import annotations

import warnings
from functools import lru_cache

from pydicom.charset import convert_encodings, decode_bytes, python_encoding
from pydicom.valuerep import TEXT_VR_DELIMS

__all__ = ["decoded", "encodings_of"]

_DEFAULT = "iso8859"
_LONGEST_TERMS = 256
_KNOWN = frozenset(python_encoding.values())


def decoded(raw: bytes, encodings: tuple[str, ...]) -> str:
    """Text in the encodings of a data set; what they cannot say becomes a replacement character."""
    if raw.isascii() and b"\x1b" not in raw:
        return raw.decode("ascii")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a wrong character set must not cost us the instance
        try:
            text = decode_bytes(raw, list(encodings), set(TEXT_VR_DELIMS))
        except (LookupError, ValueError):
            return raw.decode("ascii", "replace")
    return text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is no character of a database


@lru_cache(maxsize=64)
def encodings_of(character_set: str) -> tuple[str, ...]:
    """Python's names for a Specific Character Set (0008,0005), its terms separated by backslashes.

    A term that is none, such as the name of a codec of Python, stands for the default repertoire.
    """
    terms = [term.strip(" \0") for term in character_set[:_LONGEST_TERMS].split("\\")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            encodings = convert_encodings(terms)
        except (LookupError, ValueError):
            return (_DEFAULT,)
    return tuple(each if each in _KNOWN else _DEFAULT for each in encodings)
