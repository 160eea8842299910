"""Layout of the report page: A4 portrait, drawn with matplotlib as PDF and as pixels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomnode.report import tables
from dicomnode.report.content import Panel, PictureRow, ReportPage
from dicomnode.report.drawing import BODY_MM, FAINT, HEIGHT_MM, SIDE_MM, WIDTH_MM, draw_rectangle, draw_text
from dicomnode.report.text import LEADING, MM_OF_POINT, shorten, wrap
from dicomnode.results import label
from dicomnode.results.page import Page
from pipelines.quality import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["build_figure", "colour_labels", "draw_page", "encode_page", "visible_segments"]

DOTS_PER_INCH = 150
_GAP_MM = 3.0
_BAR_MM = 8.5
"""Height of the colour bar under a picture, with its numbers and unit."""
_ROW_EXTRA_MM = 20.5
"""Height of a row of pictures beyond the pictures: titles and colour bars."""
_LEAST_PICTURES_MM = 115.0
_MOST_LEGEND_ENTRIES = 6
_WARNING = "#b00020"
_BOXES = {Outcome.ACCEPT: ("#e7f4e8", "#2e7d32"), Outcome.HOLD: ("#fff3d6", "#b26a00"),
          Outcome.REFUSE: ("#fde4e4", _WARNING)}  # fmt: skip
_SIDE_LETTER_PLACES = (((0.02, 0.5), "left", "center"), ((0.98, 0.5), "right", "center"),
          ((0.5, 0.98), "center", "top"), ((0.5, 0.02), "center", "bottom"))  # fmt: skip


def draw_page(page: ReportPage, now: datetime) -> Page:
    """Draw a page. ``now`` is its creation date in the PDF: the same page gives the same bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with rc_context({"font.family": "DejaVu Sans", "pdf.fonttype": 42}):
        figure = build_figure(page)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
        content = io.BytesIO()
        title = f"{label.TEXT}. {page.title}"
        metadata = {"Title": title, "Creator": "dicomnode", "CreationDate": now}
        figure.savefig(content, format="pdf", metadata=metadata)
    return Page(pixels, content.getvalue())


def encode_page(page: Page, kind: str) -> bytes:
    """Encode a page as a file, "pdf" or "png"."""
    if kind == "pdf":
        return page.pdf
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    metadata, content = PngInfo(), io.BytesIO()
    metadata.add_text("Title", label.TEXT)
    Image.fromarray(page.pixels).save(content, format="png", pnginfo=metadata, dpi=(DOTS_PER_INCH, DOTS_PER_INCH))
    return content.getvalue()


