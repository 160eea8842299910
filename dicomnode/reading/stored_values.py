"""Stored pixel values of one instance in any transfer syntax: the bits that Bits Stored and High Bit delimit.

Bits beside Bits Stored are no part of a value (PS3.5 8.1.1): native and RLE pixels are shifted down from High Bit, and
what else lies in their cells, an overlay for instance, is dropped. The other codecs code samples, not cells, so that
High Bit has no meaning there that two readers share: only Bits Stored - 1 is taken.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import pixel_array
from pydicom.tag import BaseTag
from pydicom.uid import RLELossless

from dicomnode.datasets import codestreams, inflating
from dicomnode.datasets.lossy import find_transfer_syntax
from dicomnode.errors import InputRefused
from dicomnode.reading import padding
from dicomnode.reading.frames import check_single, check_syntax, cite, count_frames

__all__ = ["decode_cells", "decode_frame", "decode_frames"]

Pixels = NDArray[Any]

_FAILURES = (AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OSError, RuntimeError, ValueError)
_OVERLAYS = range(0x6000, 0x6020, 2)
_OVERLAY_BITS, _OVERLAY_POSITION = 0x0100, 0x0102
_NEEDED = (
    *map(tag_for_keyword, (
        "InstanceNumber", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns",
        "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    )),
    *((group << 16) | element for group in _OVERLAYS for element in (_OVERLAY_BITS, _OVERLAY_POSITION)),
)  # fmt: skip
"""Elements of the header that say where in its cell a pixel lies."""


def decode_frames(source: Path | Dataset, header: Dataset) -> Pixels:
    """Return stored pixel values (frame, row, column) of a file or an open instance, whose header is at hand.

    Raises InputRefused where bytes, frames or a decoder are missing, or where they say two things.
    """
    shape = (count_frames(header), int(header.Rows), int(header.Columns))
    found = _values(_decoded(source, header, None), header)
    if found.size != math.prod(shape):
        raise InputRefused(f"{cite(header)}: {found.size} pixels decoded, {shape} announced")
    return found.reshape(shape)


def decode_frame(path: Path, index: int) -> Pixels:
    """Return the stored values of frame ``index`` (from 0): (row, column), or (row, column, sample) of RGB.

    Raises InputRefused.
    """
    header = _pixel_header(path)
    return _values(_decoded(path, header, index), header)


def decode_cells(path: Path, index: int) -> Pixels:
    """Return frame ``index`` (from 0) with all bits of its cells, as a native transfer syntax has them.

    Raises InputRefused.
    """
    return _decoded(path, _pixel_header(path), index)


def _pixel_header(path: Path) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_syntax(path)
        header = dcmread(path, stop_before_pixels=True, specific_tags=[BaseTag(tag) for tag in _NEEDED if tag])
    check_single(header)
    return header


def _decoded(source: Path | Dataset, header: Dataset, index: int | None) -> Pixels:
    syntax = find_transfer_syntax(header)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values
        try:
            if isinstance(source, Path) and (index is None or inflating.is_deflated(syntax)):
                source = dcmread(source)
            if isinstance(source, Dataset):
                _check_sizes(source) if syntax.is_encapsulated else _check_length(source)
            return pixel_array(source, index=index, correct_unused_bits=False)
        except _FAILURES as error:
            reason = (
                str(error).splitlines()[0] if isinstance(error, ValueError | RuntimeError) else type(error).__name__
            )
            raise InputRefused(
                f"{cite(header)}: the pixels are damaged, incomplete or not to be decoded "
                f"({syntax.name or 'unknown transfer syntax'}): {reason}"
            ) from None


def _check_sizes(ds: Dataset) -> None:
    """Compressed frames must be of the size that the header announces: a decoder makes room for what they say."""
    for frame in generate_frames(ds.PixelData, number_of_frames=count_frames(ds)):
        codestreams.check_size(frame, int(ds.Rows), int(ds.Columns), int(ds.get("SamplesPerPixel") or 1))


def _check_length(ds: Dataset) -> None:
    """Native pixels that are longer than announced have other rows, columns, bits or frames than stated."""
    bits = {"FloatPixelData": 32, "DoubleFloatPixelData": 64, "PixelData": int(ds.get("BitsAllocated") or 0)}
    found = next((each for each in bits if each in ds), None)
    if sum(each in ds for each in bits) > 1:
        raise ValueError("more than one of Pixel Data, Float Pixel Data and Double Float Pixel Data")
    if found is None or ds.get("PhotometricInterpretation") == "YBR_FULL_422":
        return
    pixels = count_frames(ds) * int(ds.Rows) * int(ds.Columns) * int(ds.get("SamplesPerPixel") or 1)
    expected = -(-pixels * bits[found] // 8)
    if len(ds[found].value) > expected + expected % 2:
        raise ValueError(f"{len(ds[found].value)} bytes of pixels, where {expected} are announced")


def _values(cells: Pixels, header: Dataset) -> Pixels:
    """Return the values that the cells hold."""
    syntax = find_transfer_syntax(header)
    allocated = int(header.get("BitsAllocated") or 0)
    if cells.dtype.kind == "f" or allocated == 1:
        return cells
    bits, high = _bits(header, allocated)
    if syntax.is_encapsulated and syntax != RLELossless:
        return _sample(cells, header, bits, high)
    if header.get("SamplesPerPixel", 1) == 1:
        _check_overlays(header, bits, high)
        padding.check_cells(header, cells, bits)
    _check_shift(cells, header, high + 1 - bits)
    width = cells.dtype.itemsize * 8
    return cells if bits == width else (cells << (width - 1 - high)) >> (width - bits)


def _check_shift(cells: Pixels, header: Dataset, shift: int) -> None:
    """Bits below the values hold nothing but a stated overlay; else they may be the values, and High Bit wrong."""
    if shift and (cells & ((1 << shift) - 1)).any() and not _has_overlay(header):
        raise InputRefused(
            f"{cite(header)}: High Bit (0028,0102) is {header.HighBit} with Bits Stored (0028,0101) "
            f"{header.BitsStored}, but the bits below hold something: it is not known whether they are part of the "
            "values"
        )


def _has_overlay(header: Dataset) -> bool:
    """Return whether an overlay lies in the cells of the pixels (retired)."""
    return any(
        int(element.value or 1) > 1
        for group in _OVERLAYS
        if (element := header.get((group, _OVERLAY_BITS))) is not None
    )


def _bits(header: Dataset, allocated: int) -> tuple[int, int]:
    """Return Bits Stored and High Bit."""
    bits, high = header.get("BitsStored"), header.get("HighBit")
    high = bits - 1 if high is None and bits == allocated else high
    if bits is None or high is None or not 1 <= bits <= high + 1 <= allocated:
        raise InputRefused(
            f"{cite(header)}: Bits Allocated (0028,0100) {allocated}, Bits Stored (0028,0101) {bits} and High Bit "
            f"(0028,0102) {high} do not tell where in its cell a pixel lies"
        )
    return int(bits), int(high)


def _sample(cells: Pixels, header: Dataset, bits: int, high: int) -> Pixels:
    """Return a compressed sample, whose sign some codecs leave to Bits Stored."""
    if high != bits - 1:
        raise InputRefused(
            f"{cite(header)}: High Bit (0028,0102) is {high} with Bits Stored (0028,0101) {bits} in compressed pixels: "
            "it is not known whether the samples were shifted before they were compressed"
        )
    unused = cells.dtype.itemsize * 8 - bits
    found: Pixels = (cells << unused) >> unused
    unsigned = cells.view(f"u{cells.dtype.itemsize}")
    if unused and not ((found == cells) | (unsigned >> bits == 0)).all():
        raise InputRefused(f"{cite(header)}: the compressed pixels have values of more than {bits} Bits Stored")
    return found


def _check_overlays(header: Dataset, bits: int, high: int) -> None:
    """An overlay in the cells of the pixels (retired) must lie beside their values."""
    for group in _OVERLAYS:
        allocated, position = header.get((group, _OVERLAY_BITS)), header.get((group, _OVERLAY_POSITION))
        if allocated is None or position is None or (allocated.value or 1) == 1:
            continue
        if high - bits < (position.value or 0) <= high:
            raise InputRefused(
                f"{cite(header)}: Overlay Bit Position ({group:04X},0102) {position.value} lies among the bits of the "
                "pixel values"
            )
