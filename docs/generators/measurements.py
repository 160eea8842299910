"""Measurements that the output gate judges: what each means, and what to look at."""

from __future__ import annotations

from docs.generators.tables import format_code, format_table
from pipelines.measurement_meanings import MEANINGS

__all__ = ["make_page"]


def make_page() -> str:
    """Return the table of all measurements as Markdown."""
    rows = [(format_code(name), each.text, each.look_at) for name, each in MEANINGS.items()]
    return format_table(("measurement", "meaning", "look at"), rows)
