"""The tables and notes of the report page: a row for each region or lesion, the notes, then the technical numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dicomnode.report.content import NumberLine, ReportPage
from dicomnode.report.drawing import BODY_MM, FAINT, INK, SIDE_MM, draw_rectangle, draw_text
from dicomnode.report.region_table import RegionRow, RegionTable
from dicomnode.report.text import LEADING, MM_OF_POINT, measure_width_mm, shorten, wrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_tables", "measure_height_mm"]

_ROW_MM = 3.25
_SMALL = 6.8
_STRIPE = "#f3f3f3"
_BETWEEN_MM = 6.0
_PAD_MM = 2.0
_TITLE_MM = 6.5
_HEADINGS_MM = 6.0
"""Height of the headings of columns, of two lines."""
_MOST_IN_ONE_BLOCK = 8
"""Rows of a table as wide as the page; longer tables have two blocks side by side."""
_LEAST_NUMBERS_MM = _TITLE_MM + 3 * _ROW_MM
_LARGEST_NAME = 0.4
"""Largest share of a block's width for names, and for places."""


@dataclass(frozen=True)
class _Block:
    """Columns of a table as wide as ``width``: texts' widths in mm, and the indices of the cells that fit."""

    width: float
    name_mm: float
    place_mm: float
    cells: tuple[int, ...]
    cell_mm: float


def measure_height_mm(page: ReportPage) -> float:
    """Return the height of all tables and notes in mm, if nothing is left out."""
    return _regions_height_mm(page.regions) + _notes_height_mm(page) + _numbers_height_mm(len(page.numbers))


def draw_tables(figure: Figure, page: ReportPage, y: float, bottom: float) -> None:
    """Draw the tables and notes between ``y`` and ``bottom`` (mm); the structured report has what finds no room."""
    room, regions_mm, notes_mm = bottom - y, _regions_height_mm(page.regions), _notes_height_mm(page)
    numbers_mm = min(_numbers_height_mm(len(page.numbers)), max(_LEAST_NUMBERS_MM, room - regions_mm - notes_mm))
    notes_mm = min(notes_mm, max(0.25 * room, room - regions_mm - numbers_mm))
    y = _draw_regions(figure, page.regions, y, bottom - notes_mm - numbers_mm)
    y = _draw_notes(figure, page, y, bottom - numbers_mm)
    _draw_numbers(figure, page.numbers, y, bottom)


