"""Comparison of the samples of two files, for a child process: decoders read untrusted input.

Whole cells are compared. Some codecs keep the samples only; for them, the bits of a cell outside the sample have to be
zeros or copies of the sign.
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

__all__ = ["check_size", "compare_samples"]

_MOST_DECODED = 512 << 20
_SHORT = 1 << 16
_SIZES = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames")
_BITS = ("BitsAllocated", "BitsStored", "HighBit")

Cells = NDArray[Any]


def check_size(path: str) -> None:
    """Raise InputRefused where the decoded pixels are too many to compare."""
    rows, columns, samples, bits, frames = _read_numbers(path, _SIZES)
    if rows * columns * samples * (bits + 7) // 8 * frames > _MOST_DECODED:
        raise InputRefused("the pixels are too many to compare")


def compare_samples(first: str, second: str) -> bytes:
    """Return one byte where all samples are equal, none where one differs; the headers have to agree in bits.

    Raises InputRefused, and whatever damaged pixels make a decoder raise.
    """
    bits = _read_numbers(first, _BITS)
    pairs = zip_longest(_decode_frames(first), _decode_frames(second))
    return b"1" * all(a is not None and b is not None and _are_equal(a, b, *bits) for a, b in pairs)


def _read_numbers(path: str, keywords: tuple[str, ...]) -> list[int]:
    ds = dcmread(path, stop_before_pixels=True, specific_tags=list(keywords))
    return [int(ds.get(keyword) or 1) for keyword in keywords]


def _decode_frames(path: str) -> Iterator[Cells]:
    """Yield the decoded frames in order, colours as they are stored."""
    ds = dcmread(path, defer_size=_SHORT)
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        _check_frame_sizes(ds)
    else:
        _check_length(path, ds)
    return iter_pixels(
        path, raw=True, correct_unused_bits=False, apply_jls_sign_correction=False, apply_j2k_sign_correction=False
    )


def _check_frame_sizes(ds: Dataset) -> None:
    """Raise InputRefused for frames of another size than the header's: decoders allocate the size in the frame."""
    frames = generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames") or 1))
    for frame in frames:
        codestreams.check_size(frame, int(ds.Rows), int(ds.Columns), int(ds.get("SamplesPerPixel") or 1))


def _check_length(path: str, ds: Dataset) -> None:
    """Raise InputRefused for more native pixels than the frames have: the rest would not be compared."""
    rows, columns, samples, bits, frames = _read_numbers(path, _SIZES)
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
    one, other = (_extract_samples(each, allocated, stored) for each in (a, b))
    return one is not None and other is not None and np.array_equal(one, other)


def _extract_samples(cells: Cells, allocated: int, stored: int) -> Cells | None:
    """Return the samples with their sign; None where a cell has other bits set."""
    wide = cells.astype(f"{cells.dtype.kind}{allocated // 8}")
    unused = allocated - stored
    samples: Cells = (wide << unused) >> unused
    has_no_other_bits = wide.view(f"u{allocated // 8}") >> stored == 0
    return samples if bool(((samples == wide) | has_no_other_bits).all()) else None
