"""Text in the character sets of PS3.3 C.12.1.1.2, with a fallback for invalid Specific Character Sets."""

from __future__ import annotations

import warnings
from functools import lru_cache

from pydicom.charset import convert_encodings, decode_bytes, python_encoding
from pydicom.valuerep import TEXT_VR_DELIMS

__all__ = ["decode_text", "find_encodings"]

_DEFAULT = "iso8859"
_LONGEST_TERMS = 256
_KNOWN = frozenset(python_encoding.values())


def decode_text(raw: bytes, encodings: tuple[str, ...]) -> str:
    """Decode text in the encodings of a data set; undecodable bytes become replacement characters."""
    if raw.isascii() and b"\x1b" not in raw:
        return raw.decode("ascii")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a wrong character set is no reason to refuse the instance
        try:
            text = decode_bytes(raw, list(encodings), set(TEXT_VR_DELIMS))
        except (LookupError, ValueError):
            return raw.decode("ascii", "replace")
    return text.encode("utf-8", "replace").decode("utf-8")  # a database refuses half a surrogate pair


@lru_cache(maxsize=64)
def find_encodings(character_set: str) -> tuple[str, ...]:
    """Return Python's names for a Specific Character Set (0008,0005), its terms separated by backslashes.

    An invalid term, such as the name of a codec of Python, stands for the default repertoire.
    """
    terms = [term.strip(" \0") for term in character_set[:_LONGEST_TERMS].split("\\")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            encodings = convert_encodings(terms)
        except (LookupError, ValueError):
            return (_DEFAULT,)
    return tuple(each if each in _KNOWN else _DEFAULT for each in encodings)
