"""Where things stand on the page of a report: A4 upright, drawn with matplotlib as PDF and as pixels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomnode.report.sheet import Number, Panel, Row, Sheet
from dicomnode.report.text import LEADING, MM_OF_POINT, broken, shortened
from dicomnode.results import label
from dicomnode.results.page import Page
from pipelines.quality import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["encoded", "page"]

WIDTH_MM, HEIGHT_MM = 210.0, 297.0
DOTS_PER_INCH = 150
_SIDE_MM = 12.0
_BODY_MM = WIDTH_MM - 2 * _SIDE_MM
_GAP_MM = 3.0
_BAR_MM = 8.5
"""Under a picture: the colour bar with its numbers and unit."""
_AROUND_MM = 20.5
"""What a line of pictures takes beside their height: titles and bars."""
_LEAST_PICTURES_MM = 115.0
_IN_A_KEY = 6
_WARNING = "#b00020"
_BOXES = {Outcome.ACCEPT: ("#e7f4e8", "#2e7d32"), Outcome.HOLD: ("#fff3d6", "#b26a00"),
          Outcome.REFUSE: ("#fde4e4", _WARNING)}  # fmt: skip
_SIDES = (((0.02, 0.5), "left", "center"), ((0.98, 0.5), "right", "center"),
          ((0.5, 0.98), "center", "top"), ((0.5, 0.02), "center", "bottom"))  # fmt: skip
_FAINT, _INK = "#666666", "#1a1a1a"


def page(sheet: Sheet, now: datetime) -> Page:
    """``now`` is when the file says it was made: the same sheet makes the same bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with rc_context({"font.family": "DejaVu Sans", "pdf.fonttype": 42}):
        figure = _figure(sheet)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
        content = io.BytesIO()
        title = f"{label.TEXT}. {sheet.title}"
        told = {"Title": title, "Creator": "dicomnode", "CreationDate": now}
        figure.savefig(content, format="pdf", metadata=told)
    return Page(pixels, content.getvalue())


def encoded(drawn: Page, kind: str) -> bytes:
    """The page as a file, "pdf" or "png"."""
    if kind == "pdf":
        return drawn.pdf
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    told, content = PngInfo(), io.BytesIO()
    told.add_text("Title", label.TEXT)
    Image.fromarray(drawn.pixels).save(content, format="png", pnginfo=told, dpi=(DOTS_PER_INCH, DOTS_PER_INCH))
    return content.getvalue()


def _figure(sheet: Sheet) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_MM / 25.4, HEIGHT_MM / 25.4), dpi=DOTS_PER_INCH, facecolor="white")
    _banner(figure, 0.0)
    _banner(figure, HEIGHT_MM - 8.0)
    y = _text(figure, sheet.title, _SIDE_MM, 13.0, size=16, weight="bold")
    y = _text(figure, sheet.subtitle, _SIDE_MM, y + 0.5, size=8.5, colour=_FAINT)
    y = _verdict(figure, sheet, y + 2.0)
    bottom = _footer(figure, sheet)
    y = _pictures(figure, sheet, y + 3.0, bottom)
    _words(figure, sheet, y + 1.0, bottom)
    return figure


def _banner(figure: Figure, top_mm: float) -> None:
    _rectangle(figure, 0, top_mm, WIDTH_MM, 8.0, _WARNING)
    figure.text(0.5, 1 - (top_mm + 4.2) / HEIGHT_MM, label.TEXT, color="white", size=11, weight="bold",
                ha="center", va="center")  # fmt: skip


def _rectangle(figure: Figure, x: float, y: float, width: float, height: float, face: str, edge: str = "none") -> None:
    from matplotlib.patches import Rectangle

    corner = x / WIDTH_MM, 1 - (y + height) / HEIGHT_MM
    figure.add_artist(
        Rectangle(corner, width / WIDTH_MM, height / HEIGHT_MM, facecolor=face, edgecolor=edge, linewidth=0.8,
                  transform=figure.transFigure)
    )  # fmt: skip


