"""Text and rectangles on the report page, in mm from its upper left corner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicomnode.report.text import LEADING, MM_OF_POINT, shorten, wrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BODY_MM", "FAINT", "HEIGHT_MM", "INK", "SIDE_MM", "WIDTH_MM", "draw_rectangle", "draw_text"]

WIDTH_MM, HEIGHT_MM = 210.0, 297.0
SIDE_MM = 12.0
BODY_MM = WIDTH_MM - 2 * SIDE_MM
FAINT, INK = "#666666", "#1a1a1a"


def draw_rectangle(
    figure: Figure, x: float, y: float, width: float, height: float, face: str, edge: str = "none"
) -> None:
    """Draw a rectangle with its upper left corner at (x, y), in mm from the upper left corner of the page."""
    from matplotlib.patches import Rectangle

    corner = x / WIDTH_MM, 1 - (y + height) / HEIGHT_MM
    figure.add_artist(
        Rectangle(corner, width / WIDTH_MM, height / HEIGHT_MM, facecolor=face, edgecolor=edge, linewidth=0.8,
                  transform=figure.transFigure)
    )  # fmt: skip


def draw_text(
    figure: Figure,
    text: str,
    x: float,
    y: float,
    *,
    size: float,
    width: float = BODY_MM,
    colour: str = INK,
    weight: str = "normal",
    most: int = 1000,
) -> float:
    """Draw wrapped text from (x, y) downwards, at most ``most`` lines. Returns the y below the text, in mm."""
    step = size * MM_OF_POINT * LEADING
    lines = wrap(text, width, size, weight == "bold") if text else []
    if len(lines) > most:
        lines = [*lines[: most - 1], shorten(" ".join(lines[most - 1 :]), width, size)]
    for number, line in enumerate(lines):
        figure.text(x / WIDTH_MM, 1 - (y + number * step) / HEIGHT_MM, line, size=size, color=colour, weight=weight,
                    va="top", parse_math=False)  # fmt: skip
    return y + len(lines) * step
