"""How wide words are in the page's letters, and where they are broken or cut to fit."""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = ["LEADING", "MM_OF_POINT", "broken", "shortened"]

MM_OF_POINT = 25.4 / 72
LEADING = 1.32
"""From line to line, over the size of the letters."""
_MEASURED = 100.0


def broken(words: str, width_mm: float, size: float, bold: bool) -> list[str]:
    """Words in lines no longer than the width, by the font's own measures; a word too long for a line is cut."""
    lines: list[str] = []
    for word in " ".join(words.split()).split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and width_mm_of(longer, size, bold) <= width_mm:
            lines[-1] = longer
            continue
        while width_mm_of(word, size, bold) > width_mm:
            fits = next(
                n for n in range(len(word) - 1, 0, -1) if n == 1 or width_mm_of(word[:n], size, bold) <= width_mm
            )
            lines, word = [*lines, word[:fits]], word[fits:]
        lines.append(word)
    return lines


def shortened(words: str, width_mm: float, size: float, *, bold: bool = False) -> str:
    """As much of the words as fits, with dots for the rest."""
    if width_mm_of(words, size, bold) <= width_mm:
        return words
    while words and width_mm_of(f"{words}…", size, bold) > width_mm:
        words = words[:-1]
    return f"{words.rstrip()}…"


@cache
def _font(bold: bool) -> Any:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return get_font(findfont(FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")))


@cache
def width_mm_of(words: str, size: float, bold: bool) -> float:
    """Measured large, where letters are not fitted to pixels."""
    font = _font(bold)
    font.set_size(_MEASURED, 72)
    font.set_text(words, 0.0)
    return float(font.get_width_height()[0]) / 64 * MM_OF_POINT * size / _MEASURED
