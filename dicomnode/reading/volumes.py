"""One volume with its geometry from the instances of one series, or a refusal with its reason and place.

Slices are sorted along the normal (row direction x column direction), whatever their numbers say, and lie in the
patient's LPS coordinates as Image Position and Orientation (Patient) say (PS3.3 C.7.6.2.1.1). Real scans have steps
that are nearly equal; what is accepted is bounded by ``UNEVEN`` and ``DRIFT``, and the grid then has their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import RawDataStorage

from dicomnode.errors import InputRefused
from dicomnode.reading import acquisition, agreement, gaps, kinds, padding, pet
from dicomnode.reading.frames import Frame, cite, frames_of, read_header, real_world_values, unit
from dicomnode.reading.gaps import UNEVEN
from dicomnode.reading.stored_values import decode_frames
from pipelines.contract import Grid, StoredSlices, Volume

__all__ = ["DRIFT", "UNEVEN", "Series", "read", "read_grid"]

DRIFT = 0.2
"""Largest distance of a slice from its place on the regular grid, in steps."""
TILT_MM = 0.1
"""Largest sideways displacement of any slice against the first, beyond rounding: more is gantry tilt or shear."""
PARALLEL = 1e-3
SAME_PLACE_MM = 0.01

_DISTINGUISHING = (
    "EchoNumbers", "EchoTime", "EffectiveEchoTime", "DiffusionBValue", "TemporalPositionIdentifier",
    "TemporalPositionIndex", "InversionTime", "FlipAngle", "ImageType", "FrameType", "ComplexImageComponent",
    "TriggerTime", "NominalCardiacTriggerDelayTime", "StackID", "AcquisitionNumber", "FrameAcquisitionNumber",
    "FrameReferenceTime", "ImageIndex", "AcquisitionTime", "FrameAcquisitionDateTime", "ContentTime",
)  # fmt: skip
_TIMES = ("Time", "DateTime")


@dataclass(frozen=True)
class Series:
    """A volume, the facts of its acquisition (no identity), and the headers of its instances without pixels and private
    elements, in the order of the slices."""

    volume: Volume
    facts: dict[str, Any]
    headers: list[Dataset]


@dataclass(frozen=True)
class _Stack:
    """Frames in the order of the slices, the place of each on their grid, which may have more."""

    frames: list[Frame]
    places: NDArray[np.int64]
    grid: Grid
    thickness_mm: float
    unevenness_mm: float


def read(paths: Sequence[Path], *, allow_gaps: bool = False) -> Series:
    """Return the volume of the files of one series. Raises InputRefused.

    ``allow_gaps``: slices may be missing between others; the volume's ``slices`` name them.
    """
    files = _read_headers(paths)
    stack = _checked_stack(files, allow_gaps=allow_gaps)
    units = {unit(frame) for frame in stack.frames}
    if len(units) > 1:
        raise InputRefused(f"the slices are in several units: {', '.join(sorted(units))}")
    slices = gaps.describe_slices(stack.frames, stack.places) if allow_gaps else None
    data, padded = _data(stack, {id(ds): path for path, ds in files}, slices)
    stored = data[padded]
    padding.fill(data, padded, min(units))
    if slices:
        gaps.check_padding(stored, data[padded])
    facts = acquisition.facts(stack.frames) | {
        "spacing_mm": stack.grid.spacing_mm,
        "slice_thickness_mm": stack.thickness_mm,
        "slices": stack.grid.shape[0],
        "matrix": stack.grid.shape[1:],
        "uneven_steps_mm": stack.unevenness_mm,
    }
    return Series(Volume(data, stack.grid, units.pop(), stack.thickness_mm, slices), facts, _headers(stack))


def read_grid(paths: Sequence[Path]) -> Grid:
    """Return the grid of the files of one series, from headers only. Raises InputRefused.

    What only pixels or facts show to be wrong is refused by ``read``.
    """
    return _checked_stack(_read_headers(paths)).grid


def _read_headers(paths: Sequence[Path]) -> list[tuple[Path, Dataset]]:
    return _without_raw_data([(path, read_header(path)) for path in paths])


def _checked_stack(files: Sequence[tuple[Path, Dataset]], *, allow_gaps: bool = False) -> _Stack:
    """Return the frames of the files as slices of one volume, once all that headers say is of one image."""
    _check_instances([ds for _, ds in files])
    frames = [frame for _, ds in files for frame in frames_of(ds)]
    for frame in frames:
        kinds.check_frame(frame)
    stack = _stack(frames, allow_gaps=allow_gaps)
    pet.check(stack.frames)
    agreement.check(stack.frames)
    return stack


def _without_raw_data(files: list[tuple[Path, Dataset]]) -> list[tuple[Path, Dataset]]:
    """Return the files that are not Raw Data, which Philips' scanners send in the series of the images made of it."""
    return [each for each in files if each[1].get("SOPClassUID") != RawDataStorage] or files


