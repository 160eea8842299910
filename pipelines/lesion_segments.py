"""Segmentation of lesions: a segment for each lesion listed one by one, and one of the rest for each place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.contract import Grid, Segment, Segmentation
from pipelines.dir_estimate import DirEstimate, resample_map
from pipelines.lesions import LESION_OF_BRAIN, MORPHOLOGY, PLACES, Lesion, LesionMap, Place, Thresholds

__all__ = ["make_segmentation"]

Labels = NDArray[np.uint8]


def make_segmentation(
    lesion_map: LesionMap,
    e: DirEstimate,
    t: Thresholds,
    onto: Grid,
    thickness_mm: float,
    source: str = "synthetic DIR",
) -> Segmentation:
    """Return the lesions on another grid: voxels that are lesion by at least half, and the peak of each lesion.

    Lesions have the number and the name of their group in the report. Without lesions each place has an empty segment.
    ``source``: images that the lesions come from, for the description.
    """
    listed = lesion_map.lesions[: t.max_listed]
    rest = lesion_map.lesions[len(listed) :]
    places = [place for place in PLACES if not listed or any(lesion.place is place for lesion in rest)]
    number_of_rest = {place: len(listed) + n for n, place in enumerate(places, start=1)}
    number_of = np.zeros(len(lesion_map.lesions) + 1, np.uint8)
    for lesion in lesion_map.lesions:
        number_of[lesion.number] = lesion.number if lesion.number <= len(listed) else number_of_rest[lesion.place]
    labels = number_of[_resample_numbers(lesion_map, e, onto)]
    segments = [_lesion_segment(lesion) for lesion in listed]
    segments += [_place_segment(place, number, "Further" if listed else "") for place, number in number_of_rest.items()]
    description = f"Lesions by location, from {source}"
    return Segmentation("lesions", labels, onto, tuple(segments), description, thickness_mm)


def _lesion_segment(lesion: Lesion) -> Segment:
    label, kind = f"Lesion {lesion.number}", f"{lesion.place.name.capitalize()} lesion"
    color, site = lesion.place.color, lesion.site
    return Segment(lesion.number, label, MORPHOLOGY, LESION_OF_BRAIN, kind, color, site, lesion.centre_mm)


def _place_segment(place: Place, number: int, prefix: str) -> Segment:
    label = f"{prefix} {place.name} lesions".strip().capitalize()
    return Segment(number, label, MORPHOLOGY, LESION_OF_BRAIN, label, place.color, place.site)


def _resample_numbers(lesion_map: LesionMap, e: DirEstimate, onto: Grid) -> NDArray[np.int32]:
    """Return each voxel's lesion number on another grid."""
    numbers = np.zeros(onto.shape, np.int32)
    if not lesion_map.lesions:
        return numbers
    share = resample_map((lesion_map.labels > 0).astype(np.float32)[None], e.grid, onto)[0]
    places = np.nonzero(share >= 0.5)
    nearest = ndimage.distance_transform_edt(lesion_map.labels == 0, return_distances=False, return_indices=True)
    numbers[places] = lesion_map.labels[tuple(nearest[(slice(None), *_nearest_voxels(places, onto, e.grid))])]
    _keep_peaks(numbers, lesion_map.lesions, e.grid, onto)
    return numbers


def _nearest_voxels(
    places: Sequence[NDArray[np.int64]], from_grid: Grid, to_grid: Grid
) -> tuple[NDArray[np.int64], ...]:
    """Return the voxels (k, j, i) of ``to_grid`` that lie nearest to the centres of voxels of ``from_grid``."""
    k, j, i = places
    to_index = np.linalg.solve(to_grid.affine_mm, from_grid.affine_mm)
    index = np.rint(to_index @ np.stack([i, j, k, np.ones_like(i)]))[2::-1].astype(np.int64)
    return tuple(np.clip(at, 0, n - 1) for at, n in zip(index, to_grid.shape, strict=True))


def _keep_peaks(numbers: NDArray[np.int32], lesions: Sequence[Lesion], own: Grid, onto: Grid) -> None:
    """Give each lesion thinner than a voxel the voxel of its peak, unless that is another lesion's only one."""
    counts = np.bincount(numbers.ravel(), minlength=len(lesions) + 1)
    to_index = np.linalg.solve(onto.affine_mm, own.affine_mm)
    for lesion in lesions:
        k, j, i = lesion.peak
        at = tuple(int(n) for n in np.rint(to_index @ [i, j, k, 1])[2::-1])
        if counts[lesion.number] or not all(0 <= a < n for a, n in zip(at, onto.shape, strict=True)):
            continue
        if numbers[at] == 0 or counts[numbers[at]] > 1:
            counts[numbers[at]] -= 1
            numbers[at] = lesion.number
            counts[lesion.number] = 1
