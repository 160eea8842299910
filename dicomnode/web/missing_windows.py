"""Windows for the viewer, from the pixels, of series whose header has none.

A viewer takes the window of the first slice then, which is often air: all other slices are white. The stored object and
the DICOMweb root of other clients stay without a window.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomnode import decoding
from dicomnode.errors import InputRefused
from dicomnode.reading import frames, lookup, padding
from dicomnode.transcoding import pixels
from dicomnode.web.rendered import choose_window

__all__ = ["EXPLANATION", "add_missing_window"]

EXPLANATION = "Computed by dicomnode from the pixels: the header has none"
"""Value of Window Center & Width Explanation (LO, at most 64 characters)."""
_CENTRE, _WIDTH, _EXPLANATION, _FUNCTION = "00281050", "00281051", "00281055", "00281056"
_LUT, _FRAME_WINDOW, _SEGMENTS, _PHOTOMETRIC = "00283010", "00289132", "00620002", "00280004"
_SHARED, _PER_FRAME, _PIXELS = "52009229", "52009230", "7FE00010"
_MOST_FRAMES = 9
"""Number of frames, spread over the series, whose pixels give its window."""

Elements = Mapping[str, Any]


def add_missing_window(encoded: bytes, series: Sequence[Path]) -> bytes:
    """Return an instance's DICOM JSON with the window of its series; unchanged where the header has one.

    Raises NodeBusy.
    """
    found = json.loads(encoded)
    if not _needs_window(found):
        return encoded
    try:
        centre, width = json.loads(decoding.run_cached(_measure_window, _spread(series)))
    except InputRefused:
        return encoded
    found[_CENTRE], found[_WIDTH] = {"vr": "DS", "Value": [centre]}, {"vr": "DS", "Value": [width]}
    found.pop(_FUNCTION, None)
    found[_EXPLANATION] = {"vr": "LO", "Value": [EXPLANATION]}
    return json.dumps(dict(sorted(found.items())), separators=(",", ":")).encode()


def _needs_window(found: Elements) -> bool:
    if _PIXELS not in found or _SEGMENTS in found or not str(_first(found, _PHOTOMETRIC)).startswith("MONOCHROME"):
        return False
    groups = [group for name in (_SHARED, _PER_FRAME) for group in found.get(name, {}).get("Value", ())[:1]]
    items = [
        item for group in groups if isinstance(group, dict) for item in group.get(_FRAME_WINDOW, {}).get("Value", ())
    ]
    return not any(_has_window(each) for each in (found, *items) if isinstance(each, dict))


def _has_window(found: Elements) -> bool:
    width = _first(found, _WIDTH)
    is_stated = _first(found, _CENTRE) is not None and isinstance(width, int | float) and width > 0
    return bool(found.get(_LUT, {}).get("Value")) or is_stated


def _first(found: Elements, name: str) -> Any:
    return next(iter(found.get(name, {}).get("Value", ())), None)


def _spread(values: Sequence[Path]) -> tuple[Path, ...]:
    """Return at most _MOST_FRAMES of the values, spread evenly."""
    count = min(len(values), _MOST_FRAMES)
    return tuple(values[(2 * at + 1) * len(values) // (2 * count)] for at in range(count))


def _measure_window(paths: tuple[Path, ...]) -> bytes:
    """Encode centre and width of the window that suits frames of all files together, in units after the rescale.

    A file that cannot be read leaves the others. Raises InputRefused where none can be.
    """
    most = max(1, _MOST_FRAMES // len(paths))
    values = [each for path in paths for each in _read_frames(path, most)]
    if not values:
        raise InputRefused("no frame of the series can be read")
    centre, width, _ = choose_window(np.concatenate(values))
    return json.dumps([float(f"{each:.6g}") for each in (centre + 0.5, width + 1)]).encode()  # LINEAR, C.11.2.1.2.1


def _read_frames(path: Path, count: int) -> list[NDArray[np.float64]]:
    """Return the values of frames spread over a file, none where it is refused."""
    try:
        return [_read_values(path, (2 * at + 1) / (2 * count)) for at in range(count)]
    except InputRefused:
        return []


def _read_values(path: Path, part: float) -> NDArray[np.float64]:
    """Return the values of the frame at a part (0 to 1) of a file, without padding. Raises InputRefused."""
    layout = pixels.read_layout(path)
    if layout is None:
        raise InputRefused("the instance has no pixels")
    index = int(part * layout.frames)
    frame = frames.frames_of(frames.read_header(path))[index]
    stored = pixels.decode_array(layout, index)
    place = frame.item("PixelValueTransformationSequence") or frame.header
    values = lookup.apply_rescale(stored, place, frames.cite(frame.header))
    return np.asarray(values[~padding.find(frame.header, stored)], np.float64)
