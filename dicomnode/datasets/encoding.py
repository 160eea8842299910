"""Encoded data sets as bytes on disk: a walk over their elements, and the Part 10 header that the node writes.

A data set is read through a small window, so that a file of any size takes the same memory; values are not decoded
and pixels are skipped. Every length has to fit into the data set; pydicom would read such a data set leniently.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

from pydicom.datadict import dictionary_VR
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from dicomnode.datasets import inflating
from dicomnode.datasets.vrs import LONG_VRS, SHORT_VRS
from dicomnode.errors import CannotUnderstand
from dicomnode.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

__all__ = [
    "ITEM",
    "ITEM_END",
    "MOST_ELEMENTS",
    "MOST_NESTED",
    "SEQUENCE_END",
    "UNDEFINED_LENGTH",
    "Element",
    "InflatedSource",
    "OpenFile",
    "Readable",
    "Source",
    "Window",
    "check_inflated_size",
    "encode_file_meta",
    "find_vr",
    "format_tag",
    "open_source",
    "read_file_meta",
    "walk",
]

UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_WINDOW = 64 * 1024
_MOST_READABLE_INFLATED = 32 * 1024 * 1024
_DEEPEST = 64
MOST_ELEMENTS = 100_000
MOST_NESTED = 4_000_000


class Readable(Protocol):
    """Random access to bytes."""

    def read(self, at: int, count: int) -> bytes: ...


class Source(Protocol):
    """Random access to the encoded bytes of one data set; only the first ``readable`` of its ``size`` are readable."""

    size: int
    readable: int

    def read(self, at: int, count: int) -> bytes: ...


class OpenFile:
    """Bytes of an open file."""

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
            most = max(0, self.size - at)
            self._block = self._content.read(self._start + at, min(max(count, _WINDOW), most))
            self._at, offset = at, 0
        return self._block[offset : offset + count]


class InflatedSource:
    """A deflated data set (PS3.5 A.5), inflated to its end to check it; only the beginning is kept.

    It takes 32 MiB: hold it no longer than the lock of ``inflating.take_turn``.
    """

    def __init__(self, raw: Source) -> None:
        head, self.size = bytearray(), 0
        for piece in inflating.inflate_pieces(raw.read):
            self.size += len(piece)
            head += piece[: max(0, _MOST_READABLE_INFLATED - len(head))]
        self._head = head
        self.readable = len(head)

    def read(self, at: int, count: int) -> bytes:
        return bytes(self._head[at : at + count])


class Element(NamedTuple):
    """One top-level element; ``length`` counts the encoded bytes of its value, delimiters included."""

    tag: int
    vr: str
    at: int
    length: int


class _HeaderEncoding:
    """Encoding of element headers: explicit or implicit VR, and byte order."""

    def __init__(self, explicit: bool, order: str) -> None:
        self.explicit, self.order = explicit, order
        self.short = struct.Struct(order + "HH2sH")
        self.implicit = struct.Struct(order + "HHL")
        self.long = struct.Struct(order + "L")


_EXPLICIT_LITTLE, _EXPLICIT_BIG, _IMPLICIT_LITTLE = (
    _HeaderEncoding(True, "<"),
    _HeaderEncoding(True, ">"),
    _HeaderEncoding(False, "<"),
)


def open_source(content: Readable, start: int, stop: int, transfer_syntax_uid: str) -> Source:
    """Return the data set between two offsets."""
    window = Window(content, start, stop)
    return InflatedSource(window) if inflating.is_deflated(transfer_syntax_uid) else window


def walk(source: Source, transfer_syntax_uid: str) -> Iterator[Element]:
    """Yield the top-level elements in their order.

    Raises CannotUnderstand, naming the element, when the bytes are not a data set, end before it does, or hold more
    elements than ``MOST_ELEMENTS`` and, in sequences of undefined length, ``MOST_NESTED``.
    """
    syntax, at, count, reader = _find_header_encoding(transfer_syntax_uid), 0, 0, _ElementReader(source)
    while at < source.readable:
        for element in _walk_defined_lengths(source, at, syntax):
            yield element
            at, count = element.at + element.length, count + 1
            if count > MOST_ELEMENTS:
                raise CannotUnderstand(f"the data set has more than {MOST_ELEMENTS} elements outside of sequences")
        if source.size - at < 8 and not any(source.read(at, source.size - at)):
            return  # some writers pad a data set to an even block with zeros
        if at < source.readable:
            element, at = reader.read_element(at, syntax, 0)
            yield element


def _walk_defined_lengths(source: Source, at: int, syntax: _HeaderEncoding) -> Iterator[Element]:
    """Yield the elements of defined length and known VR from an offset on, up to the first other one.

    Every element of every instance passes here, so this is written for speed; ``_ElementReader`` reads all elements.
    """
    block = source.read(at, min(_WINDOW, source.readable - at))
    first, last, here = at, len(block) - 12, 0
    while here <= last:
        group, number, vr, length = syntax.short.unpack_from(block, here)
        name, header = SHORT_VRS.get(vr), 8
        if not syntax.explicit:
            (length,) = syntax.long.unpack_from(block, here + 4)
            name = find_vr(group << 16 | number)
        elif name is None and vr in LONG_VRS:
            (length,) = syntax.long.unpack_from(block, here + 8)
            name, header = vr.decode("ascii"), 12
        end = here + header + length
        if name is None or group == 0xFFFE or first + end > source.size:
            break
        yield Element(group << 16 | number, name, first + here + header, length)
        here = end


def encode_file_meta(
    *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, source_ae_title: str
) -> bytes:
    """Return preamble and file meta information (PS3.10 7.1) for a data set that arrived without them."""
    body = b"".join(
        (
            _encode_element(0x0001, b"OB", b"\0\1"),
            _encode_element(0x0002, b"UI", _pad_to_even(sop_class_uid, b"\0")),
            _encode_element(0x0003, b"UI", _pad_to_even(sop_instance_uid, b"\0")),
            _encode_element(0x0010, b"UI", _pad_to_even(transfer_syntax_uid, b"\0")),
            _encode_element(0x0012, b"UI", _pad_to_even(IMPLEMENTATION_CLASS_UID, b"\0")),
            _encode_element(0x0013, b"SH", _pad_to_even(IMPLEMENTATION_VERSION_NAME, b" ")),
            _encode_element(0x0016, b"AE", _pad_to_even(source_ae_title, b" ")),
        )
    )
    return b"\0" * 128 + b"DICM" + _encode_element(0x0000, b"UL", struct.pack("<L", len(body))) + body


def check_inflated_size(path: Path, *, at_most: int = inflating.MOST_INFLATED) -> None:
    """Raise CannotUnderstand where a file's data set is deflated, and inflates to more than ``at_most`` bytes.

    Call this before a library that inflates without a limit reads the file.
    """
    with path.open("rb") as file:
        content, size = OpenFile(file.fileno()), file.seek(0, 2)
        transfer_syntax_uid, start = read_file_meta(content, size)
        if inflating.is_deflated(transfer_syntax_uid):
            for _ in inflating.inflate_pieces(Window(content, start, size).read, at_most=at_most):
                pass


def read_file_meta(content: Readable, size: int) -> tuple[str, int]:
    """Return the transfer syntax UID of a Part 10 file, and the offset of its data set.

    Raises CannotUnderstand for another file.
    """
    source, at, transfer_syntax_uid = Window(content, 0, size), 132, ""
    reader = _ElementReader(source)
    if source.read(128, 4) != b"DICM":
        raise CannotUnderstand("the file is not a DICOM file: it has no DICM prefix")
    while source.read(at, 2) == b"\2\0":
        element, at = reader.read_element(at, _EXPLICIT_LITTLE, 0)
        if element.tag == 0x00020010:
            transfer_syntax_uid = source.read(element.at, element.length).decode("ascii", "replace").strip("\0 ")
    if not transfer_syntax_uid:
        raise CannotUnderstand("the file meta information has no TransferSyntaxUID")
    return transfer_syntax_uid, at


def _find_header_encoding(transfer_syntax_uid: str) -> _HeaderEncoding:
    if transfer_syntax_uid == ImplicitVRLittleEndian:
        return _IMPLICIT_LITTLE
    return _EXPLICIT_BIG if transfer_syntax_uid == ExplicitVRBigEndian else _EXPLICIT_LITTLE


class _ElementReader:
    """Reader of any element; it goes through nested elements to find an undefined length, up to ``MOST_NESTED``."""

    def __init__(self, source: Source) -> None:
        self._source, self._count = source, 0

    def read_element(self, at: int, syntax: _HeaderEncoding, depth: int) -> tuple[Element, int]:
        """Return the element at an offset, and the offset after it."""
        head = self._source.read(at, 12)
        if len(head) < 8:
            raise CannotUnderstand(f"the data set ends inside an element's header at byte {at}")
        tag, vr, length, header = _parse_header(head, syntax)
        self._count_element(tag)
        value_at = at + header
        if length == UNDEFINED_LENGTH:
            # PS3.5 6.2.2 note 2: an unknown VR of undefined length is a sequence in Implicit VR Little Endian
            inner = _IMPLICIT_LITTLE if vr == "UN" else syntax
            end = self._find_end_of_items(value_at, inner, tag, depth + 1)
        else:
            end = value_at + length
        if end > self._source.size:
            missing = end - self._source.size
            raise CannotUnderstand(
                f"the data set ends inside {format_tag(tag)}: {missing} of {length} bytes are missing"
            )
        return Element(tag, vr, value_at, end - value_at), end

    def _find_end_of_items(self, at: int, syntax: _HeaderEncoding, owner: int, depth: int) -> int:
        """Return the offset after a sequence, or encapsulated pixels, of undefined length (PS3.5 7.5)."""
        if depth > _DEEPEST:
            raise CannotUnderstand(f"sequences are nested more than {_DEEPEST} deep in {format_tag(owner)}")
        while True:
            head = self._source.read(at, 8)
            if len(head) < 8:
                raise CannotUnderstand(f"the data set ends inside {format_tag(owner)}: its delimiter is missing")
            group, number, length = syntax.implicit.unpack(head)
            tag, at = group << 16 | number, at + 8
            if tag == SEQUENCE_END:
                return at
            if tag != ITEM:
                message = f"{format_tag(tag)} stands in {format_tag(owner)} at byte {at - 8} where an item belongs"
                raise CannotUnderstand(message)
            self._count_element(owner)
            at = self._find_end_of_item(at, syntax, owner, depth) if length == UNDEFINED_LENGTH else at + length

    def _find_end_of_item(self, at: int, syntax: _HeaderEncoding, owner: int, depth: int) -> int:
        while True:
            if at >= self._source.readable:
                raise CannotUnderstand(f"the data set ends inside an item of {format_tag(owner)}")
            element, at = self.read_element(at, syntax, depth)
            if element.tag == ITEM_END:
                return at

    def _count_element(self, tag: int) -> None:
        self._count += 1
        if self._count > MOST_NESTED:
            raise CannotUnderstand(f"the data set has more than {MOST_NESTED} nested elements, up to {format_tag(tag)}")


def _parse_header(head: bytes, syntax: _HeaderEncoding) -> tuple[int, str, int, int]:
    """Return tag, VR, length of the value and length of the header."""
    group, number, vr, length = syntax.short.unpack_from(head)
    tag = group << 16 | number
    if syntax.explicit and group != 0xFFFE:
        if vr in SHORT_VRS:
            return tag, SHORT_VRS[vr], length, 8
        if vr in LONG_VRS or (vr.isalpha() and vr.isupper()):
            if len(head) < 12:
                raise CannotUnderstand(f"the data set ends inside the header of {format_tag(tag)}")
            return tag, vr.decode("ascii"), syntax.long.unpack_from(head, 8)[0], 12
    return tag, find_vr(tag), syntax.long.unpack_from(head, 4)[0], 8


@lru_cache(maxsize=4096)
def find_vr(tag: int) -> str:
    """Return the VR of a standard tag; UN for private and unknown ones."""
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


def _encode_element(number: int, vr: bytes, value: bytes) -> bytes:
    if vr == b"OB":
        return struct.pack("<HH2sHL", 2, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


def _pad_to_even(text: str, pad: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    return value + pad * (len(value) % 2)


def format_tag(tag: int) -> str:
    """Return a tag as the standard writes it, such as (0010,0020)."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
