"""Comparison of two files for the same object, in any transfer syntaxes: element by element, pixels decoded.

The comparison ignores the file meta information, group lengths, trailing padding, the delimitation of sequences and
items, the padding of values to an even length, and the compression of pixels as long as no sample differs. Both files
are read from front to back in little memory. Files that cannot be compared within the limits count as different.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from hashlib import blake2b
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from dicomnode import decoding
from dicomnode.datasets import inflating, samples
from dicomnode.datasets.encoding import (
    ITEM,
    ITEM_END,
    SEQUENCE_END,
    UNDEFINED_LENGTH,
    OpenFile,
    find_vr,
    read_file_meta,
)
from dicomnode.datasets.vrs import LONG_VRS, TEXT
from dicomnode.errors import CannotUnderstand, InputRefused

__all__ = ["is_same"]

_MOST_TOKENS = 1_000_000
_DEEPEST = 64
_PIECE = 1 << 20
_SHORT = 1 << 16
_ITEM_LITTLE = b"\xfe\xff\x00\xe0"
_PIXEL_DATA = 0x7FE00010
_IGNORED = frozenset({0x00080001, 0x7FE00001, 0x7FE00002, 0xFFFCFFFC})  # lengths, offsets and padding
_INTERPRETATION, _PLANAR = 0x00280004, 0x00280006
_WIDTHS = {
    **dict.fromkeys(("US", "SS", "OW", "AT"), 2),
    **dict.fromkeys(("UL", "SL", "FL", "OL", "OF"), 4),
    **dict.fromkeys(("FD", "SV", "UV", "OD", "OV"), 8),
}


class _Token(NamedTuple):
    """An element, or the beginning or end of a sequence or an item (``kind``), in little endian."""

    kind: str
    tag: int
    value: bytes = b""
    is_text: bool = False


class _Coding(NamedTuple):
    """Encoding of elements: explicit or implicit VR, and byte order."""

    explicit: bool
    order: str


_IMPLICIT_LITTLE = _Coding(False, "<")


def is_same(first: Path, second: Path) -> bool:
    """Return whether two Part 10 files hold the same object. Raises NodeBusy where pixels cannot be decoded now."""
    try:
        with first.open("rb") as one, second.open("rb") as other:
            if _have_equal_bytes(one, other):
                return True
            to_decode = _compare_tokens(one, other)
        return to_decode is not None and (not to_decode or _have_equal_samples(first, second))
    except CannotUnderstand:
        return False


def _have_equal_bytes(first: BinaryIO, second: BinaryIO) -> bool:
    one, other = _DataSetFile(first), _DataSetFile(second)
    return one.syntax == other.syntax and all(a == b for a, b in zip_longest(one.blocks(), other.blocks()))


def _compare_tokens(first: BinaryIO, second: BinaryIO) -> bool | None:
    """Return whether only decoding the pixels decides the comparison; None where anything else differs."""
    remaining, to_decode, is_rearranged = _MOST_TOKENS, False, False
    for a, b in zip_longest(_DataSetFile(first).tokens(), _DataSetFile(second).tokens()):
        remaining -= 1
        if a is None or b is None or remaining < 0:
            return None
        if _are_equal(a, b):
            continue
        if _differ_in_arrangement(a, b):
            is_rearranged = True
        elif a.tag == b.tag and "compressed" in (a.kind, b.kind):
            to_decode = True
        else:
            return None
    return None if is_rearranged and not to_decode else to_decode


def _are_equal(a: _Token, b: _Token) -> bool:
    if a[:3] == b[:3]:
        return True
    return a.tag == b.tag and a.is_text and b.is_text and a.value.rstrip(b" \0") == b.value.rstrip(b" \0")


def _differ_in_arrangement(a: _Token, b: _Token) -> bool:
    """Return whether two values differ only as a lossless compression may change them for the same samples."""
    if not (a.kind == b.kind == "value" and a.tag == b.tag):
        return False
    return a.tag == _PLANAR or (a.tag == _INTERPRETATION and {a.value.strip(), b.value.strip()} == {b"RGB", b"YBR_RCT"})


class _Reader:
    """Sequential reader of pieces of bytes."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._buffer, self._start, self.at = pieces, b"", 0, 0

    def peek(self, count: int) -> bytes:
        """Return the next bytes without consuming them; fewer at the end."""
        while len(self._buffer) - self._start < count and (piece := next(self._pieces, b"")):
            self._buffer, self._start = self._buffer[self._start :] + piece, 0
        return self._buffer[self._start : self._start + count]

    def read(self, count: int) -> bytes:
        """Return the next bytes. Raises CannotUnderstand where there are fewer."""
        content = self.peek(count)
        if len(content) < count:
            raise CannotUnderstand("the data set ends inside an element")
        self._start += count
        self.at += count
        return content

    def read_pieces(self, count: int) -> Iterator[bytes]:
        """Yield the next bytes piece by piece."""
        while count:
            piece = self.read(min(count, _PIECE))
            count -= len(piece)
            yield piece