def _text(
    figure: Figure,
    words: str,
    x: float,
    y: float,
    *,
    size: float,
    width: float = _BODY_MM,
    colour: str = _INK,
    weight: str = "normal",
    most: int = 1000,
) -> float:
    """Words from (x, y) down, broken to the width, at most so many lines; where the next thing may begin, in mm."""
    step = size * MM_OF_POINT * LEADING
    lines = broken(words, width, size, weight == "bold") if words else []
    if len(lines) > most:
        lines = [*lines[: most - 1], shortened(" ".join(lines[most - 1 :]), width, size)]
    for number, line in enumerate(lines):
        figure.text(x / WIDTH_MM, 1 - (y + number * step) / HEIGHT_MM, line, size=size, color=colour, weight=weight,
                    va="top", parse_math=False)  # fmt: skip
    return y + len(lines) * step


def _verdict(figure: Figure, sheet: Sheet, y: float) -> float:
    face, edge = _BOXES[sheet.outcome]
    lines = min(len(broken(sheet.verdict, _BODY_MM - 6, 9, False)), 4)
    height = lines * 9 * MM_OF_POINT * LEADING + 3.2
    _rectangle(figure, _SIDE_MM, y, _BODY_MM, height, face, edge)
    _text(figure, sheet.verdict, _SIDE_MM + 3, y + 1.8, size=9, width=_BODY_MM - 6, colour=edge, most=4)
    return y + height


def _footer(figure: Figure, sheet: Sheet) -> float:
    """What made it, and the sentence on its use, above the lower banner; where it begins."""
    step = 6.3 * MM_OF_POINT * LEADING
    made = [line for words in sheet.provenance for line in broken(words, _BODY_MM, 6.3, False)[:4]]
    fine = broken(sheet.fine_print, _BODY_MM, 7.5, True)
    top = HEIGHT_MM - 10.0 - len(made) * step - len(fine) * 7.5 * MM_OF_POINT * LEADING - 1.5
    y = top
    for line in made:
        y = _text(figure, line, _SIDE_MM, y, size=6.3, colour=_FAINT, width=2 * _BODY_MM)
    _text(figure, sheet.fine_print, _SIDE_MM, y + 1.0, size=7.5, weight="bold", colour=_WARNING)
    _rule(figure, top - 1.5)
    return top - 2.5


def _rule(figure: Figure, y: float) -> None:
    _rectangle(figure, _SIDE_MM, y, _BODY_MM, 0.15, _FAINT)


def _pictures(figure: Figure, sheet: Sheet, y: float, bottom: float) -> float:
    """Rows of pictures as large as the words leave room for."""
    if not sheet.rows:
        return _text(figure, "No picture: no image or segmentation was made.", _SIDE_MM, y, size=9, colour=_FAINT)
    lines = _lines(sheet.rows)
    words = min(_table_height(len(sheet.numbers)) + _notes_height(sheet), bottom - y - _LEAST_PICTURES_MM)
    tall = [_cell(line.panels) * _ratio(line.panels[0]) for line in lines]
    most = _level(tall, bottom - y - words - len(lines) * _AROUND_MM)
    for line, height in zip(lines, tall, strict=True):
        y = _line(figure, line, y, min(height, most))
    return y


def _lines(rows: Sequence[Row]) -> list[Row]:
    """One row alone has room for two lines of larger pictures."""
    if len(rows) > 1 or len(rows[0].panels) < 4:
        return list(rows)
    return [Row(rows[0].title, rows[0].panels[:2]), Row("", rows[0].panels[2:])]


def _cell(panels: Sequence[Panel]) -> float:
    """Width of a picture's place, in mm."""
    count = len(panels) if len(panels) > 2 else 2.2
    return (_BODY_MM - (count - 1) * _GAP_MM) / count


def _ratio(panel: Panel) -> float:
    width_mm, height_mm = panel.plane.extent_mm
    return height_mm / width_mm


def _level(heights: Sequence[float], room: float) -> float:
    """The height at which the tallest are cut so that all fit."""
    left, rest = room, sorted(heights)
    for number, height in enumerate(rest):
        share = left / (len(rest) - number)
        if height > share:
            return max(share, 20.0)
        left -= height
    return max(heights)


