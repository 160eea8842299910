"""Stored values to quantities: rescale and Modality LUT (PS3.3 C.11.1), real world value mappings (C.7.6.16.2.11).

Each function takes ``where``, the name of the instance for a message, and raises InputRefused for what does not give
every pixel exactly one value. ``padded`` are pixels that need none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicomnode.errors import InputRefused

__all__ = [
    "apply_mappings",
    "apply_rescale",
    "check_colours",
    "finite",
    "mappings_with_unit",
    "name_rescale_type",
    "split_rescale_type",
    "unit_of",
]

_NO_UNIT = frozenset({"1", "US", "no units"})
_TERMS = {"1": "US", "[hnsf'U]": "HU"}
"""Rescale Type by unit, where the standard has a term."""
_DEPTHS = range(8, 17)
_FRACTION = re.compile(r"10\*-(\d{1,2})(?:\.(.+))?")
"""UCUM of a decimal fraction of a unit, or of the number 1."""

Values = NDArray[np.float64]
Padded = NDArray[np.bool_] | None


def apply_rescale(pixels: NDArray[Any], place: Dataset, where: str) -> Values:
    """Return stored values through the Modality LUT or the rescale of ``place``; as they are where it has neither."""
    tables = place.get("ModalityLUTSequence") or []
    line = [place.get(keyword) for keyword in ("RescaleSlope", "RescaleIntercept")]
    if len(tables) > 1 or (tables and any(each is not None for each in line)):
        raise InputRefused(f"{where}: more than one Modality LUT or rescale says what a stored value means")
    if tables:
        return _looked_up(pixels, tables[0], where)
    if line == [None, None]:
        return np.asarray(pixels, np.float64)
    slope, intercept = (finite(each) for each in line)
    if slope is None or intercept is None or slope == 0:
        raise InputRefused(
            f"{where}: Rescale Slope (0028,1053) and Intercept (0028,1052) are not two numbers, the slope not zero"
        )
    return np.asarray(pixels, np.float64) * slope + intercept


def name_rescale_type(unit: str, factor: int) -> str:
    """Return the Rescale Type of values ``factor`` times those in ``unit`` (UCUM); ``factor``: a power of ten.

    The terms of PS3.3 C.11.1.1.2 where there is one (HU, US), else the UCUM code of the fraction.
    """
    if factor == 1:
        return _TERMS.get(unit, unit)
    fraction = f"10*-{round(math.log10(factor))}"
    return fraction if unit == "1" else f"{fraction}.{unit}"


def split_rescale_type(text: str) -> tuple[float, str]:
    """Return how much of a unit one modality value is, and the unit (UCUM): 1 and the text itself, as a rule."""
    found = _FRACTION.fullmatch(text)
    return (10.0 ** -int(found[1]), found[2] or "1") if found else (1.0, "[hnsf'U]" if text == "HU" else text)


def check_colours(header: Dataset, pixels: NDArray[Any], where: str) -> None:
    """Refuse stored values that a supplemental palette makes colours over the image (C.7.6.19); a palette from the
    lowest value on is a colour scale of the whole image, and its values are what they would be without."""
    descriptor = np.atleast_1d(header.get("RedPaletteColorLookupTableDescriptor") or [])
    if len(descriptor) != 3 or descriptor[1] <= 0:
        return
    if (pixels >= descriptor[1]).any():
        raise InputRefused(
            f"{where}: some pixels are colours over the image, no values of it, by Red Palette Color Lookup Table "
            "Descriptor (0028,1101)"
        )


def _looked_up(pixels: NDArray[Any], item: Dataset, where: str) -> Values:
    """Return the entries of a table; the first entry below the first value mapped, the last above (C.11.1.1.1)."""
    try:
        entries, first, depth = (int(each) % (1 << 16) for each in item.LUTDescriptor)
    except (AttributeError, TypeError, ValueError):
        raise InputRefused(f"{where}: LUT Descriptor (0028,3002) is not three numbers") from None
    if pixels.dtype.kind == "i" and first >= 1 << 15:
        first -= 1 << 16
    table = _table(item, entries or 1 << 16, depth)
    if table is None:
        raise InputRefused(
            f"{where}: LUT Data (0028,3006) does not have the {entries or 1 << 16} entries of {depth} bits that LUT "
            "Descriptor (0028,3002) says"
        )
    return table[np.clip(pixels.astype(np.int64) - first, 0, len(table) - 1)].astype(np.float64)


def _table(item: Dataset, entries: int, depth: int) -> NDArray[Any] | None:
    """Return the entries, of 16 bits or two of 8 bits a word; None where their number is another."""
    data = item.get("LUTData")
    if depth not in _DEPTHS or data is None:
        return None
    if isinstance(data, bytes):
        order = "<" if item.original_encoding[1] is not False else ">"
        words = np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2")
    else:
        words = np.atleast_1d(np.asarray(data, np.int64)).astype(np.uint16)
    if depth == 8 and len(words) == -(-entries // 2) and entries > 1:
        return words.astype("<u2").view(np.uint8)[:entries]
    return words if len(words) == entries else None


def mappings_with_unit(mappings: Sequence[Dataset], where: str) -> list[Dataset]:
    """Return the real world value mappings that give a quantity in a UCUM unit. Raises InputRefused for two units."""
    found = [each for each in mappings if unit_of(each) not in _NO_UNIT | {""}]
    units = sorted({unit_of(each) for each in found})
    if len(units) > 1:
        raise InputRefused(
            f"{where}: real world value mappings (0040,9096) to several units ({', '.join(units)}); it "
            "is not known which one is meant"
        )
    return found


def unit_of(mapping: Dataset) -> str:
    """Return the UCUM code of a mapping's unit; empty where it has none."""
    codes = mapping.get("MeasurementUnitsCodeSequence") or []
    return str(codes[0].get("CodeValue", "")) if codes and codes[0].get("CodingSchemeDesignator") == "UCUM" else ""


