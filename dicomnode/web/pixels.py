"""Frames of a stored file, each read alone: as they are stored, or decoded to Explicit VR Little Endian."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from dicomnode.datasets.encoded import OpenFile, open_source, read_file_meta, walk
from dicomnode.errors import InputRefused
from dicomnode.reading import decoding

__all__ = ["PIXELS", "Pixels", "array", "as_stored", "decoded", "is_decodable", "layout", "whole"]

PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
"""Float, Double Float and Pixel Data."""

_BLOCK = 1 << 20
_NUMBERS = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames")


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
    frame_bits: int

    @property
    def is_encapsulated(self) -> bool:
        """Whether each frame is compressed, in fragments of its own (PS3.5 A.4)."""
        return UID(self.transfer_syntax_uid).is_encapsulated

    @property
    def is_plain(self) -> bool:
        """Whether the file's bytes are what Explicit VR Little Endian would have."""
        swapped = self.transfer_syntax_uid in (ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
        return not self.is_encapsulated and not swapped


@lru_cache(maxsize=4096)
def layout(path: Path) -> Pixels | None:
    """Of a file of the spool, which never changes; None when it holds no pixels. Raises InputRefused."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        content = OpenFile(file.fileno())
        syntax, start = read_file_meta(content, size)
        source = open_source(content, start, size, syntax)
        found = next((element for element in walk(source, syntax) if element.tag in PIXELS), None)
    if found is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = dcmread(path, stop_before_pixels=True, specific_tags=list(_NUMBERS))
        try:
            rows, columns, samples, bits, frames = (int(ds.get(name) or 1) for name in _NUMBERS)
        except (TypeError, ValueError):
            raise InputRefused("the instance does not say how its pixels are laid out") from None
    bits = {0x7FE00008: 32, 0x7FE00009: 64}.get(found.tag, bits)
    return Pixels(
        path,
        syntax,
        found.tag,
        found.vr,
        start + found.at,
        found.length,
        max(frames, 1),
        rows * columns * samples * bits,
    )


def is_decodable(transfer_syntax_uid: str) -> bool:
    """Whether pixels of that transfer syntax can be decoded here, or need no decoding."""
    uid = UID(transfer_syntax_uid)
    if not uid.is_transfer_syntax or not uid.is_encapsulated:
        return bool(uid.is_transfer_syntax)
    try:
        return bool(get_decoder(uid).is_available)
    except NotImplementedError:
        return False


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
    found = decoding.cells(pixels.path, index)
    return np.ascontiguousarray(found, found.dtype.newbyteorder("<")).tobytes()


def array(pixels: Pixels, index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Frame ``index`` (from 0) decoded: (row, column), or (row, column, sample) in RGB. Raises InputRefused."""
    if not pixels.is_encapsulated and (index + 1) * pixels.frame_bits > 8 * pixels.length:
        raise InputRefused(f"the pixels end before frame {index + 1} does")
    return decoding.one_frame(pixels.path, index)


def _native(pixels: Pixels, fd: int, index: int) -> bytes:
    """A frame starts at any bit when its bits fill no whole byte; alone, it starts at the first one."""
    first, last = index * pixels.frame_bits, (index + 1) * pixels.frame_bits
    begin, end = first // 8, -(-last // 8)
    if end > pixels.length:
        raise InputRefused(f"the pixels end before frame {index + 1} does")
    found = os.pread(fd, end - begin, pixels.at + begin)
    if pixels.frame_bits % 8 == 0:
        return found
    bits = np.unpackbits(np.frombuffer(found, np.uint8), bitorder="little")  # PS3.5 8.1.1: the first pixel is bit 0
    return np.packbits(bits[first % 8 : first % 8 + pixels.frame_bits], bitorder="little").tobytes()


def whole(pixels: Pixels) -> Iterator[bytes]:
    """Native pixels as they lie in the file, in pieces."""
    with pixels.path.open("rb") as file:
        file.seek(pixels.at)
        left = pixels.length
        while left and (piece := file.read(min(left, _BLOCK))):
            left -= len(piece)
            yield piece
