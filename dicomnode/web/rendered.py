"""A frame as a picture: JPEG or PNG, through its window (PS3.18 8.3.5)."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_color_lut

from dicomnode.errors import InputRefused
from dicomnode.reading import frames, lookup, padding
from dicomnode.transcoding import pixels

__all__ = ["Asked", "BadQuery", "picture"]

_WINDOW = re.compile(r"(-?[\d.]+(?:e-?\d+)?),(-?[\d.]+(?:e-?\d+)?)(?:,([a-z-]+))?", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,4}")
_FUNCTIONS = frozenset({"linear", "linear-exact", "sigmoid"})
_LARGEST = 4096
_LOWEST, _HIGHEST = 0.5, 99.5
"""Percentiles that are black and white where nothing states a window."""

Grey = NDArray[np.float64]


class BadQuery(ValueError):
    """A query parameter that cannot be followed."""


@dataclass(frozen=True)
class Asked:
    """``window``: centre, width, function; ``size``: columns and rows to fit into; ``quality`` of JPEG, 1 to 100."""

    media_type: str = "image/jpeg"
    window: tuple[float, float, str] | None = None
    size: tuple[int, int] | None = None
    quality: int = 90

    @classmethod
    def of(cls, query: Mapping[str, str], media_type: str) -> Asked:
        """What a URL's query asks for. Raises BadQuery."""
        window = size = None
        if "window" in query:
            window = _window(query["window"])
        if "viewport" in query:
            size = _size(query["viewport"])
        quality = query.get("quality", "90")
        if not _NUMBER.fullmatch(quality) or not 1 <= int(quality) <= 100:
            raise BadQuery("quality is a number from 1 to 100")
        return cls(media_type, window, size, int(quality))


def picture(path: Path, index: int, asked: Asked) -> bytes:
    """Frame ``index`` (from 0) of a file as an encoded picture. Raises InputRefused when it has no such frame."""
    from PIL import Image

    place = pixels.read_layout(path)
    if place is None or not 0 <= index < place.frames:
        raise InputRefused("there is no such frame to draw")
    ds = frames.header(path)
    frame = frames.frames_of(ds)[index]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = Image.fromarray(_bytes(frame, pixels.decode_array(place, index), asked))
    if asked.size is not None:
        scale = min(asked.size[0] / drawn.width, asked.size[1] / drawn.height)
        drawn = drawn.resize((max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale))))
    file = io.BytesIO()
    if asked.media_type == "image/png":
        drawn.save(file, "PNG")
    else:
        drawn.save(file, "JPEG", quality=asked.quality)
    return file.getvalue()


def _bytes(frame: frames.Frame, found: NDArray[Any], asked: Asked) -> NDArray[np.uint8]:
    """(row, column) or (row, column, RGB), 0 to 255."""
    photometric = str(frame.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR":
        found = apply_color_lut(found, frame.header)
        found = (found >> 8).astype(np.uint8) if found.dtype.itemsize > 1 else found
    if found.ndim == 3:
        return found.astype(np.uint8)
    place = frame.item("PixelValueTransformationSequence") or frame.header
    grey = lookup.rescaled(found, place, frames.name(frame.header))
    padded = padding.find(frame.header, found)
    shown = _windowed(grey, asked.window or _stated(frame) or _range(grey[~padded]))
    shown = 255 - shown if photometric == "MONOCHROME1" else shown
    return np.where(padded, np.uint8(0), shown)


def _windowed(grey: Grey, window: tuple[float, float, str]) -> NDArray[np.uint8]:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    centre, width, function = window
    if function == "sigmoid":
        part = 1 / (1 + np.exp(np.clip(-4 * (grey - centre) / width, -60, 60)))
    elif function == "linear-exact" or width <= 1:
        part = (grey - centre) / max(width, 1e-12) + 0.5
    else:
        part = (grey - (centre - 0.5)) / (width - 1) + 0.5
    return np.rint(255 * np.clip(np.nan_to_num(part), 0, 1)).astype(np.uint8)


def _stated(frame: frames.Frame) -> tuple[float, float, str] | None:
    """The first window in the header."""
    item = frame.item("FrameVOILUTSequence") or frame.header
    try:
        centre, width = (_first(item.get(name)) for name in ("WindowCenter", "WindowWidth"))
    except (TypeError, ValueError):
        return None
    if centre is None or width is None or width <= 0:
        return None
    function = str(item.get("VOILUTFunction") or "LINEAR").lower().replace("_", "-")
    return centre, width, function if function in _FUNCTIONS else "linear"


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value if isinstance(value, str | float | int) else value[0])


def _range(grey: Grey) -> tuple[float, float, str]:
    finite = grey[np.isfinite(grey)]
    low, high = np.percentile(finite, [_LOWEST, _HIGHEST]) if finite.size else (0.0, 1.0)
    if high <= low and finite.size:  # a mask: nearly all of it is background
        low, high = float(finite.min()), float(finite.max())
    if high <= low:  # all the same: an empty mask is black, a full one white
        low, high = min(low, 0.0), max(high, 0.0, low + 1e-9)
    return (low + high) / 2, max(high - low, 1e-12), "linear-exact"


def _window(text: str) -> tuple[float, float, str]:
    """PS3.18 8.3.5.1.2: centre, width, function."""
    parts = _WINDOW.fullmatch(text)
    try:
        centre, width = (float(part) for part in parts.groups()[:2]) if parts else (0.0, 0.0)
    except ValueError:
        centre = width = 0.0
    function = (parts.group(3) or "linear").lower() if parts else ""
    if not (width > 0 and math.isfinite(centre) and math.isfinite(width)) or function not in _FUNCTIONS:
        raise BadQuery("window is a centre, a width above zero and linear, linear-exact or sigmoid, with commas")
    return centre, width, function


def _size(text: str) -> tuple[int, int]:
    numbers = text.split(",")[:2]
    if len(numbers) != 2 or not all(_NUMBER.fullmatch(part) and 1 <= int(part) <= _LARGEST for part in numbers):
        raise BadQuery(f"viewport is a width and a height from 1 to {_LARGEST}")
    return int(numbers[0]), int(numbers[1])