def _line(figure: Figure, row: Row, y: float, height: float) -> float:
    if row.title:
        y = _text(figure, row.title, _SIDE_MM, y, size=9.5, weight="bold", most=1)
    cell = _cell(row.panels)
    left = _SIDE_MM + (_BODY_MM - len(row.panels) * cell - (len(row.panels) - 1) * _GAP_MM) / 2
    for number, panel in enumerate(row.panels):
        width = height / _ratio(panel)
        x = left + number * (cell + _GAP_MM)
        _text(figure, panel.title, x + (cell - width) / 2 if width > 30 else x, y + 0.8, size=7.8, width=cell, most=1)
        _picture(figure, panel, x + (cell - width) / 2, y + 5.0, width, height)
        bar = max(min(width, 60.0), 30.0)
        under = _key if 0 < len(_visible(panel)) <= _IN_A_KEY else _bar
        under(figure, panel, x + (cell - bar) / 2, y + 5.0 + height + 1.2, bar)
    return y + 5.0 + height + _BAR_MM + 2.0


def _axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    return figure.add_axes((x / WIDTH_MM, 1 - (y + height) / HEIGHT_MM, width / WIDTH_MM, height / HEIGHT_MM))


def _picture(figure: Figure, panel: Panel, x: float, y: float, width: float, height: float) -> None:
    from matplotlib import patheffects

    axes = _axes(figure, x, y, width, height)
    axes.set_axis_off()
    axes.imshow(panel.pixels, cmap=panel.colours, vmin=panel.low, vmax=panel.high, aspect="auto",
                interpolation="bilinear")  # fmt: skip
    if panel.labels is not None:
        axes.imshow(_tinted(panel), aspect="auto", interpolation="nearest")
    dark = panel.colours not in ("gray_r", "RdBu_r")
    edge = [patheffects.withStroke(linewidth=1.5, foreground="black" if dark else "white")]
    for words, (at, across, down) in zip(panel.plane.letters, _SIDES, strict=True):
        axes.text(*at, words, transform=axes.transAxes, ha=across, va=down, size=7.5, weight="bold",
                  color="white" if dark else "black", path_effects=edge)  # fmt: skip
    _rectangle(figure, x, y, width, height, "none", "#999999")


