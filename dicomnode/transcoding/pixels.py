"""Frames of a stored file, each read alone: as stored, or decoded to Explicit VR Little Endian."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydicom.encaps import get_frame, parse_basic_offsets, parse_fragments
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ExplicitVRBigEndian

from dicomnode import decoding
from dicomnode.datasets import codestreams, inflating
from dicomnode.datasets.encoding import Element, OpenFile, Source, Window, open_source, read_file_meta, walk
from dicomnode.errors import CannotUnderstand, InputRefused
from dicomnode.reading import stored_values

__all__ = [
    "PIXEL_TAGS",
    "PixelLayout",
    "decode_array",
    "decode_frame",
    "find_element",
    "is_decodable",
    "read_frame",
    "read_layout",
    "read_native",
    "stream_frame",
]

PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
"""Tags of Float, Double Float and integer Pixel Data."""

_BLOCK = 1 << 20
_SMALL = 8 << 20
"""Bytes of compressed pixels up to which a frame is located in this process."""
_SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS, _BITS = (
    0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011, 0x00280100,
)  # fmt: skip
_LAYOUT_TAGS = frozenset({_SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS, _BITS})
_LONGEST_VALUE = 64
_MOST_VALUES = 64 << 20
"""Values of a frame that is decoded, at most: decoders take several times four bytes for each."""


@dataclass(frozen=True)
class PixelLayout:
    """Position and layout of the pixels of a file; ``at`` and ``length`` in bytes of the file."""

    path: Path
    transfer_syntax_uid: str
    tag: int
    vr: str
    at: int
    length: int
    frames: int
    rows: int
    columns: int
    samples: int
    bits: int
    deflated_at: int | None = None
    """Offset of a deflated data set in the file (PS3.5 A.5); ``at`` then counts in the inflated data set."""

    @property
    def frame_bits(self) -> int:
        """Bits of one uncompressed frame."""
        return self.rows * self.columns * self.samples * self.bits

    @property
    def is_encapsulated(self) -> bool:
        """True where each frame is compressed, in fragments of its own (PS3.5 A.4)."""
        return UID(self.transfer_syntax_uid).is_encapsulated

    @property
    def is_plain(self) -> bool:
        """True where the bytes of the pixels are those of Explicit VR Little Endian."""
        return not self.is_encapsulated and self.transfer_syntax_uid != ExplicitVRBigEndian


@dataclass(frozen=True)
class _Scan:
    """Result of a walk up to the pixels; ``values`` are those of the elements that describe the layout, by tag."""

    transfer_syntax_uid: str
    start: int
    element: Element | None
    values: dict[int, bytes]


def find_element(path: Path) -> Element | None:
    """Return the element that holds the pixels, or None. Raises InputRefused."""
    return _scan(path).element


@lru_cache(maxsize=4096)
def read_layout(path: Path) -> PixelLayout | None:
    """Return the pixel layout of a spooled file, which never changes, or None for a file without pixels.

    Raises InputRefused where the layout is not described, or more frames are announced than the bytes can hold.
    """
    scan = _scan(path)
    if scan.element is None:
        return None
    syntax, (tag, vr, at, length) = scan.transfer_syntax_uid, scan.element
    is_deflated = inflating.is_deflated(syntax)
    position = (at, length) if is_deflated else (scan.start + at, length)
    deflated_at = scan.start if is_deflated else None
    return _check_layout(
        PixelLayout(path, syntax, tag, vr, *position, *_read_numbers(scan, tag), deflated_at=deflated_at)
    )


def _scan(path: Path) -> _Scan:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        content = OpenFile(file.fileno())
        try:
            syntax, start = read_file_meta(content, size)
            with inflating.take_turn(syntax):
                return _walk_to_pixels(open_source(content, start, size, syntax), syntax, start)
        except CannotUnderstand as error:
            raise InputRefused(str(error)) from None


def _walk_to_pixels(source: Source, syntax: str, start: int) -> _Scan:
    values: dict[int, bytes] = {}
    for each in walk(source, syntax):
        if each.tag in PIXEL_TAGS:
            return _Scan(syntax, start, each, values)
        if each.tag in _LAYOUT_TAGS:
            values[each.tag] = source.read(each.at, min(each.length, _LONGEST_VALUE))
    return _Scan(syntax, start, None, values)


def _read_numbers(scan: _Scan, tag: int) -> tuple[int, int, int, int, int]:
    """Return frames, rows, columns, samples and bits of each sample."""
    syntax, values = scan.transfer_syntax_uid, scan.values
    number = struct.Struct(">H" if syntax == ExplicitVRBigEndian else "<H")
    try:
        frames = int(values.get(_FRAMES, b"").decode("ascii").strip(" \0") or 1) or 1
        rows, columns, bits = (number.unpack(values[each])[0] for each in (_ROWS, _COLUMNS, _BITS))
        (samples,) = number.unpack(values.get(_SAMPLES) or number.pack(1))
    except (KeyError, ValueError, struct.error):
        raise InputRefused("the instance does not say how its pixels are laid out") from None
    if values.get(_PHOTOMETRIC, b"").strip(b" \0") == b"YBR_FULL_422" and not UID(syntax).is_encapsulated:
        samples = 2  # PS3.3 C.7.6.3.1.2: two pixels have one pair of chrominances
    return frames, rows, columns, samples, {0x7FE00008: 32, 0x7FE00009: 64}.get(tag, bits)


def _check_layout(layout: PixelLayout) -> PixelLayout:
    """Return the layout. Raises InputRefused where its frames cannot fit into the bytes.

    Each compressed frame has a fragment of its own, with a header of eight bytes (PS3.5 A.4).
    """
    least_bits = 64 if layout.is_encapsulated else layout.frame_bits
    if not 0 < layout.frames * least_bits <= 8 * layout.length:
        raise InputRefused(
            f"{layout.frames} frames of {layout.rows} x {layout.columns} are announced, "
            f"and there are {layout.length} bytes"
        )
    return layout


def is_decodable(transfer_syntax_uid: str) -> bool:
    """Return whether pixels of the transfer syntax can be decoded here, or need no decoding."""
    uid = UID(transfer_syntax_uid)
    if not uid.is_transfer_syntax or not uid.is_encapsulated:
        return bool(uid.is_transfer_syntax)
    try:
        return bool(get_decoder(uid).is_available)
    except NotImplementedError:
        return False


def stream_frame(layout: PixelLayout, index: int, *, decode: bool) -> Iterator[bytes]:
    """Yield frame ``index`` (from 0) in pieces for a client, as stored or as ``decode_frame`` returns it.

    Raises InputRefused, NodeBusy before the first piece.
    """
    if decode and not layout.is_plain:
        yield from decoding.stream(decoding.run_in_pieces(decode_frame, layout, index))
    elif not layout.is_encapsulated and layout.frame_bits % 8 == 0:
        yield from read_native(layout, *_find_byte_range(layout, index))
    elif layout.length <= _SMALL:
        yield from decoding.stream([read_frame(layout, index)])
    else:
        yield from decoding.stream(decoding.run_in_pieces(read_frame, layout, index))


def read_frame(layout: PixelLayout, index: int) -> bytes:
    """Return frame ``index`` (from 0) as stored, without the item headers. Raises InputRefused."""
    if not layout.is_encapsulated:
        return _read_native_frame(layout, index)
    with layout.path.open("rb") as file:
        try:
            offsets = _find_frame_offsets(layout.path, layout.at, layout.frames, os.fstat(file.fileno()).st_mtime_ns)
            file.seek(layout.at)
            return get_frame(file, index, number_of_frames=layout.frames, extended_offsets=offsets)
        except (ValueError, EOFError, IndexError) as error:
            raise InputRefused(
                f"frame {index + 1} cannot be found among the fragments ({type(error).__name__})"
            ) from None


@lru_cache(maxsize=8)
def _find_frame_offsets(path: Path, at: int, frames: int, written_ns: int) -> tuple[list[int], list[int]] | None:
    """Return offsets and lengths of the frames of a file with one fragment for each and no offset table, else None.

    Without them, each frame of a long list would be searched among all fragments.
    """
    with path.open("rb") as file:
        file.seek(at)
        if parse_basic_offsets(file):
            return None
        first = file.tell()
        count, starts = parse_fragments(file)
        if count != frames:
            return None
        file.seek(starts[-1] + 4)
        last = int.from_bytes(file.read(4), "little")
    lengths = [after - start - 8 for start, after in pairwise(starts)]
    return [start - first for start in starts], [*lengths, last]


def decode_frame(layout: PixelLayout, index: int) -> bytes:
    """Return frame ``index`` (from 0) uncompressed and little endian, colours as RGB. Raises InputRefused."""
    if layout.is_plain:
        return read_frame(layout, index)
    _check_frame(layout, index)
    frame = stored_values.decode_cells(layout.path, index)
    return np.ascontiguousarray(frame, frame.dtype.newbyteorder("<")).tobytes()


def decode_array(layout: PixelLayout, index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Return frame ``index`` (from 0) decoded: (row, column), or (row, column, sample) in RGB. Raises InputRefused."""
    _check_frame(layout, index)
    return stored_values.decode_frame(layout.path, index)


