"""Rendering of frames as JPEG or PNG through their window (PS3.18 8.3.5)."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_color_lut

from dicomnode.errors import InputRefused
from dicomnode.reading import frames, lookup, padding
from dicomnode.transcoding import pixels

__all__ = ["BadQuery", "RenderOptions", "choose_window", "render_frame"]

_WINDOW = re.compile(r"(-?[\d.]+(?:e-?\d+)?),(-?[\d.]+(?:e-?\d+)?)(?:,([a-z-]+))?", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,4}")
_FUNCTIONS = frozenset({"linear", "linear-exact", "sigmoid"})
_MOST_PIXELS_PER_SIDE = 4096
_LOWEST, _HIGHEST = 0.5, 99.5
"""Percentiles that are shown as black and white where no window is given."""

Grey = NDArray[np.float64]


class BadQuery(ValueError):
    """Raised for an invalid query parameter."""


@dataclass(frozen=True)
class RenderOptions:
    """Options of a rendering.

    ``window``: centre, width, function; ``size``: columns and rows to fit into; ``quality``: of JPEG, 1 to 100;
    ``shift`` of the window in its widths and ``stretch``, a factor of its width: one change for images of any unit.
    """

    media_type: str = "image/jpeg"
    window: tuple[float, float, str] | None = None
    size: tuple[int, int] | None = None
    quality: int = 90
    shift: float = 0.0
    stretch: float = 1.0

    @classmethod
    def from_query(cls, query: Mapping[str, str], media_type: str) -> RenderOptions:
        """Parse the options from the query of a URL. Raises BadQuery."""
        window = size = None
        if "window" in query:
            window = _parse_window(query["window"])
        if "viewport" in query:
            size = _parse_viewport(query["viewport"])
        quality = query.get("quality", "90")
        if not _NUMBER.fullmatch(quality) or not 1 <= int(quality) <= 100:
            raise BadQuery("quality is a number from 1 to 100")
        return cls(media_type, window, size, int(quality))


def render_frame(path: Path, index: int, options: RenderOptions) -> bytes:
    """Render frame ``index`` (from 0) of a file as an encoded picture. Raises InputRefused for a missing frame."""
    from PIL import Image

    place = pixels.read_layout(path)
    if place is None or not 0 <= index < place.frames:
        raise InputRefused("the instance has no such frame")
    frame = _read_frames(path)[index]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.fromarray(_to_bytes(frame, pixels.decode_array(place, index), options))
    if options.size is not None:
        scale = min(options.size[0] / image.width, options.size[1] / image.height)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    file = io.BytesIO()
    if options.media_type == "image/png":
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=options.quality)
    return file.getvalue()


@lru_cache(maxsize=2)
def _read_frames(path: Path) -> list[frames.Frame]:
    """Return the frames of a spooled file, which never changes; the next slices of the same series need them, too."""
    return frames.frames_of(frames.read_header(path))


def _to_bytes(frame: frames.Frame, values: NDArray[Any], options: RenderOptions) -> NDArray[np.uint8]:
    """Convert stored values to (row, column) or (row, column, RGB), 0 to 255."""
    photometric = str(frame.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR":
        values = apply_color_lut(values, frame.header)
        values = (values >> 8).astype(np.uint8) if values.dtype.itemsize > 1 else values
    if values.ndim == 3:
        return values.astype(np.uint8)
    place = frame.item("PixelValueTransformationSequence") or frame.header
    grey = lookup.apply_rescale(values, place, frames.cite(frame.header))
    padded = padding.find(frame.header, values)
    centre, width, function = options.window or _header_window(frame) or choose_window(grey[~padded])
    changed = (centre + options.shift * width, options.stretch * width, function)
    windowed = _apply_window(grey, changed)
    windowed = 255 - windowed if photometric == "MONOCHROME1" else windowed
    return np.where(padded, np.uint8(0), windowed)


def _apply_window(grey: Grey, window: tuple[float, float, str]) -> NDArray[np.uint8]:
    """Apply a window (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    centre, width, function = window
    if function == "sigmoid":
        fraction = 1 / (1 + np.exp(np.clip(-4 * (grey - centre) / width, -60, 60)))
    elif function == "linear-exact" or width <= 1:
        fraction = (grey - centre) / max(width, 1e-12) + 0.5
    else:
        fraction = (grey - (centre - 0.5)) / (width - 1) + 0.5
    return np.rint(255 * np.clip(np.nan_to_num(fraction), 0, 1)).astype(np.uint8)


def _header_window(frame: frames.Frame) -> tuple[float, float, str] | None:
    """Return the first window of the header, or None."""
    item = frame.item("FrameVOILUTSequence") or frame.header
    try:
        centre, width = (_first_number(item.get(name)) for name in ("WindowCenter", "WindowWidth"))
    except (TypeError, ValueError):
        return None
    if centre is None or width is None or width <= 0:
        return None
    function = str(item.get("VOILUTFunction") or "LINEAR").lower().replace("_", "-")
    return centre, width, function if function in _FUNCTIONS else "linear"


def _first_number(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value if isinstance(value, str | float | int) else value[0])


def choose_window(grey: Grey) -> tuple[float, float, str]:
    """Return a window that shows values without one: nearly all of them, from black to white."""
    finite = grey[np.isfinite(grey)]
    low, high = np.percentile(finite, [_LOWEST, _HIGHEST]) if finite.size else (0.0, 1.0)
    if high <= low and finite.size:  # a mask: nearly all of it is background
        low, high = float(finite.min()), float(finite.max())
    if high <= low:  # a constant frame: an empty mask is black, a full one white
        low, high = min(low, 0.0), max(high, 0.0, low + 1e-9)
    return (low + high) / 2, max(high - low, 1e-12), "linear-exact"


def _parse_window(text: str) -> tuple[float, float, str]:
    """Parse centre, width and function (PS3.18 8.3.5.1.2). Raises BadQuery."""
    parts = _WINDOW.fullmatch(text)
    try:
        centre, width = (float(part) for part in parts.groups()[:2]) if parts else (0.0, 0.0)
    except ValueError:
        centre = width = 0.0
    function = (parts.group(3) or "linear").lower() if parts else ""
    if not (width > 0 and math.isfinite(centre) and math.isfinite(width)) or function not in _FUNCTIONS:
        raise BadQuery("window is a centre, a width above zero and linear, linear-exact or sigmoid, with commas")
    return centre, width, function


def _parse_viewport(text: str) -> tuple[int, int]:
    numbers = text.split(",")[:2]
    if len(numbers) != 2 or not all(
        _NUMBER.fullmatch(part) and 1 <= int(part) <= _MOST_PIXELS_PER_SIDE for part in numbers
    ):
        raise BadQuery(f"viewport is a width and a height from 1 to {_MOST_PIXELS_PER_SIDE}")
    return int(numbers[0]), int(numbers[1])