def _tinted(panel: Panel) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Segments filled lightly, with their edges in full colour."""
    labels = panel.labels if panel.labels is not None else np.zeros_like(panel.pixels, np.uint8)
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        differs = np.diff(labels, axis=axis) != 0
        where: list[Any] = [slice(None), slice(None)]
        where[axis] = slice(0, -1)
        edge[tuple(where)] |= differs
        where[axis] = slice(1, None)
        edge[tuple(where)] |= differs
    found = np.zeros((*labels.shape, 4), np.float32)
    for number, tint in panel.tints.items():
        inside = labels == number
        found[inside, :3] = np.array(tint, np.float32) / 255
        found[inside, 3] = 0.35
        found[inside & edge, 3] = 0.9
    return found


def _bar(figure: Figure, panel: Panel, x: float, y: float, width: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = _axes(figure, x, y, width, 1.8)
    bar = figure.colorbar(ScalarMappable(Normalize(panel.low, panel.high), panel.colours), cax=axes,
                          orientation="horizontal")  # fmt: skip
    middle = (panel.low + panel.high) / 2
    ticks = [panel.low, middle, panel.high]
    bar.set_ticks(ticks, labels=[_tick(tick, panel.high - panel.low) for tick in ticks])
    bar.ax.tick_params(labelsize=6, length=1.5, pad=1)
    first, *_, last = bar.ax.get_xticklabels()
    first.set_horizontalalignment("left")  # numbers of neighbours do not meet
    last.set_horizontalalignment("right")
    bar.outline.set_linewidth(0.4)
    figure.text((x + width / 2) / WIDTH_MM, 1 - (y + 5.0) / HEIGHT_MM, panel.unit, size=6.3, ha="center", va="top",
                color=_FAINT, parse_math=False)  # fmt: skip


def _visible(panel: Panel) -> list[int]:
    """Segments to be seen in the picture."""
    there = set() if panel.labels is None else set(np.unique(panel.labels).tolist())
    return [number for number in panel.tints if number in there]


def _key(figure: Figure, panel: Panel, x: float, y: float, width: float) -> None:
    """Colours of the segments with their names, in place of the bar that the result has anyway."""
    seen = _visible(panel)
    columns = 1 if len(seen) <= 3 else 2
    for at, number in enumerate(seen):
        left, top = x + (at % columns) * width / columns, y + (at // columns) * 2.7
        tint = "#{:02x}{:02x}{:02x}".format(*panel.tints[number])
        _rectangle(figure, left, top, 1.8, 1.8, tint)
        words = shortened(panel.names.get(number, ""), width / columns - 3.0, 6.0)
        _text(figure, words, left + 2.4, top - 0.3, size=6.0, width=2 * width)


def _tick(value: float, span: float) -> str:
    if abs(value) < 1e-3 * span:
        return "0"
    return f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}" if abs(value) < 1e5 else f"{value:.1e}"


def _words(figure: Figure, sheet: Sheet, y: float, bottom: float) -> None:
    """Numbers in two columns, then the notes; what does not fit is counted and stands in the structured report."""
    notes = min(_notes_height(sheet), max(0.4 * (bottom - y), bottom - y - _table_height(len(sheet.numbers))))
    y = _table(figure, sheet.numbers, y, bottom - notes)
    _notes(figure, sheet, y + 1.5, bottom)


_ROW_MM = 3.25
_SMALL = 6.8


def _table_height(count: int) -> float:
    return 6.5 + -(-count // 2) * _ROW_MM if count else 0.0


def _table(figure: Figure, numbers: Sequence[Number], y: float, bottom: float) -> float:
    if not numbers:
        return y
    y = _text(figure, "Numbers", _SIDE_MM, y, size=9.5, weight="bold") + 0.5
    lines = max(int((bottom - y) / _ROW_MM), 2)
    lines -= len(numbers) > 2 * lines
    column = (_BODY_MM - 6.0) / 2
    shown = list(numbers[: 2 * lines])
    half = -(-len(shown) // 2)
    for place, part in enumerate((shown[:half], shown[half:])):
        _column(figure, part, _SIDE_MM + place * (column + 6.0), y, column)
    y += half * _ROW_MM
    if len(numbers) > len(shown):
        words = f"{len(numbers) - len(shown)} more lines stand in the structured report."
        y = _text(figure, words, _SIDE_MM, y, size=_SMALL, colour=_FAINT)
    return y


def _column(figure: Figure, numbers: Sequence[Number], x: float, y: float, width: float) -> None:
    for at, number in enumerate(numbers):
        top = y + at * _ROW_MM
        if at % 2 == 0:
            _rectangle(figure, x, top - 0.25, width, _ROW_MM, "#f3f3f3")
        group = f"{number.group}: " if number.group else ""
        room = 0.22 * width if number.more else 0.5 * width
        for words, start, space, look in (
            (group + number.name, 0.8 / width, 0.47 * width, {}),
            (number.value, 0.49, room, {"weight": "bold"}),
            (number.more, 0.72, 0.28 * width, {"colour": _FAINT}),
        ):
            fits = shortened(words, space, _SMALL, bold="weight" in look)
            _text(figure, fits, x + start * width, top, size=_SMALL, width=2 * width, **look)  # type: ignore[arg-type]


def _note_lines(sheet: Sheet) -> list[str]:
    return [line for name, words in sheet.notes for line in broken(f"{name}: {words}", _BODY_MM, _SMALL, False)]


def _notes_height(sheet: Sheet) -> float:
    lines = len(_note_lines(sheet))
    return 7.0 + lines * _SMALL * MM_OF_POINT * LEADING if lines else 0.0


def _notes(figure: Figure, sheet: Sheet, y: float, bottom: float) -> None:
    lines = _note_lines(sheet)
    if not lines:
        return
    y = _text(figure, "Notes", _SIDE_MM, y, size=9.5, weight="bold") + 0.3
    step = _SMALL * MM_OF_POINT * LEADING
    fit = max(int((bottom - y) / step), 1)
    if len(lines) > fit:
        lines = [*lines[: fit - 1], "… the rest stands in the structured report."]
    for line in lines:
        y = _text(figure, line, _SIDE_MM, y, size=_SMALL, width=2 * _BODY_MM)
