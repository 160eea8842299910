"""Letters of the patient's sides at the edges of a picture, as on the report page, and the mark of a synthetic one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dicomnode.report.planes import name_side

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["NO_SIDES", "Sides", "draw_mark", "draw_sides", "name_sides"]

Sides = tuple[str, str, str, str]
"""The patient's side at the left, right, top and bottom; "" for none."""
NO_SIDES: Sides = ("", "", "", "")
_SMALLEST_FONT = 11
_FONT_OF_WIDTH = 0.05
_FONT_OF_MARK = 0.035
_MARGIN = 4
_MARK, _SHORT_MARK, _MARK_COLOUR = "SYNTHETIC", "SYN", (160, 0, 25)
_LEAST_WIDTH_OF_MARK = 200
"""Narrower pictures have the short mark, which leaves the letter at the top free."""
_PLACES = ((0.0, 0.5, "lm"), (1.0, 0.5, "rm"), (0.5, 0.0, "ma"), (0.5, 1.0, "md"))
"""Place of each letter as parts of width and height, and the point of the text that lies there (PIL's anchor)."""


def name_sides(along_rows: NDArray[np.float64], down_columns: NDArray[np.float64]) -> Sides:
    """Name the sides of a picture by the directions of its rows and columns in the patient (LPS, PS3.3 C.7.6.2.1.1)."""
    across, down = (each / max(float(np.linalg.norm(each)), 1e-12) for each in (along_rows, down_columns))
    return name_side(-across), name_side(across), name_side(-down), name_side(down)


def draw_sides(picture: Image, sides: Sides) -> Image:
    """Return the picture with its letters, white with a black edge."""
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(max(_SMALLEST_FONT, round(picture.width * _FONT_OF_WIDTH)))
    lettered = picture.copy()
    draw = ImageDraw.Draw(lettered)
    white, black = ("white", "black") if picture.mode == "RGB" else (255, 0)
    inner = picture.width - 2 * _MARGIN, picture.height - 2 * _MARGIN
    for text, (across, down, anchor) in zip(sides, _PLACES, strict=True):
        place = _MARGIN + across * inner[0], _MARGIN + down * inner[1]
        draw.text(place, text, white, font, anchor, stroke_width=2, stroke_fill=black)
    return lettered


def draw_mark(picture: Image) -> Image:
    """Return the picture, in colours, with the word SYNTHETIC in its upper left corner: it may be shown by itself."""
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(max(_SMALLEST_FONT, round(picture.width * _FONT_OF_MARK)))
    marked = picture.convert("RGB")
    draw = ImageDraw.Draw(marked)
    mark = _MARK if picture.width >= _LEAST_WIDTH_OF_MARK else _SHORT_MARK
    _, _, right, bottom = draw.textbbox((_MARGIN, _MARGIN), mark, font)
    draw.rectangle((0, 0, right + _MARGIN, bottom + _MARGIN), _MARK_COLOUR)
    draw.text((_MARGIN, _MARGIN), mark, "white", font)
    return marked
