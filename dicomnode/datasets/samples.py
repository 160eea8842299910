"""Whether the pixels of two files have the same samples: decoders read what strangers sent, so this is for a child.

Compared are whole cells. Codecs that know samples alone drop what lies beside them, so there the bits of the cell that
belong to no sample have to say nothing: zeros, or the sign.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import iter_pixels

from dicomnode.datasets import codestreams
from dicomnode.errors import InputRefused

__all__ = ["alike", "check_size"]

_MOST_DECODED = 512 << 20
_SHORT = 1 << 16
_SIZES = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames")
_BITS = ("BitsAllocated", "BitsStored", "HighBit")

Cells = NDArray[Any]


def check_size(path: str) -> None:
    """Raise InputRefused where the decoded pixels are too many to compare."""
    rows, columns, samples, bits, frames = _numbers(path, _SIZES)
    if rows * columns * samples * (bits + 7) // 8 * frames > _MOST_DECODED:
        raise InputRefused("the pixels are too many to compare")


def alike(first: str, second: str) -> bytes:
    """Return a byte where all samples are equal, none where one differs; for two headers that say the same of bits.

    Raises InputRefused, and whatever damaged pixels make a decoder raise.
    """
    bits = _numbers(first, _BITS)
    pairs = zip_longest(_frames(first), _frames(second))
    return b"1" * all(a is not None and b is not None and _are_equal(a, b, *bits) for a, b in pairs)


def _numbers(path: str, keywords: tuple[str, ...]) -> list[int]:
    ds = dcmread(path, stop_before_pixels=True, specific_tags=list(keywords))
    return [int(ds.get(keyword) or 1) for keyword in keywords]


def _frames(path: str) -> Iterator[Cells]:
    """One after the other, colours as they are stored."""
    ds = dcmread(path, defer_size=_SHORT)
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        _check_frames(ds)
    else:
        _check_length(path, ds)
    return iter_pixels(
        path, raw=True, correct_unused_bits=False, apply_jls_sign_correction=False, apply_j2k_sign_correction=False
    )


def _check_frames(ds: Dataset) -> None:
    """Raise InputRefused for frames of another size than their header's: decoders make room for what they say."""
    frames = generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames") or 1))
    for frame in frames:
        codestreams.check(frame, int(ds.Rows), int(ds.Columns), int(ds.get("SamplesPerPixel") or 1))


def _check_length(path: str, ds: Dataset) -> None:
    """Raise InputRefused for more native pixels than the frames have: nothing would compare what is left over."""
    rows, columns, samples, bits, frames = _numbers(path, _SIZES)
    if ds.get("PhotometricInterpretation") == "YBR_FULL_422":
        samples = 2  # PS3.3 C.7.6.3.1.2: two pixels have one pair of chrominances
    expected = -(-rows * columns * samples * bits * frames // 8)
    pixels = ds.get_item("PixelData")
    if isinstance(pixels, RawDataElement) and pixels.length > expected + expected % 2:
        raise InputRefused("there are more pixels than are announced")


def _are_equal(a: Cells, b: Cells, allocated: int, stored: int, high: int) -> bool:
    if np.array_equal(a, b):
        return True
    if allocated % 8 or not 1 < stored == high + 1 < allocated:
        return False
    one, other = (_samples(each, allocated, stored) for each in (a, b))
    return one is not None and other is not None and np.array_equal(one, other)


def _samples(cells: Cells, allocated: int, stored: int) -> Cells | None:
    """The samples, with their sign; None where their cells hold something else as well."""
    wide = cells.astype(f"{cells.dtype.kind}{allocated // 8}")
    unused = allocated - stored
    found: Cells = (wide << unused) >> unused
    without = wide.view(f"u{allocated // 8}") >> stored == 0
    return found if bool(((found == wide) | without).all()) else None