class _DataSetFile:
    """Transfer syntax and data set of an open Part 10 file."""

    def __init__(self, file: BinaryIO) -> None:
        self._content = OpenFile(file.fileno())
        self.syntax, self._start = read_file_meta(self._content, os.fstat(file.fileno()).st_size)

    def blocks(self) -> Iterator[bytes]:
        """Yield the encoded data set in blocks."""
        at = 0
        while block := self._read(at, _PIECE):
            at += len(block)
            yield block

    def tokens(self) -> Iterator[_Token]:
        """Yield the tokens of the data set."""
        pieces = inflating.inflate_pieces(self._read) if inflating.is_deflated(self.syntax) else self.blocks()
        order = ">" if self.syntax == ExplicitVRBigEndian else "<"
        return _read_elements(_Reader(pieces), _Coding(self.syntax != ImplicitVRLittleEndian, order), None, 0)

    def _read(self, at: int, count: int) -> bytes:
        return self._content.read(self._start + at, count)


def _read_elements(reader: _Reader, coding: _Coding, end: int | None, depth: int) -> Iterator[_Token]:
    """Yield tokens up to an offset, the item's delimiter or, at depth 0, the end of the data set."""
    while end is None or reader.at < end:
        if depth == 0 and len(rest := reader.peek(8)) < 8:
            if any(rest):
                raise CannotUnderstand("the data set ends inside an element's header")
            return
        tag, vr, length = _read_header(reader, coding)
        if tag == ITEM_END:
            return
        if tag & 0xFFFF == 0 or tag in _IGNORED:
            for _ in reader.read_pieces(length):
                pass
        else:
            yield from _read_element(reader, coding, (tag, vr, length), depth)


def _read_header(reader: _Reader, coding: _Coding) -> tuple[int, str, int]:
    group, number = struct.unpack(coding.order + "HH", reader.read(4))
    tag = group << 16 | number
    if not coding.explicit or group == 0xFFFE:
        return tag, find_vr(tag), struct.unpack(coding.order + "L", reader.read(4))[0]
    vr = reader.read(2)
    if vr in LONG_VRS:
        return tag, vr.decode(), struct.unpack(coding.order + "2xL", reader.read(6))[0]
    return tag, vr.decode("ascii", "replace"), struct.unpack(coding.order + "H", reader.read(2))[0]


def _read_element(reader: _Reader, coding: _Coding, header: tuple[int, str, int], depth: int) -> Iterator[_Token]:
    tag, vr, length = header
    if length == UNDEFINED_LENGTH and (vr in ("OB", "OW") or tag == _PIXEL_DATA):
        kind = "compressed" if tag == _PIXEL_DATA and not depth else "nested"
        yield _Token(kind, tag, _digest_fragments(reader, coding))
    elif vr == "SQ" or length == UNDEFINED_LENGTH or (vr == "UN" and length >= 8 and reader.peek(4) == _ITEM_LITTLE):
        inner = _IMPLICIT_LITTLE if vr == "UN" else coding  # PS3.5 6.2.2 note 2
        yield from _read_sequence(reader, inner, tag, length, depth)
    else:
        width = _WIDTHS.get(vr, 1) if coding.order == ">" else 1
        value = _digest_long(_swap_bytes(piece, width) for piece in reader.read_pieces(length))
        yield _Token("nested" if depth else "value", tag, value, vr in TEXT and length <= _SHORT)


def _read_sequence(reader: _Reader, coding: _Coding, tag: int, length: int, depth: int) -> Iterator[_Token]:
    """Yield the tokens of a sequence; one without items is an element without a value."""
    if depth > _DEEPEST:
        raise CannotUnderstand("sequences are nested too deep")
    end, items = None if length == UNDEFINED_LENGTH else reader.at + length, 0
    while end is None or reader.at < end:
        group, number, size = struct.unpack(coding.order + "HHL", reader.read(8))
        delimiter = group << 16 | number
        if delimiter == SEQUENCE_END and end is None:
            break
        if delimiter != ITEM:
            raise CannotUnderstand("something else stands where an item belongs")
        items += 1
        yield _Token("item", tag)
        yield from _read_elements(reader, coding, None if size == UNDEFINED_LENGTH else reader.at + size, depth + 1)
    yield _Token("end", tag) if items else _Token("nested" if depth else "value", tag)


def _digest_fragments(reader: _Reader, coding: _Coding) -> bytes:
    """Return a digest of compressed frames without the offset table."""
    digest, number = blake2b(), 0
    while True:
        group, element, size = struct.unpack(coding.order + "HHL", reader.read(8))
        if group << 16 | element == SEQUENCE_END:
            return digest.digest()
        digest.update(struct.pack("<L", size) if number else b"")
        for piece in reader.read_pieces(size):
            digest.update(piece if number else b"")
        number += 1


def _digest_long(pieces: Iterator[bytes]) -> bytes:
    """Return a short value unchanged, a long one as its digest."""
    value = next(pieces, b"")
    if len(value) <= _SHORT:
        return value
    digest = blake2b(value)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def _swap_bytes(piece: bytes, width: int) -> bytes:
    if width == 1:
        return piece
    if len(piece) % width:
        raise CannotUnderstand("a value has half a number")
    return np.frombuffer(piece, f"u{width}").byteswap().tobytes()


def _have_equal_samples(first: Path, second: Path) -> bool:
    """Return whether all samples are equal; False where they are too many, or cannot be decoded. Raises NodeBusy."""
    try:
        for each in (first, second):
            samples.check_size(str(each))
        return bool(
            decoding.run_for_reception(samples.compare_samples, str(second), str(first))
        )  # the newer file first: it may be harmful
    except InputRefused:
        return False
