"""Numbers and their units as text for a reader."""

from __future__ import annotations

import math

from pipelines.contract import Interval

__all__ = ["format_interval", "format_quantity", "format_unit", "format_value"]


def format_value(value: float) -> str:
    """Format a number with three digits, or all digits of a whole number below a million."""
    if not math.isfinite(value):
        return "not a number"
    is_whole_number = float(value).is_integer() and abs(value) < 1e6
    return f"{value:.0f}" if is_whole_number else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def format_unit(unit: str) -> str:
    """Format a UCUM unit: annotations without their braces, nothing for the unit 1."""
    return "" if unit == "1" else unit.replace("{", " ").replace("}", " ").strip()


def format_quantity(value: float, unit: str) -> str:
    """Format a number with its unit."""
    return f"{format_value(value)} {format_unit(unit)}".rstrip()


def format_interval(interval: Interval) -> str:
    """Format an interval with its probability."""
    return f"{format_value(interval.low)} to {format_value(interval.high)} ({100 * interval.level:g} %)"
