"""Small pictures for pages: the middle of a series; source, result and uncertainty at one position in the patient."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicomnode import decoding
from dicomnode.errors import InputRefused
from dicomnode.reading import frames
from dicomnode.reading.unreadable import UNDECODABLE
from dicomnode.transcoding import pixels
from dicomnode.web import rendered
from dicomnode.web.sides import NO_SIDES, Sides, draw_mark, draw_sides, name_sides

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = [
    "FramePlane",
    "WindowChange",
    "draw_frame",
    "draw_map",
    "draw_overlay",
    "draw_thumbnail",
    "find_nearest_index",
    "find_nearest_plane",
    "list_planes",
]

_THUMBNAIL = (120, 120)
_LEAST_PARALLEL_COSINE = 0.95
"""Least cosine between the normals of planes that are shown as the same slice."""
_LABEL_COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (148, 103, 189), (23, 190, 207), (188, 189, 34), (255, 152, 150), (152, 223, 138),
)  # fmt: skip
"""Colours of segments, distinct with a colour vision deficiency as far as so many can be (Okabe and Ito's first)."""
_OPACITY = 0.45
_FILES_PER_CALL = 100
"""Number of files whose planes are read in one call."""
_MOST_PLANES = 20_000
_PLACE_KEYWORDS = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
"""Keywords at the top of a file that say where its frames lie."""
_MOST_MASKS = 256
_LOCKS = tuple(Lock() for _ in range(16))

Triple = tuple[float, float, float]
Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


@dataclass(frozen=True)
class WindowChange:
    """Change of an image's own window: ``shift`` in widths of it, ``stretch``: factor of its width."""

    shift: float = 0.0
    stretch: float = 1.0


@dataclass(frozen=True)
class FramePlane:
    """Frame ``index`` (from 0) of a file, with the position of its first pixel and its normal in the patient (LPS, mm).

    ``segment``: number of the segment that the frame masks; 0 for none or several; ``centre_mm``: of the frame;
    ``sides``: the letters that its picture shows; ``is_marked``: true where the picture says that it is synthetic.
    """

    path: Path
    index: int
    position_mm: Triple
    normal: Triple
    segment: int = 0
    centre_mm: Triple = (0.0, 0.0, 0.0)
    sides: Sides = NO_SIDES
    is_marked: bool = False

    @property
    def height_mm(self) -> float:
        """Position along the plane's own normal, in mm."""
        return float(np.dot(self.position_mm, self.normal))


def draw_thumbnail(path: Path) -> bytes | None:
    """Draw the middle frame of a file, small; None when the file has no pixels to draw. Raises NodeBusy."""
    try:
        return decoding.run_cached(_render_thumbnail, path) or None
    except InputRefused:
        return None


def list_planes(paths: tuple[Path, ...]) -> tuple[FramePlane, ...]:
    """List the planes of a series' files along the first one's normal, without files that have no pixels or position.

    Returns none for a series of more than _MOST_PLANES planes. Raises NodeBusy.
    """
    with _LOCKS[hash(paths) % len(_LOCKS)]:  # the pictures of a page ask for the same series at once
        return _list_planes(paths)


@lru_cache(maxsize=32)
def _list_planes(paths: tuple[Path, ...]) -> tuple[FramePlane, ...]:
    found: list[FramePlane] = []
    for at in range(0, len(paths), _FILES_PER_CALL):
        found += _read_planes(paths[at : at + _FILES_PER_CALL])
        if len(found) > _MOST_PLANES:
            return ()
    if not found:
        return ()
    normal = found[0].normal
    return tuple(sorted(found, key=lambda plane: float(np.dot(plane.position_mm, normal))))


def find_nearest_plane(found: Sequence[FramePlane], place: FramePlane) -> FramePlane | None:
    """Find the plane nearest to ``place``; None when the planes have another orientation."""
    index = find_nearest_index(found, place)
    return None if index is None else found[index]


def find_nearest_index(found: Sequence[FramePlane], place: FramePlane) -> int | None:
    """Find the index of the plane nearest to ``place``; None when the planes have another orientation."""
    if not found or abs(np.dot(found[0].normal, place.normal)) < _LEAST_PARALLEL_COSINE:
        return None
    offsets_mm = np.subtract([plane.position_mm for plane in found], place.centre_mm)
    return int(np.abs((offsets_mm * [plane.normal for plane in found]).sum(axis=1)).argmin())


def draw_frame(plane: FramePlane, size: int, change: WindowChange = WindowChange()) -> bytes:
    """Draw a frame in grey, or in its own colours, ``size`` pixels wide. Raises InputRefused, NodeBusy."""
    return decoding.run_cached(_render_frame, plane, size, change)


def draw_map(plane: FramePlane, size: int) -> bytes:
    """Draw a map in matplotlib's magma: small values are dark. Raises InputRefused, NodeBusy."""
    return decoding.run_cached(_render_map, plane, size)


def draw_overlay(
    masks: tuple[FramePlane, ...],
    background: FramePlane | None,
    size: int,
    change: WindowChange = WindowChange(),
    colours: tuple[tuple[int, Colour], ...] = (),
) -> bytes:
    """Draw masks on the image below them, or on black, in ``colours`` by segment or in default ones.

    Raises InputRefused, NodeBusy.
    """
    if len(masks) > _MOST_MASKS:
        raise InputRefused(f"{len(masks)} masks in one plane are too many to show: at most {_MOST_MASKS}")
    return decoding.run_cached(_render_overlay, masks, background, size, change, colours)


def _render_thumbnail(path: Path) -> bytes:
    place = pixels.read_layout(path)
    if place is None:
        return b""
    return rendered.render_frame(path, place.frames // 2, rendered.RenderOptions(size=_THUMBNAIL, quality=85))


def _render_frame(plane: FramePlane, size: int, change: WindowChange) -> bytes:
    return _encode_jpeg(_letter(_render_picture(plane, size, change), plane))


def _render_map(plane: FramePlane, size: int) -> bytes:
    from matplotlib import colormaps
    from PIL import Image

    table = (255 * np.asarray(colormaps["magma"](np.arange(256)))[:, :3]).round().astype(np.uint8)
    return _encode_jpeg(_letter(Image.fromarray(table[_render_grey(plane, size)]), plane))


def _render_overlay(
    masks: tuple[FramePlane, ...],
    background: FramePlane | None,
    size: int,
    change: WindowChange,
    colours: tuple[tuple[int, Colour], ...],
) -> bytes:
    from PIL import Image

    table = _colour_table(colours)
    labels = [_segment_labels(mask) for mask in masks]
    rows, columns = labels[0].shape
    shape = (max(1, round(rows * size / columns)), size)
    picture = np.zeros((*shape, 3))
    if background is not None:
        grey = Image.fromarray(_render_grey(background, size, change)).resize(shape[::-1])
        picture += np.asarray(grey, float)[..., None]
    for found in labels:
        resized = np.asarray(Image.fromarray(found).resize(shape[::-1], Image.Resampling.NEAREST))
        painted = table[resized]
        picture = np.where(resized[..., None] > 0, (1 - _OPACITY) * picture + _OPACITY * painted, picture)
    return _encode_jpeg(_letter(Image.fromarray(picture.round().astype(np.uint8)), masks[0]))


def _letter(picture: Picture, plane: FramePlane) -> Picture:
    """Return the picture with the letters of its sides and, where it is synthetic, with that word."""
    lettered = draw_sides(picture, plane.sides)
    return draw_mark(lettered) if plane.is_marked else lettered


def _colour_table(colours: tuple[tuple[int, Colour], ...]) -> NDArray[np.float64]:
    """Return the colour of each segment number, 0 to 255."""
    table = np.zeros((256, 3))
    table[1:] = [_LABEL_COLOURS[number % len(_LABEL_COLOURS)] for number in range(255)]
    for number, colour in colours:
        table[number % 256] = colour
    return table


def _bounding_size(size: int) -> tuple[int, int]:
    """Return a bounding size that fixes the width only, so that pictures side by side have the same scale."""
    return size, 4 * size


def _read_planes(paths: Sequence[Path]) -> list[FramePlane]:
    """Read the planes of files, in a process of its own, without those of files that cannot be read."""
    try:
        rows = json.loads(decoding.run(_encode_planes, tuple(paths)))
    except InputRefused:
        middle = len(paths) // 2
        return _read_planes(paths[:middle]) + _read_planes(paths[middle:]) if middle else []
    return [
        FramePlane(paths[file], index, _triple(position), _triple(normal), segment, _triple(centre), tuple(sides))
        for file, index, position, normal, segment, centre, sides in rows
    ]


def _encode_planes(paths: tuple[Path, ...]) -> bytes:
    """Encode planes as JSON rows of numbers; the first one is the index of the file."""
    rows = [
        (file, plane.index, plane.position_mm, plane.normal, plane.segment, plane.centre_mm, plane.sides)
        for file, path in enumerate(paths)
        for plane in _planes_of_file(path)
    ]
    return json.dumps(rows).encode()


def _planes_of_file(path: Path) -> Iterator[FramePlane]:
    try:
        layout = pixels.read_layout(path)
        if layout is None or layout.frames > _MOST_PLANES:
            return
        found = frames.frames_of(frames.read_keywords(path, _PLACE_KEYWORDS))
        yield from [plane for frame in found if (plane := _make_plane(path, frame)) is not None]
    except (InputRefused, *UNDECODABLE):
        return


def _make_plane(path: Path, frame: frames.Frame) -> FramePlane | None:
    position, axes = frame.numbers("ImagePositionPatient", 3), frame.numbers("ImageOrientationPatient", 6)
    if position is None or axes is None:
        return None
    normal = np.cross(axes[:3], axes[3:])
    item = frame.item("SegmentIdentificationSequence")
    segment = int(item.get("ReferencedSegmentNumber", 0)) if isinstance(item, Dataset) else 0
    centre = _find_centre(frame, position, axes)
    sides = name_sides(axes[:3], axes[3:])
    return FramePlane(path, frame.number, _triple(position), _triple(normal), segment, _triple(centre), sides)


def _find_centre(frame: frames.Frame, position: NDArray[np.float64], axes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the position of the frame's centre in mm; that of its first pixel where no spacing is stated."""
    spacing = frame.numbers("PixelSpacing", 2)
    if spacing is None:
        return position
    down, along = (int(frame.get("Rows", 1)) - 1) / 2, (int(frame.get("Columns", 1)) - 1) / 2
    return np.asarray(position + along * spacing[1] * axes[:3] + down * spacing[0] * axes[3:])


def _triple(values: Sequence[float] | NDArray[np.float64]) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])


def _render_grey(plane: FramePlane, size: int, change: WindowChange = WindowChange()) -> NDArray[np.uint8]:
    """Render a frame through its window, as grey values from 0 to 255."""
    return np.asarray(_render_picture(plane, size, change).convert("L"))


def _render_picture(plane: FramePlane, size: int, change: WindowChange) -> Picture:
    from PIL import Image

    options = rendered.RenderOptions("image/png", size=_bounding_size(size), shift=change.shift, stretch=change.stretch)
    content = rendered.render_frame(plane.path, plane.index, options)
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        return picture


def _segment_labels(mask: FramePlane) -> NDArray[np.uint8]:
    """Return segment numbers (row, column), 0 for none."""
    found = np.asarray(pixels.decode_array(_require_layout(mask.path), mask.index), np.int64)
    if mask.segment:
        return np.where(found > 0, mask.segment % 256, 0).astype(np.uint8)
    return (found % 256).astype(np.uint8)


def _require_layout(path: Path) -> pixels.PixelLayout:
    place = pixels.read_layout(path)
    if place is None:
        raise InputRefused("the instance has no pixels")
    return place


def _encode_jpeg(picture: Picture) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()
