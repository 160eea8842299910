"""The report page as one HTML file that needs no other: pictures inside, no script, no address of a network."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomnode.report.content import Panel, PictureRow, ReportPage
from dicomnode.report.layout import colour_labels, visible_segments
from dicomnode.results import label

__all__ = ["render_html"]

_WIDTH = 512
"""Smallest width of a picture in pixels."""


def render_html(page: ReportPage) -> str:
    """Return the page as HTML. Every picture of a result has the mark in its pixels."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dicomnode.report", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    rows = [_describe_row(row) for row in page.rows]
    return environment.get_template("page.html").render(page=page, rows=rows, mark=label.TEXT)


def _describe_row(row: PictureRow) -> dict[str, Any]:
    return {"title": row.title, "pictures": [_describe_panel(panel) for panel in row.panels]}


def _describe_panel(panel: Panel) -> dict[str, Any]:
    is_input = panel.title.startswith("Input")
    legend = [
        (panel.segment_names.get(number, str(number)), "#{:02x}{:02x}{:02x}".format(*panel.segment_colours[number]))
        for number in visible_segments(panel)
    ]
    values = f"{panel.low:.3g} to {panel.high:.3g} {panel.unit}"
    return {
        "title": panel.title,
        "range": values,
        "legend": legend,
        "sides": panel.plane.letters,
        "is_marked": not is_input,
        "png": _encode_panel(panel, marked=not is_input),
    }


def _encode_panel(panel: Panel, *, marked: bool) -> str:
    """Return the picture as PNG in base 64, its pixels square in millimetres, with the mark below where ``marked``."""
    from matplotlib import colormaps
    from PIL import Image

    scaled = np.clip((panel.pixels - panel.low) / max(panel.high - panel.low, 1e-12), 0, 1)
    colours = colormaps[panel.colour_map](scaled)[..., :3]
    if panel.labels is not None:
        over = colour_labels(panel)
        colours = colours * (1 - over[..., 3:]) + over[..., :3] * over[..., 3:]
    width_mm, height_mm = panel.plane.extent_mm
    width = max(_WIDTH, panel.pixels.shape[1])
    size = width, max(round(width * height_mm / width_mm), 1)
    picture = Image.fromarray(np.round(colours * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    content = io.BytesIO()
    Image.fromarray(_add_mark(pixels) if marked else pixels).save(content, format="png", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def _add_mark(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    band = np.round(label.band(pixels.shape[1])[:, : pixels.shape[1]] * 255).astype(np.uint8)
    return np.concatenate([pixels, np.repeat(band[..., None], 3, axis=2)])
