"""Label in the pixels, which every viewer shows: a band below the image, outside the anatomy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["TEXT", "band", "enlarge"]

TEXT = "SYNTHETIC - RESEARCH USE ONLY"
_PARTS = ("SYNTHETIC -", "RESEARCH", "USE", "ONLY")
_SMALLEST_FONT = 11
_FONT_OF_WIDTH = 0.045
_MARGIN = 3


def enlarge(frames: NDArray[np.uint16], ink: int) -> NDArray[np.uint16]:
    """Return frames (k, j, i) with the band below: new rows after the last one, so the first voxel keeps its place.

    An image narrower than the longest word gets new columns after its last one too. ``ink``: stored value of the text.
    """
    text = band(frames.shape[2])
    slices, rows, columns = frames.shape
    enlarged = np.zeros((slices, rows + text.shape[0], text.shape[1]), np.uint16)
    enlarged[:, :rows, :columns] = frames
    enlarged[:, rows:] = np.round(text * ink).astype(np.uint16)
    return enlarged


@cache
def band(columns: int) -> NDArray[np.float64]:
    """Return the text in [0, 1] on (rows, at least ``columns``), in as many lines as legible letters need."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(_font_file(), max(_SMALLEST_FONT, round(columns * _FONT_OF_WIDTH)))
    lines = _wrap(columns, font.getlength)
    width = max(columns, *(int(np.ceil(font.getlength(line))) + 2 * _MARGIN for line in lines))
    ascent, descent = font.getmetrics()
    picture = Image.new("L", (width, len(lines) * (ascent + descent) + 2 * _MARGIN))
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        left = (width - font.getlength(line)) / 2
        draw.text((round(left), _MARGIN + number * (ascent + descent)), line, fill=255, font=font)
    pixels = np.asarray(picture, np.float64) / 255
    pixels.flags.writeable = False
    return pixels


def _wrap(columns: int, length: Callable[[str], float]) -> list[str]:
    lines: list[str] = []
    for part in _PARTS:
        longer = f"{lines[-1]} {part}" if lines else part
        if lines and length(longer) <= columns - 2 * _MARGIN:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def _font_file() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf")
