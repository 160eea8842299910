"""Lesions as a segmentation: a segment for each lesion that is told one by one, and one of the rest for each place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.contract import Grid, Segment, Segmentation
from pipelines.dir_estimate import DirEstimate, resample_map
from pipelines.lesions import LESION_OF_BRAIN, MORPHOLOGY, PLACES, Lesion, LesionMap, Place, Thresholds

__all__ = ["make_segmentation"]

DESCRIPTION = "Lesions by location, from synthetic DIR"

Labels = NDArray[np.uint8]


def make_segmentation(found: LesionMap, e: DirEstimate, t: Thresholds, onto: Grid, thickness_mm: float) -> Segmentation:
    """Return the lesions on another lattice: voxels at least half of which are lesion, and of each lesion its peak.

    Lesions have the number and the name of their group in the report. Without lesions there is a segment of each place.
    """
    told = found.lesions[: t.told]
    rest = found.lesions[len(told) :]
    places = [place for place in PLACES if not told or any(lesion.place is place for lesion in rest)]
    number_of_rest = {place: len(told) + n for n, place in enumerate(places, start=1)}
    number_of = np.zeros(len(found.lesions) + 1, np.uint8)
    for lesion in found.lesions:
        number_of[lesion.number] = lesion.number if lesion.number <= len(told) else number_of_rest[lesion.place]
    labels = number_of[_numbers_on(found, e, onto)]
    segments = [_of_lesion(lesion) for lesion in told]
    segments += [_of_place(place, number, "Further" if told else "") for place, number in number_of_rest.items()]
    return Segmentation("lesions", labels, onto, tuple(segments), DESCRIPTION, thickness_mm)


def _of_lesion(lesion: Lesion) -> Segment:
    label, kind = f"Lesion {lesion.number}", f"{lesion.place.name.capitalize()} lesion"
    color, site = lesion.place.color, lesion.site
    return Segment(lesion.number, label, MORPHOLOGY, LESION_OF_BRAIN, kind, color, site, lesion.centre_mm)


def _of_place(place: Place, number: int, word: str) -> Segment:
    label = f"{word} {place.name} lesions".strip().capitalize()
    return Segment(number, label, MORPHOLOGY, LESION_OF_BRAIN, label, place.color, place.site)


def _numbers_on(found: LesionMap, e: DirEstimate, onto: Grid) -> NDArray[np.int32]:
    """Each voxel's lesion number on another lattice."""
    numbers = np.zeros(onto.shape, np.int32)
    if not found.lesions:
        return numbers
    share = resample_map((found.labels > 0).astype(np.float32)[None], e.grid, onto)[0]
    places = np.nonzero(share >= 0.5)
    nearest = ndimage.distance_transform_edt(found.labels == 0, return_distances=False, return_indices=True)
    numbers[places] = found.labels[tuple(nearest[(slice(None), *_indices(places, onto, e.grid))])]
    _keep_peaks(numbers, found.lesions, e.grid, onto)
    return numbers


def _indices(places: Sequence[NDArray[np.int64]], of: Grid, on: Grid) -> tuple[NDArray[np.int64], ...]:
    """The voxels (k, j, i) of one lattice that lie nearest to the centres of those of another."""
    k, j, i = places
    to_index = np.linalg.solve(on.affine_mm, of.affine_mm)
    found = np.rint(to_index @ np.stack([i, j, k, np.ones_like(i)]))[2::-1].astype(np.int64)
    return tuple(np.clip(at, 0, n - 1) for at, n in zip(found, on.shape, strict=True))


def _keep_peaks(numbers: NDArray[np.int32], lesions: Sequence[Lesion], own: Grid, onto: Grid) -> None:
    """Give each lesion that is thinner than a voxel the one of its peak, unless that is another's only one."""
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
