"""A structured report as a page (PS3.18 8.7.4): one HTML document without scripts or further requests."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from markupsafe import Markup
from starlette.responses import HTMLResponse, Response

from dicomnode import decoding
from dicomnode.results import label
from dicomnode.web import sr_tree
from dicomnode.web.pages import render
from dicomnode.web.sr_tree import Item

__all__ = ["MEDIA_TYPE", "report_response"]

MEDIA_TYPE = "text/html"
_GROUP, _TRACKING = "DCM 125007", "DCM 112039"
_STYLE = """
body { font: 15px/1.45 sans-serif; margin: 0 auto; max-width: 70em; padding: 1em; color: #16202a; background: #fff; }
.marks { background: #8a1c1c; color: #fff; font-weight: bold; padding: .5em .8em; letter-spacing: .04em; }
h1 { font-size: 1.5em; margin: .6em 0 .3em; } h2, h3, h4, h5 { font-size: 1.1em; margin: 1em 0 .3em; }
section section { border-left: 3px solid #d5dde5; padding-left: 1em; margin: .6em 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1em 1em; margin: .3em 0; }
dt { color: #51606e; } dd { margin: 0; overflow-wrap: anywhere; } .value { white-space: pre-line; }
table { border-collapse: collapse; margin: .5em 0; } td, th { border: 1px solid #d5dde5; padding: .25em .6em; }
th { background: #eef2f6; text-align: left; } td { vertical-align: top; overflow-wrap: anywhere; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
ul { margin: .1em 0; padding-left: 1.2em; } .code { color: #66727e; font-size: .82em; } .relation { color: #66727e; }
@media print { body { max-width: none; } }
"""
_POLICY = "; ".join((
    "default-src 'none'", f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'",
    "base-uri 'none'", "form-action 'none'", "frame-ancestors 'self'", "sandbox",
))  # fmt: skip


def report_response(path: Path) -> Response:
    """Return the report of a file as an HTML page. Raises InputRefused, NodeBusy."""
    return HTMLResponse(decoding.run(_render_page, path), headers={"Content-Security-Policy": _POLICY})


def _render_page(path: Path) -> bytes:
    report = sr_tree.read_report(path)
    return bytes(
        render(
            "sr.html",
            report=report,
            marks=label.TEXT,
            style=Markup(_STYLE),
            heading=_section_heading,
            runs=_group_items,
        ).body
    )


def _section_heading(item: Item) -> str:
    """Return the heading of a content item: for a measurement group, the object that it tracks."""
    tracked = [child.value for child in item.children if child.name.code == _TRACKING and child.value]
    return tracked[0] if item.name.code == _GROUP and tracked else item.name.meaning or item.kind


def _group_items(items: Sequence[Item]) -> list[tuple[str, list[Item]]]:
    """Group neighbouring items by display: numbers as a table, containers as sections, the others as a list."""
    kinds = {"NUM": "numbers", "CONTAINER": "sections"}
    return [(kind, list(run)) for kind, run in groupby(items, lambda item: kinds.get(item.kind, "facts"))]
