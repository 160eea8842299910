"""The table of regions or lesions on the reading page, with the slice and the colour of each, and the legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from db import contents
from db.models import Job
from dicomnode.report.recorded import read_measurements
from dicomnode.report.region_table import build_region_table
from dicomnode.storage import spool
from dicomnode.web import pictures, segments
from dicomnode.web.pictures import Colour, FramePlane
from dicomnode.web.segments import SegmentInfo

__all__ = ["LegendEntry", "ReadingRow", "ReadingTable", "build_table", "choose_slice"]


@dataclass(frozen=True)
class LegendEntry:
    """Colour in a segmentation with its meaning; ``slice_index``: a slice that shows it, or None."""

    text: str
    colour: Colour | None
    slice_index: int | None


@dataclass(frozen=True)
class ReadingRow:
    """Row of a region or lesion; ``slice_index``: the slice of the reference series to jump to, or None."""

    name: str
    place: str
    cells: tuple[str, ...]
    colour: Colour | None
    slice_index: int | None


@dataclass(frozen=True)
class ReadingTable:
    """Table with a heading for each column of cells, and the legend of the segmentations."""

    columns: tuple[str, ...]
    rows: tuple[ReadingRow, ...]
    legend: tuple[LegendEntry, ...]
    has_places: bool


def choose_slice(at: int | None, table: ReadingTable, count: int) -> int:
    """Return the slice to show first: ``at``, else that of the first row or segment with a place, else the middle."""
    if at is None:
        places = [row.slice_index for row in table.rows] + [entry.slice_index for entry in table.legend]
        at = next((each for each in places if each is not None), count // 2)
    return min(max(at, 0), max(count - 1, 0))


@dataclass(frozen=True)
class _Located:
    info: SegmentInfo
    slice_index: int | None


def build_table(session: Session, spool_dir: Path, job: Job, reference: Sequence[FramePlane]) -> ReadingTable:
    """Build the table of a job. ``reference``: the slices that the page shows. Raises NodeBusy."""
    located = list(_locate_segments(session, spool_dir, job, reference))
    by_name = {each.info.label.casefold(): each for each in reversed(located)}
    regions = build_region_table(read_measurements(job.report))
    rows = []
    for row in regions.rows:
        segment = by_name.get(row.name.casefold())
        colour, at = (segment.info.colour, segment.slice_index) if segment else (None, None)
        rows.append(ReadingRow(row.name, row.place, row.cells, colour, at))
    return ReadingTable(regions.columns, tuple(rows), tuple(_list_legend(located)), regions.has_places)


def _locate_segments(session: Session, spool_dir: Path, job: Job, reference: Sequence[FramePlane]) -> list[_Located]:
    """Return the segments of all segmentations, each with the middle one of the slices that show it."""
    found = []
    for result in contents.list_results(session, [job.id]).get(job.id, []):
        if result.kind != "segmentation":
            continue
        path = spool.path(spool_dir, result.first_sha256)
        planes = pictures.list_planes((path,))
        by_segment: dict[int, list[FramePlane]] = {}
        for plane in planes:
            by_segment.setdefault(plane.segment, []).append(plane)
        for info in segments.list_segments(path):
            own = by_segment.get(info.number, [])
            at = pictures.find_nearest_index(reference, own[len(own) // 2]) if own else None
            found.append(_Located(info, at))
    return found


def _list_legend(located: Sequence[_Located]) -> list[LegendEntry]:
    """Return an entry for each colour; segments of one colour share the description that they have in common."""
    groups: dict[tuple[Colour | None, str], list[_Located]] = {}
    for each in located:
        groups.setdefault((each.info.colour, each.info.description), []).append(each)
    return [
        LegendEntry(
            text if len(members) > 1 else _describe(members[0].info),
            colour,
            next((each.slice_index for each in members if each.slice_index is not None), None),
        )
        for (colour, text), members in groups.items()
    ]


def _describe(info: SegmentInfo) -> str:
    return info.label if info.description == info.label else f"{info.label}: {info.description}"
