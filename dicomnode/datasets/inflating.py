"""Deflated data sets (PS3.5 A.5), inflated piece by piece and never beyond a bound.

A megabyte of deflate may stand for a gigabyte. What is over the bound is not received, and nobody who reads a file that
is in the spool from before inflates it further than that.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from dicomnode.errors import CannotUnderstand

__all__ = ["MOST_INFLATED", "inflated", "is_deflated", "pieces", "turn"]

MOST_INFLATED = 256 << 20
"""Bytes of a data set, inflated."""
_DEFLATED = frozenset({DeflatedExplicitVRLittleEndian, UID("1.2.840.10008.1.2.4.95"), UID("1.2.840.10008.1.2.4.205")})
_READ = 64 * 1024
_PIECE = 1 << 20
_turn = threading.Lock()

Read = Callable[[int, int], bytes]
"""The deflated bytes: so many at an offset."""


def is_deflated(transfer_syntax_uid: str) -> bool:
    """Whether data sets of that transfer syntax are deflated."""
    return transfer_syntax_uid in _DEFLATED


def turn(transfer_syntax_uid: str) -> AbstractContextManager[object]:
    """Return what to hold while the beginning of an inflated data set is kept: one at a time is, of all threads.

    Whatever is not deflated does not wait.
    """
    return _turn if is_deflated(transfer_syntax_uid) else nullcontext()


def pieces(read: Read, *, at_most: int = MOST_INFLATED) -> Iterator[bytes]:
    """The inflated data set, a megabyte at a time.

    Raises CannotUnderstand where it cannot be inflated to its end, or its end is beyond ``at_most`` bytes.
    """
    inflate, at, size = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
    while not inflate.eof:
        pending = inflate.unconsumed_tail
        if not pending:
            pending = read(at, _READ)
            at += len(pending)
        try:
            piece = inflate.decompress(pending, _PIECE)
        except zlib.error as exc:
            raise CannotUnderstand("the data set cannot be inflated") from exc
        if not piece and not pending:
            raise CannotUnderstand("the deflated data set ends too early")
        size += len(piece)
        if size > at_most:
            raise CannotUnderstand(f"the data set inflates to more than {at_most} bytes")
        yield piece


def inflated(content: bytes, *, at_most: int = MOST_INFLATED) -> bytes:
    """Deflated bytes in memory, inflated. Raises CannotUnderstand as ``pieces`` does."""
    return b"".join(pieces(lambda at, count: content[at : at + count], at_most=at_most))
