"""Padding, the pixels that fill an image up to a rectangle and measure nothing (PS3.3 C.7.5.1.1.2), and the values
that replace them.

Pixel Padding Value is a stored value, before any rescale. A padded voxel of a volume gets the value of air, -1000 HU in
CT and zero in any other unit, or the measured value next to it: neither range nor percentiles know that it was there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicomnode.errors import InputRefused
from dicomnode.reading.frames import cite

__all__ = ["check_cells", "fill", "find"]

_AIR = {"[hnsf'U]": -1000.0}
_WORD = 1 << 16


def find(header: Dataset, pixels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the mask of the stored values of an instance that are padding. Raises InputRefused."""
    kind = _kind(pixels.dtype)
    value, limit = (header.get(f"{kind}Padding{part}") for part in ("Value", "RangeLimit"))
    if value is None and limit is None:
        return np.zeros(pixels.shape, bool)
    if value is None:
        raise InputRefused(f"{cite(header)}: Pixel Padding Range Limit (0028,0121) without a Pixel Padding Value")
    if kind == "Pixel":
        value, limit = _integer(header, value), None if limit is None else _integer(header, limit)
    ends = [_number(header, each) for each in (value, value if limit is None else limit)]
    if np.isnan(ends[0]):
        return np.asarray(np.isnan(pixels))
    return np.asarray((pixels >= min(ends)) & (pixels <= max(ends)))


def check_cells(header: Dataset, cells: NDArray[Any], bits: int) -> None:
    """Refuse native pixels whose whole cells hold a Pixel Padding Value that is none of Bits Stored: it would be cut
    to a value that others measure. Raises InputRefused."""
    value = header.get("PixelPaddingValue")
    if value is None or header.get("BitsAllocated") != 16 or bits == 16:
        return
    low, high = _range(header, bits)
    value = _integer(header, value)
    if not low <= value <= high and (cells.view(np.uint16) == value % _WORD).any():
        raise InputRefused(
            f"{cite(header)}: pixels hold the Pixel Padding Value (0028,0120) {value}, which {bits} Bits Stored "
            "(0028,0101) do not hold: it is not known whether these pixels are padding or cut values"
        )


def fill(data: NDArray[np.float32], padded: NDArray[np.bool_], unit: str) -> None:
    """Give padded voxels the value of air, within the range of those that were measured. Raises InputRefused."""
    if not padded.any():
        return
    measured = data[~padded]
    if not measured.size:
        raise InputRefused("every pixel of the series is padding (Pixel Padding Value (0028,0120))")
    data[padded] = np.clip(_AIR.get(unit, 0.0), measured.min(), measured.max())


def _kind(dtype: np.dtype[Any]) -> str:
    if dtype.kind != "f":
        return "Pixel"
    return "FloatPixel" if dtype.itemsize == 4 else "DoubleFloatPixel"


def _integer(header: Dataset, value: Any) -> int:
    """Return a padding value by Pixel Representation, whichever of US and SS was written; of 16 bits or Bits Stored."""
    bits = int(header.get("BitsStored") or 16)
    low, high = _range(header, bits)
    raw = int(_number(header, value))
    found = _signed(raw, 16) if low < 0 else raw % _WORD
    if low <= found <= high or not 0 <= raw < 1 << bits:
        return found
    return _signed(raw, bits)


def _signed(value: int, bits: int) -> int:
    """Return the low bits in two's complement."""
    low = value % (1 << bits)
    return low - (1 << bits) if low >= 1 << (bits - 1) else low


def _range(header: Dataset, bits: int) -> tuple[int, int]:
    signed = int(header.get("PixelRepresentation") or 0)
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def _number(header: Dataset, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputRefused(f"{cite(header)}: the Pixel Padding Value (0028,0120) is no single number") from None