def _check_instances(headers: Sequence[Dataset]) -> None:
    if not headers:
        raise InputRefused("the series has no instance")
    if len({ds.get("SeriesInstanceUID") for ds in headers}) > 1:
        raise InputRefused("the files are of several series; one at a time makes a volume")
    for ds in headers:
        kinds.check(ds)
    agreement.check_concatenations(headers)


def _stack(frames: list[Frame], *, allow_gaps: bool) -> _Stack:
    rows, columns = _one_size(frames)
    directions = _one_orientation(frames)
    row_mm, column_mm = _one_pixel_spacing(frames)
    positions = np.stack([_geometry(frame, "ImagePositionPatient", 3) for frame in frames])
    normal = np.cross(directions[0], directions[1])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    frames, positions, along = [frames[n] for n in order], positions[order], along[order]
    _check_duplicates(frames, along)
    _check_tilt(positions, normal)
    thickness = frames[0].number_of("SliceThickness")
    places = gaps.find_places(frames, along) if allow_gaps else np.arange(len(along))
    step, unevenness = _step(frames, along, thickness, places)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([directions[0] * column_mm, directions[1] * row_mm, normal * step], axis=1)
    affine[:3, 3] = positions[0]
    grid = Grid((int(places[-1]) + 1, rows, columns), affine)
    return _Stack(frames, places, grid, thickness if thickness and thickness > 0 else step, unevenness)


def _one_size(frames: Sequence[Frame]) -> tuple[int, int]:
    sizes = {(int(frame.header.Rows), int(frame.header.Columns)) for frame in frames}
    if len(sizes) > 1:
        raise InputRefused(f"the slices differ in size: {', '.join(f'{r} x {c}' for r, c in sorted(sizes))}")
    return sizes.pop()


def _geometry(frame: Frame, keyword: str, count: int) -> NDArray[np.float64]:
    found = frame.numbers(keyword, count)
    if found is None:
        raise InputRefused(
            f"{cite(frame.header)} ({kinds.class_name(frame.header)}) has no usable {keyword}: without it nobody "
            "knows where in the patient its pixels lie"
        )
    return found


