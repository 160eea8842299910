"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["format_code", "format_table"]


def format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table. Bars and line ends in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines) + "\n"


def format_code(text: str) -> str:
    """Return the text as inline code, or nothing for an empty text."""
    return f"`{text}`" if text else ""


def _escape(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")