def _regions_height_mm(table: RegionTable) -> float:
    if not table.rows:
        return 0.0
    lines = -(-len(table.rows) // _count_blocks(table))
    return _TITLE_MM + _HEADINGS_MM + (lines + 1) * _ROW_MM


def _count_blocks(table: RegionTable) -> int:
    return 2 if len(table.rows) > _MOST_IN_ONE_BLOCK else 1


def _draw_regions(figure: Figure, table: RegionTable, y: float, bottom: float) -> float:
    if not table.rows:
        return y
    title = "Lesions" if "lesion" in table.rows[0].name.lower() else "Regions"
    y = draw_text(figure, title, SIDE_MM, y, size=9.5, weight="bold") + 0.5
    count = _count_blocks(table)
    block = _fit_columns(table, (BODY_MM - (count - 1) * _BETWEEN_MM) / count)
    most = max(int((bottom - y - _HEADINGS_MM) / _ROW_MM) - 1, 1)
    lines = min(-(-len(table.rows) // count), most)
    for at in range(count):
        x = SIDE_MM + at * (block.width + _BETWEEN_MM)
        if rows := table.rows[at * lines : (at + 1) * lines]:
            _draw_block(figure, table, rows, block, x, y)
    y += _HEADINGS_MM + lines * _ROW_MM
    missing = _describe_missing(table, block, is_cut=count * lines < len(table.rows))
    return draw_text(figure, missing, SIDE_MM, y, size=6.0, colour=FAINT, most=1) + 1.0


def _fit_columns(table: RegionTable, width: float) -> _Block:
    """Choose as many columns of cells as fit beside names and places, in their order."""
    name_mm = min(_widest([row.name for row in table.rows]), _LARGEST_NAME * width)
    place_mm = min(_widest([row.place for row in table.rows]), _LARGEST_NAME * width) if table.has_places else 0.0
    left = width - name_mm - place_mm
    widths = [
        max(_widest([row.cells[at] for row in table.rows]), _widest([heading]) / 2 + _PAD_MM)
        for at, heading in enumerate(table.columns)
    ]
    most = sum(1 for at in range(len(widths)) if max(widths[: at + 1]) * (at + 1) <= left)
    most = max(most, 1)
    return _Block(width, name_mm, place_mm, tuple(range(min(most, len(widths)))), left / most)


def _widest(texts: Sequence[str]) -> float:
    return max(measure_width_mm(text, _SMALL, False) for text in texts) + _PAD_MM


def _draw_block(
    figure: Figure, table: RegionTable, rows: Sequence[RegionRow], block: _Block, x: float, y: float
) -> None:
    for position, at in enumerate(block.cells):
        right = x + block.name_mm + block.place_mm + (position + 1) * block.cell_mm
        for line, text in enumerate(wrap(table.columns[at], block.cell_mm - 3.0, 6.0, True)[:2]):
            _draw_right(figure, text, right, y + 2.6 * line, 6.0, FAINT, bold=True)
    for number, row in enumerate(rows):
        top = y + _HEADINGS_MM + number * _ROW_MM
        if number % 2 == 0:
            draw_rectangle(figure, x, top - 0.25, block.width, _ROW_MM, _STRIPE)
        name = row.name[:1].upper() + row.name[1:]
        draw_text(figure, shorten(name, block.name_mm - 1.0, _SMALL), x + 0.8, top, size=_SMALL)
        place = shorten(row.place, block.place_mm - 1.0, _SMALL) if block.place_mm else ""
        draw_text(figure, place, x + block.name_mm, top, size=_SMALL, colour=FAINT)
        for position, at in enumerate(block.cells):
            right = x + block.name_mm + block.place_mm + (position + 1) * block.cell_mm
            _draw_right(figure, shorten(row.cells[at], block.cell_mm - 1.0, _SMALL), right, top, _SMALL)


def _draw_right(
    figure: Figure, text: str, right: float, y: float, size: float, colour: str = INK, *, bold: bool = False
) -> None:
    """Draw one line that ends at ``right``."""
    x = right - 0.8 - measure_width_mm(text, size, bold)
    draw_text(figure, text, x, y, size=size, colour=colour, weight="bold" if bold else "normal", width=2 * BODY_MM)


def _describe_missing(table: RegionTable, block: _Block, *, is_cut: bool) -> str:
    left_out = [heading for at, heading in enumerate(table.columns) if at not in block.cells]
    parts = ["further rows"] * is_cut + [", ".join(left_out)] * bool(left_out)
    return f"In the structured report: {'; '.join(parts)}." if parts else ""


def _numbers_height_mm(count: int) -> float:
    return _TITLE_MM + -(-count // 2) * _ROW_MM if count else 0.0


def _draw_numbers(figure: Figure, numbers: Sequence[NumberLine], y: float, bottom: float) -> None:
    """Draw the numbers in two columns."""
    if not numbers:
        return
    y = draw_text(figure, "Technical numbers", SIDE_MM, y, size=9.5, weight="bold") + 0.5
    lines = max(int((bottom - y) / _ROW_MM), 1)
    is_cut = len(numbers) > 2 * lines
    lines = max(lines - is_cut, 1)
    column = (BODY_MM - _BETWEEN_MM) / 2
    visible_lines = list(numbers[: 2 * lines])
    half = -(-len(visible_lines) // 2)
    for place, part in enumerate((visible_lines[:half], visible_lines[half:])):
        _draw_column(figure, part, SIDE_MM + place * (column + _BETWEEN_MM), y, column)
    if is_cut:
        text = "Further numbers stand in the structured report."
        draw_text(figure, text, SIDE_MM, y + half * _ROW_MM, size=6.0, colour=FAINT)


def _draw_column(figure: Figure, numbers: Sequence[NumberLine], x: float, y: float, width: float) -> None:
    for at, number in enumerate(numbers):
        top = y + at * _ROW_MM
        if at % 2 == 0:
            draw_rectangle(figure, x, top - 0.25, width, _ROW_MM, _STRIPE)
        room = 0.22 * width if number.detail else 0.5 * width
        for text, start, space, style in (
            (number.name, 0.8 / width, 0.47 * width, {}),
            (number.value, 0.49, room, {"weight": "bold"}),
            (number.detail, 0.72, 0.28 * width, {"colour": FAINT}),
        ):
            fits = shorten(text, space, _SMALL, bold="weight" in style)
            draw_text(figure, fits, x + start * width, top, size=_SMALL, width=2 * width, **style)  # type: ignore[arg-type]


def _wrap_notes(page: ReportPage) -> list[str]:
    return [line for name, text in page.notes for line in wrap(f"{name}: {text}", BODY_MM, _SMALL, False)]


def _notes_height_mm(page: ReportPage) -> float:
    lines = len(_wrap_notes(page))
    return 7.0 + lines * _SMALL * MM_OF_POINT * LEADING if lines else 0.0


def _draw_notes(figure: Figure, page: ReportPage, y: float, bottom: float) -> float:
    lines = _wrap_notes(page)
    if not lines:
        return y
    y = draw_text(figure, "Notes", SIDE_MM, y, size=9.5, weight="bold") + 0.3
    step = _SMALL * MM_OF_POINT * LEADING
    count = max(int((bottom - y - 1.5) / step), 1)
    if len(lines) > count:
        lines = [*lines[: count - 1], "… the rest stands in the structured report."]
    for line in lines:
        y = draw_text(figure, line, SIDE_MM, y, size=_SMALL, width=2 * BODY_MM)
    return y + 1.5
