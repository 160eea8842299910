"""Width of text in the page's font, and wrapping and shortening of text to a width."""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = ["LEADING", "MM_OF_POINT", "shorten", "wrap"]

MM_OF_POINT = 25.4 / 72
LEADING = 1.32
"""Distance of lines as a multiple of the font size."""
_MEASURING_SIZE = 100.0


def wrap(text: str, width_mm: float, size: float, bold: bool) -> list[str]:
    """Wrap text into lines no longer than the width, by the font's own metrics; a word too long for a line is cut."""
    lines: list[str] = []
    for part in " ".join(text.split()).split(" "):
        longer = f"{lines[-1]} {part}" if lines else part
        if lines and measure_width_mm(longer, size, bold) <= width_mm:
            lines[-1] = longer
            continue
        while measure_width_mm(part, size, bold) > width_mm:
            fits = next(
                n for n in range(len(part) - 1, 0, -1) if n == 1 or measure_width_mm(part[:n], size, bold) <= width_mm
            )
            lines, part = [*lines, part[:fits]], part[fits:]
        lines.append(part)
    return lines


def shorten(text: str, width_mm: float, size: float, *, bold: bool = False) -> str:
    """Shorten text to the width, with an ellipsis in place of the rest."""
    if measure_width_mm(text, size, bold) <= width_mm:
        return text
    while text and measure_width_mm(f"{text}…", size, bold) > width_mm:
        text = text[:-1]
    return f"{text.rstrip()}…"


@cache
def _font(bold: bool) -> Any:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return get_font(findfont(FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")))


@cache
def measure_width_mm(text: str, size: float, bold: bool) -> float:
    """Measure the width of text, at a large size, where glyphs are not fitted to pixels."""
    font = _font(bold)
    font.set_size(_MEASURING_SIZE, 72)
    font.set_text(text, 0.0)
    return float(font.get_width_height()[0]) / 64 * MM_OF_POINT * size / _MEASURING_SIZE
