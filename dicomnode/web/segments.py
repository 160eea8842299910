"""The segments of a segmentation by its header: numbers, names and colours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dicomnode import decoding
from dicomnode.errors import InputRefused
from dicomnode.reading import frames, unreadable
from dicomnode.web.pictures import Colour

__all__ = ["SegmentInfo", "list_colours", "list_segments"]


@dataclass(frozen=True)
class SegmentInfo:
    """One segment; ``description``: of the header, else its label; ``colour``: None where the header has none."""

    number: int
    label: str
    description: str
    colour: Colour | None


@lru_cache(maxsize=64)
def list_segments(path: Path) -> tuple[SegmentInfo, ...]:
    """List the segments of a file. Raises NodeBusy; returns none for another object."""
    try:
        rows = json.loads(decoding.run(_encode_segments, path))
    except InputRefused:
        return ()
    return tuple(SegmentInfo(n, label, text, tuple(colour) if colour else None) for n, label, text, colour in rows)


def list_colours(path: Path) -> tuple[tuple[int, Colour], ...]:
    """List the colours that the header states, by segment number."""
    return tuple((each.number, each.colour) for each in list_segments(path) if each.colour is not None)


def _encode_segments(path: Path) -> bytes:
    """Encode number, label, description and colour of each segment as JSON."""
    import highdicom as hd

    rows = []
    ds = frames.read_keywords(path, ["SegmentSequence"])
    unreadable.decode(ds)
    for item in ds.get("SegmentSequence") or []:
        label = str(item.get("SegmentLabel", ""))
        cielab = item.get("RecommendedDisplayCIELabValue")
        colour = [int(each) for each in hd.color.CIELabColor.from_dicom_value(cielab).to_rgb()] if cielab else None
        rows.append((int(item.SegmentNumber), label, str(item.get("SegmentDescription") or label), colour))
    return json.dumps(rows).encode()
