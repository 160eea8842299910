"""Unique identifiers that follow from what they identify, so that a retry makes the same object again."""

from __future__ import annotations

import hashlib
import re

from pydicom.uid import UID

__all__ = ["IMPLEMENTATION_CLASS_UID", "IMPLEMENTATION_VERSION_NAME", "UNIFIED_PROCEDURE_STEP", "derive"]

_ROOT = re.compile(r"[012](\.(0|[1-9]\d*))+")  # PS3.5 9.1
_LONGEST_ROOT = 40  # leaves 23 digits, 76 bits, to tell objects apart


def derive(*parts: str, prefix: str = "") -> UID:
    """Return the UID of these parts; the same parts in the same order give the same UID.

    Below ``prefix``, an organisation's own root, as much of the number as 64 characters leave room for; without one
    in the UUID branch 2.25 (PS3.5 B.2). Raises ``ValueError`` without parts, or when the prefix is no UID root.
    """
    if not parts:
        raise ValueError("a UID is derived from at least one part")
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode()
        digest.update(len(content).to_bytes(8, "big") + content)  # ("ab", "c") and ("a", "bc") must differ
    number = int.from_bytes(digest.digest()[:16], "big")
    number = number & ~(0xF << 76) | (0x8 << 76)  # RFC 9562, 5.8: version 8, custom
    number = number & ~(0x3 << 62) | (0x2 << 62)
    if not prefix:
        return UID(f"2.25.{number}")
    root = prefix.rstrip(".")
    if not _ROOT.fullmatch(root) or len(root) > _LONGEST_ROOT:
        raise ValueError(f"{prefix!r} is not a UID root of at most {_LONGEST_ROOT} characters")
    return UID(f"{root}.{number}"[:64])


IMPLEMENTATION_CLASS_UID = derive("dicomnode", "implementation class")
IMPLEMENTATION_VERSION_NAME = "DICOMNODE_0_2"  # MAJOR_MINOR; PS3.7 D.3.3.2: at most 16 characters
UNIFIED_PROCEDURE_STEP = UID("1.2.840.10008.5.1.4.34.6.1")
"""Unified Procedure Step - Push, the SOP class of every workitem (PS3.4 CC.3.1)."""