def apply_mappings(mappings: Sequence[Dataset], pixels: NDArray[Any], padded: Padded, where: str) -> Values:
    """Return stored values through mappings of one unit, each within its range of stored values."""
    found, done = np.zeros(pixels.shape), np.zeros(pixels.shape, bool)
    for mapping in mappings:
        first, last = _span(mapping, pixels, where)
        inside = (pixels >= first) & (pixels <= last)
        if (done & inside).any():
            raise InputRefused(f"{where}: two real world value mappings (0040,9096) for the same stored values")
        found[inside] = _transformed(mapping, pixels[inside], first, last, where)
        done |= inside
    left = int((~done).sum() if padded is None else (~done & ~padded).sum())
    if left:
        raise InputRefused(
            f"{where}: {left} pixels lie outside of the stored values that the real world value mapping (0040,9096) is "
            "for"
        )
    return found


def _span(mapping: Dataset, pixels: NDArray[Any], where: str) -> tuple[float, float]:
    """Return the first and last stored value mapped; integers by the pixels' sign, be they written as US or SS."""
    ends = [
        mapping.get(f"DoubleFloatRealWorldValue{end}ValueMapped", mapping.get(f"RealWorldValue{end}ValueMapped"))
        for end in ("First", "Last")
    ]
    if ends == [None, None] and "RealWorldValueLUTData" not in mapping:
        return -math.inf, math.inf
    first, last = (finite(each) for each in ends)
    if first is None or last is None:
        raise InputRefused(f"{where}: a real world value mapping (0040,9096) does not say for which stored values")
    if pixels.dtype.kind == "i" and pixels.dtype.itemsize <= 2:
        first, last = ((each + (1 << 15)) % (1 << 16) - (1 << 15) for each in (first, last))
    return first, last


def _transformed(mapping: Dataset, pixels: NDArray[Any], first: float, last: float, where: str) -> Values:
    table = mapping.get("RealWorldValueLUTData")
    line = [finite(mapping.get(f"RealWorldValue{term}")) for term in ("Slope", "Intercept")]
    if (table is None) == (None in line):
        raise InputRefused(f"{where}: a real world value mapping (0040,9096) has not exactly one of line and table")
    if table is None:
        slope, intercept = (each or 0.0 for each in line)
        return np.asarray(pixels, np.float64) * slope + intercept
    if len(np.atleast_1d(table)) != last - first + 1:
        raise InputRefused(
            f"{where}: Real World Value LUT Data (0040,9212) does not have an entry for each stored value"
        )
    return np.asarray(table, np.float64)[(pixels - int(first)).astype(np.int64)]


def finite(value: Any) -> float | None:
    """Return a value of a header as a number; None where it is no finite one."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None