def _check_frame(layout: PixelLayout, index: int) -> None:
    """Raise InputRefused for a frame that is too large to decode, or is not complete."""
    values = layout.rows * layout.columns * layout.samples
    if values > _MOST_VALUES or layout.frame_bits > 8 * decoding.LARGEST_ANSWER:
        raise InputRefused(f"a frame of {layout.rows} x {layout.columns} is more than is decoded here")
    if layout.is_encapsulated:
        codestreams.check_size(read_frame(layout, index), layout.rows, layout.columns, layout.samples)
    elif (index + 1) * layout.frame_bits > 8 * layout.length:
        raise InputRefused(f"the pixels end before frame {index + 1} does")


def _find_byte_range(layout: PixelLayout, index: int) -> tuple[int, int]:
    """Return the range of the bytes of a native frame. Raises InputRefused where the pixels end before."""
    begin, end = index * layout.frame_bits // 8, -(-(index + 1) * layout.frame_bits // 8)
    if end > layout.length:
        raise InputRefused(f"the pixels end before frame {index + 1} does")
    return begin, end


def _read_native_frame(layout: PixelLayout, index: int) -> bytes:
    """Return a native frame, shifted to begin at a byte: in the file it begins at any bit."""
    content = b"".join(read_native(layout, *_find_byte_range(layout, index)))
    if layout.frame_bits % 8 == 0:
        return content
    first = index * layout.frame_bits % 8
    bits = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")  # PS3.5 8.1.1: the first pixel is bit 0
    return np.packbits(bits[first : first + layout.frame_bits], bitorder="little").tobytes()


def read_native(layout: PixelLayout, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Yield native pixels of the data set in pieces: all bytes, or those from ``start`` to ``stop``."""
    first, remaining = layout.at + start, (layout.length if stop is None else stop) - start
    with layout.path.open("rb") as file:
        if layout.deflated_at is not None:
            yield from _inflate_range(file, layout.deflated_at, first, first + remaining)
            return
        file.seek(first)
        while remaining and (piece := file.read(min(remaining, _BLOCK))):
            remaining -= len(piece)
            yield piece


def _inflate_range(file: BinaryIO, deflated_at: int, first: int, last: int) -> Iterator[bytes]:
    """Yield a range of bytes of a deflated data set; all bytes before them are inflated, too."""
    at, size = 0, os.fstat(file.fileno()).st_size
    for piece in inflating.inflate_pieces(Window(OpenFile(file.fileno()), deflated_at, size).read):
        if part := piece[max(first - at, 0) : max(last - at, 0)]:
            yield part
        at += len(piece)
        if at >= last:
            return
