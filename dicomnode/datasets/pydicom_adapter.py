"""Adapter for the private names of pydicom 3.0 that the node relies on; no other module uses one.

tests/test_adapters.py checks that each exists and does what is relied on here.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydicom._uid_dict import UID_dictionary

__all__ = ["uids_of_kind"]


def uids_of_kind(kind: str) -> Iterator[str]:
    """Yield the UIDs of PS3.6 annex A of a kind such as "Transfer Syntax", with those that pynetdicom has added."""
    return (uid for uid, (_, uid_kind, *_) in UID_dictionary.items() if uid_kind == kind)
