"""Whether two files hold the same object, in whatever transfer syntaxes: their elements one by one, pixels decoded.

Of no account are the file meta information, group lengths, trailing padding, how sequences and items are delimited, how
values are padded to an even length, and how pixels are compressed, as long as not one of them differs. Both files are
read from front to back in little memory. What cannot be compared within the bounds is told to differ.
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
from dicomnode.datasets.encoded import OpenFile, dictionary_vr, read_file_meta
from dicomnode.errors import CannotUnderstand, InputRefused

__all__ = ["is_same"]

_MOST_TOKENS = 1_000_000
_DEEPEST = 64
_PIECE = 1 << 20
_SHORT = 1 << 16
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_ITEM_LITTLE = b"\xfe\xff\x00\xe0"
_PIXEL_DATA = 0x7FE00010
_OF_NO_ACCOUNT = frozenset({0x00080001, 0x7FE00001, 0x7FE00002, 0xFFFCFFFC})  # lengths, offsets and padding
_INTERPRETATION, _PLANAR = 0x00280004, 0x00280006
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_TEXT = frozenset(
    {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
)
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
    """How elements are encoded."""

    explicit: bool
    order: str


_IMPLICIT_LITTLE = _Coding(False, "<")


def is_same(first: Path, second: Path) -> bool:
    """Whether two Part 10 files hold the same object. Raises NodeBusy where pixels cannot be decoded now."""
    try:
        with first.open("rb") as one, second.open("rb") as other:
            if _bytes_alike(one, other):
                return True
            to_decode = _compare_tokens(one, other)
        return to_decode is not None and (not to_decode or _decode_alike(first, second))
    except CannotUnderstand:
        return False


def _bytes_alike(first: BinaryIO, second: BinaryIO) -> bool:
    one, other = _Opened(first), _Opened(second)
    return one.syntax == other.syntax and all(a == b for a, b in zip_longest(one.blocks(), other.blocks()))


def _compare_tokens(first: BinaryIO, second: BinaryIO) -> bool | None:
    """Whether the pixels have to be decoded to tell; None where anything else differs."""
    left, to_decode, is_rearranged = _MOST_TOKENS, False, False
    for a, b in zip_longest(_Opened(first).tokens(), _Opened(second).tokens()):
        left -= 1
        if a is None or b is None or left < 0:
            return None
        if _agree(a, b):
            continue
        if _is_arrangement(a, b):
            is_rearranged = True
        elif a.tag == b.tag and "compressed" in (a.kind, b.kind):
            to_decode = True
        else:
            return None
    return None if is_rearranged and not to_decode else to_decode


def _agree(a: _Token, b: _Token) -> bool:
    if a[:3] == b[:3]:
        return True
    return a.tag == b.tag and a.is_text and b.is_text and a.value.rstrip(b" \0") == b.value.rstrip(b" \0")


def _is_arrangement(a: _Token, b: _Token) -> bool:
    """Whether two values differ in no more than what a lossless compression makes of the same samples."""
    if not (a.kind == b.kind == "value" and a.tag == b.tag):
        return False
    return a.tag == _PLANAR or (a.tag == _INTERPRETATION and {a.value.strip(), b.value.strip()} == {b"RGB", b"YBR_RCT"})


class _Reader:
    """Bytes from front to back."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._held, self._from, self.at = pieces, b"", 0, 0

    def peek(self, count: int) -> bytes:
        """The next bytes, or what is left of them."""
        while len(self._held) - self._from < count and (piece := next(self._pieces, b"")):
            self._held, self._from = self._held[self._from :] + piece, 0
        return self._held[self._from : self._from + count]

    def take(self, count: int) -> bytes:
        """The next bytes. Raises CannotUnderstand where there are not as many."""
        taken = self.peek(count)
        if len(taken) < count:
            raise CannotUnderstand("the data set ends inside an element")
        self._from += count
        self.at += count
        return taken

    def pieces(self, count: int) -> Iterator[bytes]:
        """The next bytes, piece by piece."""
        while count:
            piece = self.take(min(count, _PIECE))
            count -= len(piece)
            yield piece


class _Opened:
    """A file's transfer syntax, and its data set from the beginning."""

    def __init__(self, file: BinaryIO) -> None:
        self._content = OpenFile(file.fileno())
        self.syntax, self._start = read_file_meta(self._content, os.fstat(file.fileno()).st_size)

    def blocks(self) -> Iterator[bytes]:
        """As it is encoded."""
        at = 0
        while block := self._read(at, _PIECE):
            at += len(block)
            yield block

    def tokens(self) -> Iterator[_Token]:
        """Element by element."""
        pieces = inflating.inflate_pieces(self._read) if inflating.is_deflated(self.syntax) else self.blocks()
        order = ">" if self.syntax == ExplicitVRBigEndian else "<"
        return _elements(_Reader(pieces), _Coding(self.syntax != ImplicitVRLittleEndian, order), None, 0)

    def _read(self, at: int, count: int) -> bytes:
        return self._content.read(self._start + at, count)


