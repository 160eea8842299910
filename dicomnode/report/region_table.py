"""Measurements of regions or lesions as a table: a row for each, a column for each quantity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dicomnode.report.numerals import format_quantity, format_unit, format_value
from pipelines.contract import Measurement

__all__ = ["RegionRow", "RegionTable", "build_region_table", "name_without_group"]


@dataclass(frozen=True)
class RegionRow:
    """Row of the region or lesion ``name``; ``place``: where it is, where that differs; ``cells``: a value a column."""

    name: str
    place: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class RegionTable:
    """Table with a heading for each column of cells."""

    columns: tuple[str, ...]
    rows: tuple[RegionRow, ...]

    @property
    def has_places(self) -> bool:
        """Return whether any row names a place."""
        return any(row.place for row in self.rows)


def build_region_table(measurements: Sequence[Measurement]) -> RegionTable:
    """Build the table of all measurements with a group, in the pipeline's order. Missing cells are empty."""
    groups: dict[str, dict[str, Measurement]] = {}
    for m in measurements:
        if m.group:
            groups.setdefault(m.group, {})[name_without_group(m)] = m
    names = list(dict.fromkeys(name for cells in groups.values() for name in cells))
    units = {name: next(cells[name].unit for cells in groups.values() if name in cells) for name in names}
    levels = {name: _find_level(name, groups.values()) for name in names}
    columns = tuple(_heading(name, units[name], levels[name]) for name in names)
    places = _find_places(groups.values())
    rows = tuple(
        RegionRow(group, place, tuple(_cell(cells.get(name), units[name]) for name in names))
        for (group, cells), place in zip(groups.items(), places, strict=True)
    )
    return RegionTable(columns, rows)


def name_without_group(m: Measurement) -> str:
    """Return the measurement's name without that of its group."""
    return m.name.replace(f" of {m.group}", "").replace(f"{m.group} ", "") if m.group else m.name


def _find_places(groups: Iterable[Mapping[str, Measurement]]) -> list[str]:
    """Return each group's place: the description of its first measurement, where descriptions differ."""
    texts = [next(iter(cells.values())).description for cells in groups]
    return texts if len(set(texts)) > 1 else [""] * len(texts)


def _find_level(name: str, groups: Iterable[Mapping[str, Measurement]]) -> float | None:
    """Return the greatest probability of the intervals in a column, or None without intervals."""
    return max((each.level for cells in groups if name in cells for each in cells[name].intervals), default=None)


def _heading(name: str, unit: str, level: float | None) -> str:
    in_unit = f"{name} ({format_unit(unit)})" if format_unit(unit) else name
    return in_unit if level is None else f"{in_unit}, {100 * level:g} %"


def _cell(m: Measurement | None, unit: str) -> str:
    if m is None:
        return ""
    value = format_value(m.value) if m.unit == unit else format_quantity(m.value, m.unit)
    widest = max(m.intervals, key=lambda each: each.level, default=None)
    return value if widest is None else f"{value} ({format_value(widest.low)} to {format_value(widest.high)})"
