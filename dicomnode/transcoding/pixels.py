"""Frames of a stored file, each read alone: as they are stored, or decoded to Explicit VR Little Endian."""

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
from dicomnode.datasets.encoded import Element, OpenFile, Source, Window, open_source, read_file_meta, walk
from dicomnode.errors import CannotUnderstand, InputRefused
from dicomnode.reading.stored_values import cells, one_frame

__all__ = ["PIXELS", "Pixels", "array", "as_stored", "decoded", "element", "is_decodable", "layout", "sent", "whole"]

PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
"""Float, Double Float and Pixel Data."""

_BLOCK = 1 << 20
_SMALL = 8 << 20
"""Bytes of compressed pixels of which one frame is looked for in this process."""
_SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS, _BITS = (
    0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011, 0x00280100,
)  # fmt: skip
_LAID_OUT = frozenset({_SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS, _BITS})
_LONGEST_VALUE = 64
_MOST_VALUES = 64 << 20
"""Of a frame that is decoded: decoders take several times four bytes for each."""


@dataclass(frozen=True)
class Pixels:
    """Where the pixels of a file lie, and how they are laid out; ``at`` and ``length`` in bytes of the file."""

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
    """Where in the file the deflated data set begins in which ``at`` counts, where it is deflated (PS3.5 A.5)."""

    @property
    def frame_bits(self) -> int:
        """Of one frame when it is not compressed."""
        return self.rows * self.columns * self.samples * self.bits

    @property
    def is_encapsulated(self) -> bool:
        """Whether each frame is compressed, in fragments of its own (PS3.5 A.4)."""
        return UID(self.transfer_syntax_uid).is_encapsulated

    @property
    def is_plain(self) -> bool:
        """Whether the bytes of the data set are what Explicit VR Little Endian would have."""
        return not self.is_encapsulated and self.transfer_syntax_uid != ExplicitVRBigEndian


@dataclass(frozen=True)
class _Look:
    """What a walk up to the pixels finds: ``values`` are those of the elements that say how these are laid out."""

    transfer_syntax_uid: str
    start: int
    element: Element | None
    values: dict[int, bytes]


def element(path: Path) -> Element | None:
    """The element that holds the pixels; None when there is none. Raises InputRefused."""
    return _look(path).element


@lru_cache(maxsize=4096)
def layout(path: Path) -> Pixels | None:
    """Of a file of the spool, which never changes; None when it holds no pixels.

    Raises InputRefused when it is not said how they are laid out, or more frames are announced than its bytes can hold.
    """
    found = _look(path)
    if found.element is None:
        return None
    syntax, (tag, vr, at, length) = found.transfer_syntax_uid, found.element
    deflated = inflating.is_deflated(syntax)
    place = (at, length) if deflated else (found.start + at, length)
    deflated_at = found.start if deflated else None
    return _checked(Pixels(path, syntax, tag, vr, *place, *_numbers(found, tag), deflated_at=deflated_at))


def _look(path: Path) -> _Look:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        content = OpenFile(file.fileno())
        try:
            syntax, start = read_file_meta(content, size)
            with inflating.take_turn(syntax):
                return _walked(open_source(content, start, size, syntax), syntax, start)
        except CannotUnderstand as error:
            raise InputRefused(str(error)) from None


def _walked(source: Source, syntax: str, start: int) -> _Look:
    values: dict[int, bytes] = {}
    for each in walk(source, syntax):
        if each.tag in PIXELS:
            return _Look(syntax, start, each, values)
        if each.tag in _LAID_OUT:
            values[each.tag] = source.read(each.at, min(each.length, _LONGEST_VALUE))
    return _Look(syntax, start, None, values)


def _numbers(found: _Look, tag: int) -> tuple[int, int, int, int, int]:
    """Frames, rows, columns, samples and bits of each."""
    syntax, values = found.transfer_syntax_uid, found.values
    one = struct.Struct(">H" if syntax == ExplicitVRBigEndian else "<H")
    try:
        frames = int(values.get(_FRAMES, b"").decode("ascii").strip(" \0") or 1) or 1
        rows, columns, bits = (one.unpack(values[each])[0] for each in (_ROWS, _COLUMNS, _BITS))
        (samples,) = one.unpack(values.get(_SAMPLES) or one.pack(1))
    except (KeyError, ValueError, struct.error):
        raise InputRefused("the instance does not say how its pixels are laid out") from None
    if values.get(_PHOTOMETRIC, b"").strip(b" \0") == b"YBR_FULL_422" and not UID(syntax).is_encapsulated:
        samples = 2  # PS3.3 C.7.6.3.1.2: two pixels have one pair of chrominances
    return frames, rows, columns, samples, {0x7FE00008: 32, 0x7FE00009: 64}.get(tag, bits)


def _checked(place: Pixels) -> Pixels:
    """Each compressed frame has a fragment of its own, with a header of eight bytes (PS3.5 A.4)."""
    least_bits = 64 if place.is_encapsulated else place.frame_bits
    if not 0 < place.frames * least_bits <= 8 * place.length:
        raise InputRefused(
            f"{place.frames} frames of {place.rows} x {place.columns} are announced, and there are {place.length} bytes"
        )
    return place