def build_figure(page: ReportPage) -> Figure:
    """Return the figure of a page, A4 portrait, before it is drawn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_MM / 25.4, HEIGHT_MM / 25.4), dpi=DOTS_PER_INCH, facecolor="white")
    _draw_banner(figure, 0.0)
    _draw_banner(figure, HEIGHT_MM - 8.0)
    y = draw_text(figure, page.title, SIDE_MM, 13.0, size=16, weight="bold")
    y = draw_text(figure, page.subtitle, SIDE_MM, y + 0.5, size=8.5, colour=FAINT)
    y = draw_text(figure, page.sentence, SIDE_MM, y + 1.5, size=12, weight="bold", most=3)
    for remark in page.remarks:
        y = draw_text(figure, f"Check: {remark}", SIDE_MM, y + 0.5, size=9, colour=_BOXES[Outcome.HOLD][1], most=3)
    y = _draw_verdict(figure, page, y + 2.0)
    bottom = _draw_footer(figure, page)
    y = _draw_pictures(figure, page, y + 3.0, bottom)
    tables.draw_tables(figure, page, y + 1.0, bottom)
    return figure


def _draw_banner(figure: Figure, top_mm: float) -> None:
    draw_rectangle(figure, 0, top_mm, WIDTH_MM, 8.0, _WARNING)
    figure.text(0.5, 1 - (top_mm + 4.2) / HEIGHT_MM, label.TEXT, color="white", size=11, weight="bold",
                ha="center", va="center")  # fmt: skip


def _draw_verdict(figure: Figure, page: ReportPage, y: float) -> float:
    face, edge = _BOXES[page.outcome]
    lines = min(len(wrap(page.verdict, BODY_MM - 6, 9, False)), 4)
    height = lines * 9 * MM_OF_POINT * LEADING + 3.2
    draw_rectangle(figure, SIDE_MM, y, BODY_MM, height, face, edge)
    draw_text(figure, page.verdict, SIDE_MM + 3, y + 1.8, size=9, width=BODY_MM - 6, colour=edge, most=4)
    return y + height


def _draw_footer(figure: Figure, page: ReportPage) -> float:
    """Draw the provenance and the sentence on the use above the lower banner. Returns the y above them, in mm."""
    step = 6.3 * MM_OF_POINT * LEADING
    provenance = [line for text in page.provenance for line in wrap(text, BODY_MM, 6.3, False)[:4]]
    fine = wrap(page.fine_print, BODY_MM, 7.5, True)
    top = HEIGHT_MM - 10.0 - len(provenance) * step - len(fine) * 7.5 * MM_OF_POINT * LEADING - 1.5
    y = top
    for line in provenance:
        y = draw_text(figure, line, SIDE_MM, y, size=6.3, colour=FAINT, width=2 * BODY_MM)
    draw_text(figure, page.fine_print, SIDE_MM, y + 1.0, size=7.5, weight="bold", colour=_WARNING)
    _draw_rule(figure, top - 1.5)
    return top - 2.5


def _draw_rule(figure: Figure, y: float) -> None:
    draw_rectangle(figure, SIDE_MM, y, BODY_MM, 0.15, FAINT)


def _draw_pictures(figure: Figure, page: ReportPage, y: float, bottom: float) -> float:
    """Draw the rows of pictures as large as the text leaves room for. Returns the y below them, in mm."""
    if not page.rows:
        return draw_text(figure, "No picture: no image or segmentation was made.", SIDE_MM, y, size=9, colour=FAINT)
    lines = _split_rows(page.rows)
    text_mm = min(tables.measure_height_mm(page), bottom - y - _LEAST_PICTURES_MM)
    tall = [_cell_width_mm(line.panels) * _height_per_width(line.panels[0]) for line in lines]
    limit = _common_height_mm(tall, bottom - y - text_mm - len(lines) * _ROW_EXTRA_MM)
    for line, height in zip(lines, tall, strict=True):
        y = _draw_row(figure, line, y, min(height, limit))
    return y


def _split_rows(rows: Sequence[PictureRow]) -> list[PictureRow]:
    """Split a single row of four pictures into two rows of larger ones."""
    if len(rows) > 1 or len(rows[0].panels) < 4:
        return list(rows)
    return [PictureRow(rows[0].title, rows[0].panels[:2]), PictureRow("", rows[0].panels[2:])]


def _cell_width_mm(panels: Sequence[Panel]) -> float:
    """Return the width available to each picture of a row, in mm."""
    count = len(panels) if len(panels) > 2 else 2.2
    return (BODY_MM - (count - 1) * _GAP_MM) / count


def _height_per_width(panel: Panel) -> float:
    width_mm, height_mm = panel.plane.extent_mm
    return height_mm / width_mm


def _common_height_mm(heights: Sequence[float], room: float) -> float:
    """Return the height in mm that limits the tallest pictures so that all rows fit into ``room``."""
    left, rest = room, sorted(heights)
    for number, height in enumerate(rest):
        share = left / (len(rest) - number)
        if height > share:
            return max(share, 20.0)
        left -= height
    return max(heights)


def _draw_row(figure: Figure, row: PictureRow, y: float, height: float) -> float:
    if row.title:
        y = draw_text(figure, row.title, SIDE_MM, y, size=9.5, weight="bold", most=1)
    cell = _cell_width_mm(row.panels)
    left = SIDE_MM + (BODY_MM - len(row.panels) * cell - (len(row.panels) - 1) * _GAP_MM) / 2
    for number, panel in enumerate(row.panels):
        width = height / _height_per_width(panel)
        x = left + number * (cell + _GAP_MM)
        draw_text(
            figure, panel.title, x + (cell - width) / 2 if width > 30 else x, y + 0.8, size=7.8, width=cell, most=1
        )
        _draw_panel(figure, panel, x + (cell - width) / 2, y + 5.0, width, height)
        bar = max(min(width, 60.0), 30.0)
        draw_under = _draw_legend if 0 < len(visible_segments(panel)) <= _MOST_LEGEND_ENTRIES else _draw_colour_bar
        draw_under(figure, panel, x + (cell - bar) / 2, y + 5.0 + height + 1.2, bar)
    return y + 5.0 + height + _BAR_MM + 2.0


def _add_axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    return figure.add_axes((x / WIDTH_MM, 1 - (y + height) / HEIGHT_MM, width / WIDTH_MM, height / HEIGHT_MM))


def _draw_panel(figure: Figure, panel: Panel, x: float, y: float, width: float, height: float) -> None:
    from matplotlib import patheffects

    axes = _add_axes(figure, x, y, width, height)
    axes.set_axis_off()
    axes.imshow(panel.pixels, cmap=panel.colour_map, vmin=panel.low, vmax=panel.high, aspect="auto",
                interpolation="bilinear")  # fmt: skip
    if panel.labels is not None:
        axes.imshow(colour_labels(panel), aspect="auto", interpolation="nearest")
    dark = panel.colour_map not in ("gray_r", "RdBu_r")
    edge = [patheffects.withStroke(linewidth=1.5, foreground="black" if dark else "white")]
    for text, (at, across, down) in zip(panel.plane.letters, _SIDE_LETTER_PLACES, strict=True):
        axes.text(*at, text, transform=axes.transAxes, ha=across, va=down, size=7.5, weight="bold",
                  color="white" if dark else "black", path_effects=edge)  # fmt: skip
    draw_rectangle(figure, x, y, width, height, "none", "#999999")


def colour_labels(panel: Panel) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the labels as RGBA (row, column, 4): segments filled lightly, with their edges in full colour."""
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
    for number, colour in panel.segment_colours.items():
        inside = labels == number
        found[inside, :3] = np.array(colour, np.float32) / 255
        found[inside, 3] = 0.35
        found[inside & edge, 3] = 0.9
    return found


