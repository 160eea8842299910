"""Deflated data sets (PS3.5 A.5), inflated piece by piece and never beyond a limit.

A deflated megabyte may hold a gigabyte. A data set over the limit is not received, and no reader of an older file in
the spool inflates it further.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from dicomnode.errors import CannotUnderstand

__all__ = ["MOST_INFLATED", "inflate", "inflate_pieces", "is_deflated", "take_turn"]

MOST_INFLATED = 256 << 20
"""Largest inflated data set, in bytes."""
_DEFLATED = frozenset({DeflatedExplicitVRLittleEndian, UID("1.2.840.10008.1.2.4.95"), UID("1.2.840.10008.1.2.4.205")})
_READ = 64 * 1024
_PIECE = 1 << 20
_inflating = threading.Lock()

Read = Callable[[int, int], bytes]
"""Reader of the deflated bytes, called with offset and count."""


def is_deflated(transfer_syntax_uid: str) -> bool:
    """Return whether data sets of the transfer syntax are deflated."""
    return transfer_syntax_uid in _DEFLATED


def take_turn(transfer_syntax_uid: str) -> AbstractContextManager[object]:
    """Return the lock to hold while the beginning of an inflated data set is in memory: one at a time in the process.

    Data sets that are not deflated do not wait.
    """
    return _inflating if is_deflated(transfer_syntax_uid) else nullcontext()


def inflate_pieces(read: Read, *, at_most: int = MOST_INFLATED) -> Iterator[bytes]:
    """Yield the inflated data set, a megabyte at a time.

    Raises CannotUnderstand where it cannot be inflated to its end, or its end is beyond ``at_most`` bytes.
    """
    inflater, at, size = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
    while not inflater.eof:
        pending = inflater.unconsumed_tail
        if not pending:
            pending = read(at, _READ)
            at += len(pending)
        try:
            piece = inflater.decompress(pending, _PIECE)
        except zlib.error as exc:
            raise CannotUnderstand("the data set cannot be inflated") from exc
        if not piece and not pending:
            raise CannotUnderstand("the deflated data set ends too early")
        size += len(piece)
        if size > at_most:
            raise CannotUnderstand(f"the data set inflates to more than {at_most} bytes")
        yield piece


def inflate(content: bytes, *, at_most: int = MOST_INFLATED) -> bytes:
    """Inflate bytes in memory. Raises CannotUnderstand as ``inflate_pieces`` does."""
    return b"".join(inflate_pieces(lambda at, count: content[at : at + count], at_most=at_most))