def _elements(reader: _Reader, coding: _Coding, end: int | None, depth: int) -> Iterator[_Token]:
    """Those up to an offset, or up to the item's delimiter, or at depth 0 up to the end of the data set."""
    while end is None or reader.at < end:
        if depth == 0 and len(rest := reader.peek(8)) < 8:
            if any(rest):
                raise CannotUnderstand("the data set ends inside an element's header")
            return
        tag, vr, length = _header(reader, coding)
        if tag == _ITEM_END:
            return
        if tag & 0xFFFF == 0 or tag in _OF_NO_ACCOUNT:
            for _ in reader.pieces(length):
                pass
        else:
            yield from _element(reader, coding, (tag, vr, length), depth)


def _header(reader: _Reader, coding: _Coding) -> tuple[int, str, int]:
    group, number = struct.unpack(coding.order + "HH", reader.take(4))
    tag = group << 16 | number
    if not coding.explicit or group == 0xFFFE:
        return tag, dictionary_vr(tag), struct.unpack(coding.order + "L", reader.take(4))[0]
    vr = reader.take(2)
    if vr in _LONG_VRS:
        return tag, vr.decode(), struct.unpack(coding.order + "2xL", reader.take(6))[0]
    return tag, vr.decode("ascii", "replace"), struct.unpack(coding.order + "H", reader.take(2))[0]


def _element(reader: _Reader, coding: _Coding, header: tuple[int, str, int], depth: int) -> Iterator[_Token]:
    tag, vr, length = header
    if length == _UNDEFINED and (vr in ("OB", "OW") or tag == _PIXEL_DATA):
        kind = "compressed" if tag == _PIXEL_DATA and not depth else "nested"
        yield _Token(kind, tag, _fragments(reader, coding))
    elif vr == "SQ" or length == _UNDEFINED or (vr == "UN" and length >= 8 and reader.peek(4) == _ITEM_LITTLE):
        inner = _IMPLICIT_LITTLE if vr == "UN" else coding  # PS3.5 6.2.2 note 2
        yield from _sequence(reader, inner, tag, length, depth)
    else:
        width = _WIDTHS.get(vr, 1) if coding.order == ">" else 1
        value = _digest(_swapped(piece, width) for piece in reader.pieces(length))
        yield _Token("nested" if depth else "value", tag, value, vr in _TEXT and length <= _SHORT)


def _sequence(reader: _Reader, coding: _Coding, tag: int, length: int, depth: int) -> Iterator[_Token]:
    """Its items; one without any is an element without a value."""
    if depth > _DEEPEST:
        raise CannotUnderstand("sequences are nested too deep")
    end, items = None if length == _UNDEFINED else reader.at + length, 0
    while end is None or reader.at < end:
        group, number, size = struct.unpack(coding.order + "HHL", reader.take(8))
        found = group << 16 | number
        if found == _SEQUENCE_END and end is None:
            break
        if found != _ITEM:
            raise CannotUnderstand("something else stands where an item belongs")
        items += 1
        yield _Token("item", tag)
        yield from _elements(reader, coding, None if size == _UNDEFINED else reader.at + size, depth + 1)
    yield _Token("end", tag) if items else _Token("nested" if depth else "value", tag)


def _fragments(reader: _Reader, coding: _Coding) -> bytes:
    """A digest of compressed frames, the offset table left out."""
    digest, number = blake2b(), 0
    while True:
        group, element, size = struct.unpack(coding.order + "HHL", reader.take(8))
        if group << 16 | element == _SEQUENCE_END:
            return digest.digest()
        digest.update(struct.pack("<L", size) if number else b"")
        for piece in reader.pieces(size):
            digest.update(piece if number else b"")
        number += 1


def _digest(pieces: Iterator[bytes]) -> bytes:
    """A short value as it is, a long one as its digest."""
    value = next(pieces, b"")
    if len(value) <= _SHORT:
        return value
    digest = blake2b(value)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def _swapped(piece: bytes, width: int) -> bytes:
    if width == 1:
        return piece
    if len(piece) % width:
        raise CannotUnderstand("a value has half a number")
    return np.frombuffer(piece, f"u{width}").byteswap().tobytes()


def _decode_alike(first: Path, second: Path) -> bool:
    """Whether all samples are equal; not where they are too many, or cannot be decoded. Raises NodeBusy."""
    try:
        for each in (first, second):
            samples.check_size(str(each))
        return bool(decoding.received(samples.alike, str(second), str(first)))  # the newer first: it may do harm
    except InputRefused:
        return False
