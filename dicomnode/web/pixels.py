"""Frames of a stored file, each read alone: as they are stored, or decoded to Explicit VR Little Endian."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from dicomnode import decoding
from dicomnode.datasets.encoded import Element, OpenFile, open_source, read_file_meta, walk
from dicomnode.errors import CannotUnderstand, InputRefused
from dicomnode.reading import codestreams
from dicomnode.reading.decoding import cells, one_frame

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
        """Whether the file's bytes are what Explicit VR Little Endian would have."""
        swapped = self.transfer_syntax_uid in (ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
        return not self.is_encapsulated and not swapped


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
    tag, vr, at, length = found.element
    return _checked(Pixels(path, found.transfer_syntax_uid, tag, vr, found.start + at, length, *_numbers(found, tag)))


def _look(path: Path) -> _Look:
    values: dict[int, bytes] = {}
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        content = OpenFile(file.fileno())
        try:
            syntax, start = read_file_meta(content, size)
            source = open_source(content, start, size, syntax)
            for each in walk(source, syntax):
                if each.tag in PIXELS:
                    return _Look(syntax, start, each, values)
                if each.tag in _LAID_OUT:
                    values[each.tag] = source.read(each.at, min(each.length, _LONGEST_VALUE))
        except CannotUnderstand as error:
            raise InputRefused(str(error)) from None
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
        at, size = _in_bytes(pixels, index)
        yield from _read(pixels.path, at, size)
    elif pixels.length <= _SMALL:
        yield from decoding.sent([as_stored(pixels, index)])
    else:
        yield from decoding.sent(decoding.pieces(as_stored, pixels, index))


def as_stored(pixels: Pixels, index: int) -> bytes:
    """Frame ``index`` (from 0) as its file has it, without the item headers. Raises InputRefused."""
    with pixels.path.open("rb") as file:
        if not pixels.is_encapsulated:
            return _native(pixels, file.fileno(), index)
        file.seek(pixels.at)
        try:
            return get_frame(file, index, number_of_frames=pixels.frames)
        except (ValueError, EOFError, IndexError) as error:
            raise InputRefused(
                f"frame {index + 1} cannot be found among the fragments ({type(error).__name__})"
            ) from None


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
    if pixels.frame_bits > 8 * decoding.LARGEST_ANSWER:
        raise InputRefused(f"a frame of {pixels.rows} x {pixels.columns} is more than is decoded here")
    if pixels.is_encapsulated:
        codestreams.check(as_stored(pixels, index), pixels.rows, pixels.columns, pixels.samples)
    elif (index + 1) * pixels.frame_bits > 8 * pixels.length:
        raise InputRefused(f"the pixels end before frame {index + 1} does")


def _in_bytes(pixels: Pixels, index: int) -> tuple[int, int]:
    """Offset in the file and number of the bytes that a native frame lies in. Raises InputRefused."""
    begin, end = index * pixels.frame_bits // 8, -(-(index + 1) * pixels.frame_bits // 8)
    if end > pixels.length:
        raise InputRefused(f"the pixels end before frame {index + 1} does")
    return pixels.at + begin, end - begin


def _native(pixels: Pixels, fd: int, index: int) -> bytes:
    """A frame starts at any bit when its bits fill no whole byte; alone, it starts at the first one."""
    at, size = _in_bytes(pixels, index)
    found = os.pread(fd, size, at)
    if pixels.frame_bits % 8 == 0:
        return found
    first = index * pixels.frame_bits % 8
    bits = np.unpackbits(np.frombuffer(found, np.uint8), bitorder="little")  # PS3.5 8.1.1: the first pixel is bit 0
    return np.packbits(bits[first : first + pixels.frame_bits], bitorder="little").tobytes()


def whole(pixels: Pixels) -> Iterator[bytes]:
    """Native pixels as they lie in the file, in pieces."""
    yield from _read(pixels.path, pixels.at, pixels.length)


def _read(path: Path, at: int, left: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(at)
        while left and (piece := file.read(min(left, _BLOCK))):
            left -= len(piece)
            yield piece