def is_decodable(transfer_syntax_uid: str) -> bool:
    """Whether pixels of that transfer syntax can be decoded here, or need no decoding."""
    uid = UID(transfer_syntax_uid)
    if not uid.is_transfer_syntax or not uid.is_encapsulated:
        return bool(uid.is_transfer_syntax)
    try:
        return bool(get_decoder(uid).is_available)
    except NotImplementedError:
        return False


def sent(pixels: Pixels, index: int, *, decode: bool) -> Iterator[bytes]:
    """Frame ``index`` (from 0) on its way to a client, as its file has it or as ``decoded`` gives it. Raises
    InputRefused, NodeBusy before the first piece."""
    if decode and not pixels.is_plain:
        yield from decoding.sent(decoding.pieces(decoded, pixels, index))
    elif not pixels.is_encapsulated and pixels.frame_bits % 8 == 0:
        yield from whole(pixels, *_in_bytes(pixels, index))
    elif pixels.length <= _SMALL:
        yield from decoding.sent([as_stored(pixels, index)])
    else:
        yield from decoding.sent(decoding.pieces(as_stored, pixels, index))


def as_stored(pixels: Pixels, index: int) -> bytes:
    """Frame ``index`` (from 0) as its file has it, without the item headers. Raises InputRefused."""
    if not pixels.is_encapsulated:
        return _native(pixels, index)
    with pixels.path.open("rb") as file:
        try:
            places = _places(pixels.path, pixels.at, pixels.frames, os.fstat(file.fileno()).st_mtime_ns)
            file.seek(pixels.at)
            return get_frame(file, index, number_of_frames=pixels.frames, extended_offsets=places)
        except (ValueError, EOFError, IndexError) as error:
            raise InputRefused(
                f"frame {index + 1} cannot be found among the fragments ({type(error).__name__})"
            ) from None


@lru_cache(maxsize=8)
def _places(path: Path, at: int, frames: int, written_ns: int) -> tuple[list[int], list[int]] | None:
    """Offsets and lengths of the frames of a file that has one fragment for each and no offset table, else None.

    Without, each frame of a long list would be looked for among all fragments.
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


def decoded(pixels: Pixels, index: int) -> bytes:
    """Frame ``index`` (from 0) uncompressed and little endian, colours as RGB. Raises InputRefused."""
    if pixels.is_plain:
        return as_stored(pixels, index)
    _check(pixels, index)
    found = cells(pixels.path, index)
    return np.ascontiguousarray(found, found.dtype.newbyteorder("<")).tobytes()


def array(pixels: Pixels, index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Frame ``index`` (from 0) decoded: (row, column), or (row, column, sample) in RGB. Raises InputRefused."""
    _check(pixels, index)
    return one_frame(pixels.path, index)


def _check(pixels: Pixels, index: int) -> None:
    """Refuse a frame that would not fit, or of which bytes are missing. Raises InputRefused."""
    values = pixels.rows * pixels.columns * pixels.samples
    if values > _MOST_VALUES or pixels.frame_bits > 8 * decoding.LARGEST_ANSWER:
        raise InputRefused(f"a frame of {pixels.rows} x {pixels.columns} is more than is decoded here")
    if pixels.is_encapsulated:
        codestreams.check(as_stored(pixels, index), pixels.rows, pixels.columns, pixels.samples)
    elif (index + 1) * pixels.frame_bits > 8 * pixels.length:
        raise InputRefused(f"the pixels end before frame {index + 1} does")


def _in_bytes(pixels: Pixels, index: int) -> tuple[int, int]:
    """The first of the bytes that a native frame lies in, and the one after the last. Raises InputRefused."""
    begin, end = index * pixels.frame_bits // 8, -(-(index + 1) * pixels.frame_bits // 8)
    if end > pixels.length:
        raise InputRefused(f"the pixels end before frame {index + 1} does")
    return begin, end


def _native(pixels: Pixels, index: int) -> bytes:
    """A frame starts at any bit when its bits fill no whole byte; alone, it starts at the first one."""
    found = b"".join(whole(pixels, *_in_bytes(pixels, index)))
    if pixels.frame_bits % 8 == 0:
        return found
    first = index * pixels.frame_bits % 8
    bits = np.unpackbits(np.frombuffer(found, np.uint8), bitorder="little")  # PS3.5 8.1.1: the first pixel is bit 0
    return np.packbits(bits[first : first + pixels.frame_bits], bitorder="little").tobytes()


def whole(pixels: Pixels, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Native pixels as they lie in the data set, in pieces: all bytes of them or those from ``start`` to ``stop``."""
    first, left = pixels.at + start, (pixels.length if stop is None else stop) - start
    with pixels.path.open("rb") as file:
        if pixels.deflated_at is not None:
            yield from _inflated(file, pixels.deflated_at, first, first + left)
            return
        file.seek(first)
        while left and (piece := file.read(min(left, _BLOCK))):
            left -= len(piece)
            yield piece


def _inflated(file: BinaryIO, deflated_at: int, first: int, last: int) -> Iterator[bytes]:
    """Those bytes of a deflated data set; what lies before them has to be inflated, too."""
    at, size = 0, os.fstat(file.fileno()).st_size
    for piece in inflating.inflate_pieces(Window(OpenFile(file.fileno()), deflated_at, size).read):
        if wanted := piece[max(first - at, 0) : max(last - at, 0)]:
            yield wanted
        at += len(piece)
        if at >= last:
            return
