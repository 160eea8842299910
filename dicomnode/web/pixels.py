"""Frames of a stored file, each read alone: as they are stored, or decoded to Explicit VR Little Endian."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydicom import dcmread
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from dicomnode.datasets.encoded import OpenFile, Window, inflated_pieces, open_source, read_file_meta, walk
from dicomnode.errors import InputRefused

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
    deflated_at: int | None = None
    """Where in the file the deflated data set begins in which ``at`` counts, where it is deflated (PS3.5 A.5)."""

    @property
    def is_encapsulated(self) -> bool:
        """Whether each frame is compressed, in fragments of its own (PS3.5 A.4)."""
        return UID(self.transfer_syntax_uid).is_encapsulated

    @property
    def is_plain(self) -> bool:
        """Whether the bytes of the data set are what Explicit VR Little Endian would have."""
        return not self.is_encapsulated and self.transfer_syntax_uid != ExplicitVRBigEndian


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
    deflated = syntax == DeflatedExplicitVRLittleEndian
    bits = {0x7FE00008: 32, 0x7FE00009: 64}.get(found.tag, bits)
    return Pixels(
        path,
        syntax,
        found.tag,
        found.vr,
        found.at if deflated else start + found.at,
        found.length,
        max(frames, 1),
        rows * columns * samples * bits,
        start if deflated else None,
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
    if not pixels.is_encapsulated:
        return _native(pixels, index)
    with pixels.path.open("rb") as file:
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
    found = array(pixels, index)
    return np.ascontiguousarray(found, found.dtype.newbyteorder("<")).tobytes()


def array(pixels: Pixels, index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Frame ``index`` (from 0) decoded: (row, column), or (row, column, sample) in RGB. Raises InputRefused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values
        try:
            # pydicom looks for a frame at its place in the file, which a deflated data set does not have
            source = pixels.path if pixels.deflated_at is None else dcmread(pixels.path)
            return pixel_array(source, index=index)
        except (AttributeError, EOFError, IndexError, KeyError, NotImplementedError, RuntimeError, ValueError) as error:
            raise InputRefused(f"frame {index + 1} cannot be decoded ({type(error).__name__})") from None


def _native(pixels: Pixels, index: int) -> bytes:
    """A frame starts at any bit when its bits fill no whole byte; alone, it starts at the first one."""
    first, last = index * pixels.frame_bits, (index + 1) * pixels.frame_bits
    begin, end = first // 8, -(-last // 8)
    if end > pixels.length:
        raise InputRefused(f"the pixels end before frame {index + 1} does")
    found = b"".join(whole(pixels, begin, end))
    if pixels.frame_bits % 8 == 0:
        return found
    bits = np.unpackbits(np.frombuffer(found, np.uint8), bitorder="little")  # PS3.5 8.1.1: the first pixel is bit 0
    return np.packbits(bits[first % 8 : first % 8 + pixels.frame_bits], bitorder="little").tobytes()


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
    for piece in inflated_pieces(Window(OpenFile(file.fileno()), deflated_at, size)):
        if wanted := piece[max(first - at, 0) : max(last - at, 0)]:
            yield wanted
        at += len(piece)
        if at >= last:
            return
