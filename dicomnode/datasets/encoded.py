"""Encoded data sets as bytes on disk: walking over their elements, and the Part 10 header that we put before them.

A data set is read through a small window, so that a file of any size takes the same memory; values are not decoded
and pixels are jumped over. What pydicom would read leniently to its end is checked here: every length must fit.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Generator, Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol

from pydicom.datadict import dictionary_VR
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from dicomnode.errors import CannotUnderstand
from dicomnode.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

__all__ = [
    "Element",
    "Inflated",
    "OpenFile",
    "Readable",
    "Source",
    "Window",
    "dictionary_vr",
    "file_meta",
    "inflated_pieces",
    "open_source",
    "read_file_meta",
    "walk",
]

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT_VRS = {
    vr.encode(): vr
    for vr in (
        *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO"),
        *("LT", "PN", "SH", "SL", "SS", "ST", "TM", "UI", "UL", "US"),
    )
}
_DEFLATED = frozenset({DeflatedExplicitVRLittleEndian, UID("1.2.840.10008.1.2.4.95"), UID("1.2.840.10008.1.2.4.205")})
_WINDOW = 64 * 1024
_INFLATE_AT_MOST = 32 * 1024 * 1024
_DEEPEST = 64


class Readable(Protocol):
    """Anything whose bytes can be looked at."""

    def read(self, at: int, count: int) -> bytes: ...


class Source(Protocol):
    """Random access to the encoded bytes of one data set, of which the first ``readable`` ones can be read."""

    size: int
    readable: int

    def read(self, at: int, count: int) -> bytes: ...


class OpenFile:
    """The bytes of an open file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, at: int, count: int) -> bytes:
        return os.pread(self._fd, count, at)


class Window:
    """Bytes from ``start`` to ``stop``, read in blocks of 64 KiB."""

    def __init__(self, content: Readable, start: int, stop: int) -> None:
        self._content, self._start = content, start
        self.size = self.readable = stop - start
        self._at, self._block = 0, b""

    def read(self, at: int, count: int) -> bytes:
        offset = at - self._at
        if offset < 0 or offset + count > len(self._block):
            self._block = self._content.read(self._start + at, min(max(count, _WINDOW), self.size - at))
            self._at, offset = at, 0
        return self._block[offset : offset + count]


class Inflated:
    """A deflated data set (PS3.5 A.5): inflated to its end to check it, of which only the beginning is kept."""

    def __init__(self, raw: Source) -> None:
        head, self.size = bytearray(), 0
        for piece in inflated_pieces(raw):
            self.size += len(piece)
            head += piece[: max(0, _INFLATE_AT_MOST - len(head))]
        self._head = bytes(head)
        self.readable = len(head)

    def read(self, at: int, count: int) -> bytes:
        return self._head[at : at + count]


class Element(NamedTuple):
    """One top-level element; ``length`` counts the encoded bytes of its value, delimiters included."""

    tag: int
    vr: str
    at: int
    length: int


class _Syntax:
    """How element headers are encoded."""

    def __init__(self, explicit: bool, order: str) -> None:
        self.explicit, self.order = explicit, order
        self.short = struct.Struct(order + "HH2sH")
        self.implicit = struct.Struct(order + "HHL")
        self.long = struct.Struct(order + "L")


_EXPLICIT_LITTLE, _EXPLICIT_BIG, _IMPLICIT_LITTLE = _Syntax(True, "<"), _Syntax(True, ">"), _Syntax(False, "<")


def open_source(content: Readable, start: int, stop: int, transfer_syntax_uid: str) -> Source:
    """The data set that lies between two offsets."""
    window = Window(content, start, stop)
    return Inflated(window) if transfer_syntax_uid in _DEFLATED else window


def walk(source: Source, transfer_syntax_uid: str) -> Iterator[Element]:
    """The top-level elements in their order.

    Raises CannotUnderstand, naming the element, when the bytes are not a data set or end before it does.
    """
    syntax, at = _syntax(transfer_syntax_uid), 0
    while at < source.readable:
        at = yield from _plain_elements(source, at, syntax)
        if source.size - at < 8 and not any(source.read(at, source.size - at)):
            return  # some writers pad a data set to an even block with zeros
        if at < source.readable:
            element, at = _element(source, at, syntax, 0)
            yield element


def _plain_elements(source: Source, at: int, syntax: _Syntax) -> Generator[Element, None, int]:
    """The elements from an offset on whose headers need no second look, and the offset of the first that does.

    Every instance goes through here, element by element, so it is written for speed: ``_element`` says the same.
    """
    block = source.read(at, min(_WINDOW, source.readable - at))
    first, last, here = at, len(block) - 12, 0
    while here <= last:
        group, number, vr, length = syntax.short.unpack_from(block, here)
        name, header = _SHORT_VRS.get(vr), 8
        if not syntax.explicit:
            (length,) = syntax.long.unpack_from(block, here + 4)
            name = dictionary_vr(group << 16 | number)
        elif name is None and vr in _LONG_VRS:
            (length,) = syntax.long.unpack_from(block, here + 8)
            name, header = vr.decode("ascii"), 12
        end = here + header + length
        if name is None or group == 0xFFFE or first + end > source.size:
            break
        yield Element(group << 16 | number, name, first + here + header, length)
        here = end
    return first + here