def _draw_colour_bar(figure: Figure, panel: Panel, x: float, y: float, width: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = _add_axes(figure, x, y, width, 1.8)
    bar = figure.colorbar(ScalarMappable(Normalize(panel.low, panel.high), panel.colour_map), cax=axes,
                          orientation="horizontal")  # fmt: skip
    middle = (panel.low + panel.high) / 2
    ticks = [panel.low, middle, panel.high]
    bar.set_ticks(ticks, labels=[_format_tick(tick, panel.high - panel.low) for tick in ticks])
    bar.ax.tick_params(labelsize=6, length=1.5, pad=1)
    first, *_, last = bar.ax.get_xticklabels()
    first.set_horizontalalignment("left")  # numbers of neighbours do not meet
    last.set_horizontalalignment("right")
    bar.outline.set_linewidth(0.4)
    figure.text((x + width / 2) / WIDTH_MM, 1 - (y + 5.0) / HEIGHT_MM, panel.unit, size=6.3, ha="center", va="top",
                color=FAINT, parse_math=False)  # fmt: skip


def visible_segments(panel: Panel) -> list[int]:
    """Return the numbers of the segments that are visible in the picture."""
    present = set() if panel.labels is None else set(np.unique(panel.labels).tolist())
    return [number for number in panel.segment_colours if number in present]


def _draw_legend(figure: Figure, panel: Panel, x: float, y: float, width: float) -> None:
    """Draw the segments' colours with their names, in place of the colour bar, which the result has already."""
    visible = visible_segments(panel)
    columns = 1 if len(visible) <= 3 else 2
    for at, number in enumerate(visible):
        left, top = x + (at % columns) * width / columns, y + (at // columns) * 2.7
        colour = "#{:02x}{:02x}{:02x}".format(*panel.segment_colours[number])
        draw_rectangle(figure, left, top, 1.8, 1.8, colour)
        text = shorten(panel.segment_names.get(number, ""), width / columns - 3.0, 6.0)
        draw_text(figure, text, left + 2.4, top - 0.3, size=6.0, width=2 * width)


def _format_tick(value: float, span: float) -> str:
    if abs(value) < 1e-3 * span:
        return "0"
    return f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}" if abs(value) < 1e5 else f"{value:.1e}"
