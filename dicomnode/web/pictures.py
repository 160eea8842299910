"""Small pictures for people: the middle of a series, and source, result and uncertainty at one place in the patient."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicomnode import decoding
from dicomnode.errors import InputRefused
from dicomnode.reading import frames
from dicomnode.transcoding import pixels
from dicomnode.web import rendered

__all__ = ["Plane", "as_it_is", "in_colours", "nearest", "overlaid", "planes", "thumbnail"]

_THUMBNAIL = (120, 120)
_PARALLEL = 0.95
"""Cosine between the normals of planes that are shown as the same slice."""
_LABELS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (148, 103, 189), (23, 190, 207), (188, 189, 34), (255, 152, 150), (152, 223, 138),
)  # fmt: skip
"""Distinct for people with a colour vision deficiency, as far as so many can be (Okabe and Ito's first)."""
_OPACITY = 0.45
_TOGETHER = 100
"""Files whose planes are asked for at once."""
_MOST_PLANES = 20_000
_MOST_MASKS = 256

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Plane:
    """Frame ``index`` (from 0) of a file, with the place of its first pixel and its normal in the patient (LPS, mm);
    ``segment``: whose mask it is, 0: of none, or of several."""

    path: Path
    index: int
    position_mm: Triple
    normal: Triple
    segment: int = 0

    @property
    def height_mm(self) -> float:
        """Along its own normal."""
        return float(np.dot(self.position_mm, self.normal))


def thumbnail(path: Path) -> bytes | None:
    """The middle frame of a file, small; None when it holds nothing that can be drawn. Raises NodeBusy."""
    try:
        return decoding.run_cached(_thumbnail, path) or None
    except InputRefused:
        return None


@lru_cache(maxsize=32)
def planes(paths: tuple[Path, ...]) -> tuple[Plane, ...]:
    """Those of a series' files, along the first one's normal; files without pixels or place are left out.

    A series of more planes than anybody looks at has none. Raises NodeBusy.
    """
    found: list[Plane] = []
    for at in range(0, len(paths), _TOGETHER):
        found += _asked(paths[at : at + _TOGETHER])
        if len(found) > _MOST_PLANES:
            return ()
    if not found:
        return ()
    normal = found[0].normal
    return tuple(sorted(found, key=lambda plane: float(np.dot(plane.position_mm, normal))))


def nearest(found: Sequence[Plane], place: Plane) -> Plane | None:
    """The plane where ``place`` lies; None when these planes are of another orientation."""
    if not found or abs(np.dot(found[0].normal, place.normal)) < _PARALLEL:
        return None
    return min(
        found, key=lambda plane: abs(float(np.dot(np.subtract(plane.position_mm, place.position_mm), place.normal)))
    )


def as_it_is(path: Path, index: int, size: int) -> bytes:
    """A frame in grey, or in its own colours, ``size`` pixels wide. Raises InputRefused, NodeBusy."""
    return decoding.run_cached(_as_it_is, path, index, size)


def in_colours(path: Path, index: int, size: int) -> bytes:
    """A map in matplotlib's magma: dark where it is small. Raises InputRefused, NodeBusy."""
    return decoding.run_cached(_in_colours, path, index, size)


def overlaid(masks: tuple[Plane, ...], ground: Plane | None, size: int) -> bytes:
    """Masks in colours on the image that they lie on, or on black. Raises InputRefused, NodeBusy."""
    if len(masks) > _MOST_MASKS:
        raise InputRefused(f"{len(masks)} masks at one place are more than are shown")
    return decoding.run_cached(_overlaid, masks, ground, size)


def _thumbnail(path: Path) -> bytes:
    place = pixels.read_layout(path)
    if place is None:
        return b""
    return rendered.picture(path, place.frames // 2, rendered.Asked(size=_THUMBNAIL, quality=85))


def _as_it_is(path: Path, index: int, size: int) -> bytes:
    return rendered.picture(path, index, rendered.Asked(size=_wide(size), quality=90))


def _in_colours(path: Path, index: int, size: int) -> bytes:
    from matplotlib import colormaps
    from PIL import Image

    table = (255 * np.asarray(colormaps["magma"](np.arange(256)))[:, :3]).round().astype(np.uint8)
    return _jpeg(Image.fromarray(table[_grey(path, index, size)]))


def _overlaid(masks: tuple[Plane, ...], ground: Plane | None, size: int) -> bytes:
    from PIL import Image

    labels = [_labels(mask) for mask in masks]
    rows, columns = labels[0].shape
    shape = (max(1, round(rows * size / columns)), size)
    picture = np.zeros((*shape, 3))
    if ground is not None:
        grey = Image.fromarray(_grey(ground.path, ground.index, size)).resize(shape[::-1])
        picture += np.asarray(grey, float)[..., None]
    for found in labels:
        shown = np.asarray(Image.fromarray(found).resize(shape[::-1], Image.Resampling.NEAREST))
        colours = np.array([(0, 0, 0), *_LABELS])[np.where(shown > 0, (shown.astype(int) - 1) % len(_LABELS) + 1, 0)]
        picture = np.where(shown[..., None] > 0, (1 - _OPACITY) * picture + _OPACITY * colours, picture)
    return _jpeg(Image.fromarray(picture.round().astype(np.uint8)))


def _wide(size: int) -> tuple[int, int]:
    """Of the same width whatever lies below the anatomy, so that pictures side by side have one scale."""
    return size, 4 * size


def _asked(paths: Sequence[Path]) -> list[Plane]:
    """The planes of some files; where one of them cannot be read at all, those of the others."""
    try:
        rows = json.loads(decoding.run(_planes, tuple(paths)))
    except InputRefused:
        middle = len(paths) // 2
        return _asked(paths[:middle]) + _asked(paths[middle:]) if middle else []
    return [
        Plane(paths[of], index, _triple(position), _triple(normal), segment)
        for of, index, position, normal, segment in rows
    ]


def _planes(paths: tuple[Path, ...]) -> bytes:
    """As rows of numbers, of which the first says whose file it is."""
    rows = [
        (of, plane.index, plane.position_mm, plane.normal, plane.segment)
        for of, path in enumerate(paths)
        for plane in _planes_of(path)
    ]
    return json.dumps(rows).encode()


def _planes_of(path: Path) -> Iterator[Plane]:
    try:
        place = pixels.read_layout(path)
        if place is None or place.frames > _MOST_PLANES:
            return
        found = frames.frames_of(frames.header(path))
    except (InputRefused, OSError):
        return
    yield from (plane for frame in found if (plane := _plane(path, frame)) is not None)


def _plane(path: Path, frame: frames.Frame) -> Plane | None:
    position, axes = frame.numbers("ImagePositionPatient", 3), frame.numbers("ImageOrientationPatient", 6)
    if position is None or axes is None:
        return None
    normal = np.cross(axes[:3], axes[3:])
    item = frame.item("SegmentIdentificationSequence")
    segment = int(item.get("ReferencedSegmentNumber", 0)) if isinstance(item, Dataset) else 0
    return Plane(path, frame.number, _triple(position), _triple(normal), segment)


def _triple(values: Sequence[float] | NDArray[np.float64]) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])


def _grey(path: Path, index: int, size: int) -> NDArray[np.uint8]:
    """Through its window, 0 to 255."""
    from PIL import Image

    content = rendered.picture(path, index, rendered.Asked("image/png", size=_wide(size)))
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture.convert("L"))


def _labels(mask: Plane) -> NDArray[np.uint8]:
    """Segment numbers (row, column); 0: none."""
    found = np.asarray(pixels.decode_array(_layout(mask.path), mask.index), np.int64)
    if mask.segment:
        return np.where(found > 0, mask.segment % 256, 0).astype(np.uint8)
    return (found % 256).astype(np.uint8)


def _layout(path: Path) -> pixels.PixelLayout:
    place = pixels.read_layout(path)
    if place is None:
        raise InputRefused("the instance has no pixels")
    return place


def _jpeg(picture: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)  # type: ignore[attr-defined]  # PIL's image, imported on use
    return file.getvalue()