def file_meta(*, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, source_ae_title: str) -> bytes:
    """Preamble and file meta information (PS3.10 7.1) for a data set that arrived without them."""
    body = b"".join(
        (
            _explicit(0x0001, b"OB", b"\0\1"),
            _explicit(0x0002, b"UI", _even(sop_class_uid, b"\0")),
            _explicit(0x0003, b"UI", _even(sop_instance_uid, b"\0")),
            _explicit(0x0010, b"UI", _even(transfer_syntax_uid, b"\0")),
            _explicit(0x0012, b"UI", _even(IMPLEMENTATION_CLASS_UID, b"\0")),
            _explicit(0x0013, b"SH", _even(IMPLEMENTATION_VERSION_NAME, b" ")),
            _explicit(0x0016, b"AE", _even(source_ae_title, b" ")),
        )
    )
    return b"\0" * 128 + b"DICM" + _explicit(0x0000, b"UL", struct.pack("<L", len(body))) + body


def read_file_meta(content: Readable, size: int) -> tuple[str, int]:
    """The transfer syntax UID of a Part 10 file, and the offset of its data set."""
    source, at, transfer_syntax_uid = Window(content, 0, size), 132, ""
    if source.read(128, 4) != b"DICM":
        raise CannotUnderstand("the file is not a DICOM file: it has no DICM prefix")
    while source.read(at, 2) == b"\2\0":
        element, at = _element(source, at, _EXPLICIT_LITTLE, 0)
        if element.tag == 0x00020010:
            transfer_syntax_uid = source.read(element.at, element.length).decode("ascii", "replace").strip("\0 ")
    if not transfer_syntax_uid:
        raise CannotUnderstand("the file meta information has no TransferSyntaxUID")
    return transfer_syntax_uid, at


def _syntax(transfer_syntax_uid: str) -> _Syntax:
    if transfer_syntax_uid == ImplicitVRLittleEndian:
        return _IMPLICIT_LITTLE
    return _EXPLICIT_BIG if transfer_syntax_uid == ExplicitVRBigEndian else _EXPLICIT_LITTLE


def _element(source: Source, at: int, syntax: _Syntax, depth: int) -> tuple[Element, int]:
    """The element at an offset, and the offset after it."""
    head = source.read(at, 12)
    if len(head) < 8:
        raise CannotUnderstand(f"the data set ends inside an element's header at byte {at}")
    tag, vr, length, header = _header(head, syntax)
    value_at = at + header
    if length == _UNDEFINED:
        # PS3.5 6.2.2 note 2: an unknown VR of undefined length is a sequence in Implicit VR Little Endian
        inner = _IMPLICIT_LITTLE if vr == "UN" else syntax
        end = _after_items(source, value_at, inner, tag, depth + 1)
    else:
        end = value_at + length
    if end > source.size:
        missing = end - source.size
        raise CannotUnderstand(f"the data set ends inside {_name(tag)}: {missing} of {length} bytes are missing")
    return Element(tag, vr, value_at, end - value_at), end


def _header(head: bytes, syntax: _Syntax) -> tuple[int, str, int, int]:
    """Tag, VR, length and the header's own length."""
    group, number, vr, length = syntax.short.unpack_from(head)
    tag = group << 16 | number
    if syntax.explicit and group != 0xFFFE:
        if vr in _SHORT_VRS:
            return tag, _SHORT_VRS[vr], length, 8
        if vr in _LONG_VRS or (vr.isalpha() and vr.isupper()):
            if len(head) < 12:
                raise CannotUnderstand(f"the data set ends inside the header of {_name(tag)}")
            return tag, vr.decode("ascii"), syntax.long.unpack_from(head, 8)[0], 12
    return tag, dictionary_vr(tag), syntax.long.unpack_from(head, 4)[0], 8


def _after_items(source: Source, at: int, syntax: _Syntax, owner: int, depth: int) -> int:
    """The offset after the delimiter of a sequence, or of encapsulated pixels, of undefined length (PS3.5 7.5)."""
    if depth > _DEEPEST:
        raise CannotUnderstand(f"sequences are nested more than {_DEEPEST} deep in {_name(owner)}")
    while True:
        head = source.read(at, 8)
        if len(head) < 8:
            raise CannotUnderstand(f"the data set ends inside {_name(owner)}: its delimiter is missing")
        group, number, length = syntax.implicit.unpack(head)
        tag, at = group << 16 | number, at + 8
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM:
            raise CannotUnderstand(f"{_name(tag)} stands in {_name(owner)} at byte {at - 8} where an item belongs")
        at = _after_item(source, at, syntax, owner, depth) if length == _UNDEFINED else at + length


def _after_item(source: Source, at: int, syntax: _Syntax, owner: int, depth: int) -> int:
    while True:
        if at >= source.readable:
            raise CannotUnderstand(f"the data set ends inside an item of {_name(owner)}")
        element, at = _element(source, at, syntax, depth)
        if element.tag == _ITEM_END:
            return at


@lru_cache(maxsize=4096)
def dictionary_vr(tag: int) -> str:
    """The VR that the standard gives a tag; UN for private and unknown ones."""
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


def inflated_pieces(raw: Source) -> Iterator[bytes]:
    """A deflated data set in pieces of at most 1 MiB. Raises CannotUnderstand."""
    inflate, at = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not inflate.eof:
        pending = inflate.unconsumed_tail
        if not pending:
            pending = raw.read(at, min(_WINDOW, raw.size - at))
            at += len(pending)
        try:
            piece = inflate.decompress(pending, 1 << 20)
        except zlib.error as exc:
            raise CannotUnderstand(f"the data set cannot be inflated: {exc}") from exc
        if not piece and not pending:
            raise CannotUnderstand("the deflated data set ends too early")
        yield piece


def _explicit(number: int, vr: bytes, value: bytes) -> bytes:
    if vr == b"OB":
        return struct.pack("<HH2sHL", 2, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


def _even(text: str, pad: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    return value + pad * (len(value) % 2)


def _name(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