def _one_orientation(frames: Sequence[Frame]) -> NDArray[np.float64]:
    """Return unit vectors of row and column direction (2, 3), made exactly perpendicular."""
    per_frame = np.stack([_geometry(frame, "ImageOrientationPatient", 6) for frame in frames])
    kinds: list[NDArray[np.float64]] = []
    for each in per_frame:
        if not any(np.abs(each - kind).max() <= PARALLEL for kind in kinds):
            kinds.append(each)
    if len(kinds) > 1:
        names = ", ".join(sorted(acquisition.plane(kind.reshape(2, 3)) for kind in kinds[:6]))
        raise InputRefused(
            f"the slices have {len(kinds)} orientations ({names}): a localiser or several stacks; a volume needs "
            "parallel slices"
        )
    row, column = per_frame[0].reshape(2, 3)
    lengths = np.linalg.norm([row, column], axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(row @ column) > 0.01:
        raise InputRefused(f"{cite(frames[0].header)}: the row and column directions are no perpendicular unit vectors")
    row = row / lengths[0]
    column = column - (column @ row) * row
    return np.stack([row, column / np.linalg.norm(column)])


def _one_pixel_spacing(frames: Sequence[Frame]) -> tuple[float, float]:
    per_frame = np.stack([_geometry(frame, "PixelSpacing", 2) for frame in frames])
    if per_frame.min() <= 0 or np.ptp(per_frame, axis=0).max() > 1e-3 * per_frame.min():
        low, high = per_frame.min(), per_frame.max()
        raise InputRefused(f"PixelSpacing is not positive and the same on all slices: from {low:g} to {high:g} mm")
    return float(per_frame[0, 0]), float(per_frame[0, 1])


def _check_duplicates(frames: Sequence[Frame], along: NDArray[np.float64]) -> None:
    starts = np.concatenate([[0], np.flatnonzero(np.diff(along) > SAME_PLACE_MM) + 1, [len(along)]])
    if len(starts) - 1 == len(frames):
        return
    largest = int(np.argmax(np.diff(starts)))
    together = frames[starts[largest] : starts[largest + 1]]
    raise InputRefused(
        f"{len(frames)} slices lie at only {len(starts) - 1} positions, up to {len(together)} at one; "
        f"{_difference(together)}; a volume needs exactly one slice per position"
    )


def _difference(frames: Sequence[Frame]) -> str:
    for keyword in _DISTINGUISHING:
        per_frame = [frame.get(keyword) for frame in frames]
        found = sorted({"\\".join(map(str, np.atleast_1d(each))) for each in per_frame if each is not None})
        if len(found) > 1:
            which = "" if keyword.endswith(_TIMES) and "Echo" not in keyword else f" ({', '.join(found[:4])})"
            return f"they differ in {keyword}{which}"
    return "nothing tells them apart: the same slice was sent twice, or the sender lost what distinguishes them"


def _check_tilt(positions: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    away = positions - positions[0]
    depth = away @ normal
    sideways = np.linalg.norm(away - np.outer(depth, normal), axis=1)
    worst = int(np.argmax(sideways))
    if sideways[worst] > TILT_MM:
        degrees = np.degrees(np.arctan2(sideways[worst], abs(depth[worst])))
        raise InputRefused(
            f"the slices are stacked {degrees:.1f} degrees off their normal (gantry tilt or a sheared stack, "
            f"{sideways[worst]:.2f} mm at slice {worst + 1}); they form no rectangular volume"
        )


def _step(
    frames: Sequence[Frame], along: NDArray[np.float64], thickness: float | None, places: NDArray[np.int64]
) -> tuple[float, float]:
    """Return the distance between slices, and the largest departure of any from its regular place, in millimetres."""
    if len(along) == 1:
        step = abs(frames[0].number_of("SpacingBetweenSlices") or 0.0) or thickness  # signed in NM only (C.8.4.15.1)
        if not step or step <= 0:
            raise InputRefused(f"{cite(frames[0].header)}: one slice without SliceThickness; its depth is unknown")
        return step, 0.0
    steps = np.diff(along) / np.diff(places)
    usual = float(np.median(steps))
    wide = np.flatnonzero(steps > 1.5 * usual)
    if wide.size:
        gaps = "; ".join(f"{steps[n]:.2f} mm between slices {n + 1} and {n + 2}" for n in wide[:3])
        missing = int(np.round(steps[wide] / usual - 1).sum())
        raise InputRefused(f"about {missing} slices are missing: {gaps}, where {usual:.2f} mm is usual")
    mean = float((along[-1] - along[0]) / places[-1])
    regular = along[0] + mean * places
    unevenness = float(np.abs(along - regular).max())
    if np.abs(steps / usual - 1).max() > UNEVEN or unevenness > DRIFT * usual:
        raise InputRefused(
            f"the steps between slices are uneven: {steps.min():.3f} to {steps.max():.3f} mm, a slice up to "
            f"{unevenness:.3f} mm from its regular place"
        )
    return mean, unevenness


def _data(
    stack: _Stack, path_of: dict[int, Path], slices: StoredSlices | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return real-world values (k, j, i) and where they are padding; instances are decoded one at a time.

    ``slices``: of a series whose slices have to keep their stored values.
    """
    data, padded = np.zeros(stack.grid.shape, np.float32), np.zeros(stack.grid.shape, bool)
    held_by: dict[int, list[tuple[int, Frame]]] = {}
    for k, frame in zip(stack.places.tolist(), stack.frames, strict=True):
        held_by.setdefault(id(frame.header), []).append((k, frame))
    for key, held in held_by.items():
        pixels = decode_frames(path_of[key], held[0][1].header)
        for k, frame in held:
            padded[k] = padding.find(frame.header, pixels[frame.number])
            data[k] = real_world_values(frame, pixels[frame.number], padded[k])
            count = int((~np.isfinite(data[k]) & ~padded[k]).sum())
            if count:
                raise InputRefused(f"{cite(frame.header)}, slice {k + 1}: {count} pixels are not finite numbers")
            if slices:
                gaps.check_kept(frame, pixels[frame.number], data[k], slices)
    return data, padded


def _headers(stack: _Stack) -> list[Dataset]:
    found: dict[int, Dataset] = {id(frame.header): frame.header for frame in stack.frames}
    for ds in found.values():
        ds.remove_private_tags()
    return list(found.values())
