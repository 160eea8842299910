"""Missing slices of a series: planes of a regular stack that no instance holds, found by the positions of the others.

A stack may lack planes between its slices; planes beyond its first and its last slice leave no trace. What has two
readings is refused: two usual steps, a gap that is no whole number of steps, another spacing in the header.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomnode.errors import InputRefused
from dicomnode.reading.frames import Frame, cite, find_rescale
from pipelines.contract import StoredSlices

__all__ = ["UNEVEN", "check_kept", "check_padding", "describe_slices", "find_places"]

UNEVEN = 0.1
"""Largest departure of a step between slices from the median step, relative to it."""
RARE = 0.25
"""Largest share of steps that may be gaps: with more, it is not sure which step is the regular one."""

Places = NDArray[np.int64]


def find_places(frames: Sequence[Frame], along_mm: NDArray[np.float64]) -> Places:
    """Return the number, from 0, of each slice's plane in the stack. Raises InputRefused for two readings."""
    steps = np.diff(along_mm)
    if not steps.size:
        return np.zeros(len(along_mm), np.int64)
    usual = float(np.median(steps))
    _check_length(along_mm, usual)
    planes = np.maximum(np.rint(steps / usual), 1).astype(np.int64)
    if (planes > 1).any():
        _check_one_reading(steps, planes, usual)
        _check_stated_spacing(frames[0], usual)
    return np.concatenate([[0], np.cumsum(planes)]).astype(np.int64)


def _check_length(along_mm: NDArray[np.float64], usual: float) -> None:
    """Refuse a stack of which most would be missing: its volume may exceed any memory."""
    missing = float(along_mm[-1] - along_mm[0]) / usual + 1 - len(along_mm)
    if missing > len(along_mm):
        raise InputRefused(
            f"about {missing:.0f} slices are missing between the {len(along_mm)} of the series, which are "
            f"{usual:.2f} mm apart: slices are filled where fewer are missing than were measured"
        )


def _check_one_reading(steps: NDArray[np.float64], planes: Places, usual: float) -> None:
    gaps = np.flatnonzero(planes > 1)
    if len(gaps) > RARE * len(steps):
        raise InputRefused(
            f"{len(gaps)} of {len(steps)} steps between slices are longer than {usual:.2f} mm: it is not sure which "
            "step is the regular one, so nobody knows how many slices are missing"
        )
    for n in gaps:
        if abs(steps[n] / usual - planes[n]) > UNEVEN:
            raise InputRefused(
                f"the gap of {steps[n]:.2f} mm between slices {n + 1} and {n + 2} is no whole number of steps of "
                f"{usual:.2f} mm: nobody knows how many slices are missing there"
            )


def _check_stated_spacing(frame: Frame, usual: float) -> None:
    spacing_mm = abs(frame.number_of("SpacingBetweenSlices") or 0.0)
    if spacing_mm and abs(spacing_mm / usual - 1) > UNEVEN:
        raise InputRefused(
            f"Spacing Between Slices (0018,0088) is {spacing_mm:.2f} mm, and most slices are {usual:.2f} mm apart: "
            "nobody knows how many slices are missing"
        )


def describe_slices(frames: Sequence[Frame], places: Places) -> StoredSlices:
    """Return the number of each slice, and the one rescale of all. Raises InputRefused where they have several."""
    scales = {find_rescale(frame) for frame in frames}
    scale = scales.pop()
    if scales or scale is None:
        first = cite(frames[0].header)
        raise InputRefused(
            f"{first}: measured slices keep their stored values only where one Rescale Slope (0028,1053) and Intercept "
            "(0028,1052) hold for all; this series has several, a table, or a mapping to a unit"
        )
    numbers: list[int | None] = [None] * (int(places[-1]) + 1)
    for frame, place in zip(frames, places, strict=True):
        numbers[int(place)] = _number(frame)
    return StoredSlices(tuple(numbers), *scale)


def check_kept(frame: Frame, stored: NDArray[Any], values: NDArray[np.float32], slices: StoredSlices) -> None:
    """Refuse stored values that do not come back from ``values`` (row, column) as they were: fractions, or numbers of
    more digits than float32 has. Raises InputRefused."""
    numbers = np.rint((values.astype(np.float64) - slices.intercept) / slices.slope)
    changed = int((numbers != stored).sum())
    if changed:
        raise InputRefused(
            f"{cite(frame.header)}: {changed} pixels are no whole numbers, or too long ones: measured slices could not "
            "keep their stored values"
        )


def check_padding(stored: NDArray[np.float32], filled: NDArray[np.float32]) -> None:
    """Refuse padding that is filled by another value than is stored. Raises InputRefused."""
    changed = int((stored != filled).sum())
    if changed:
        raise InputRefused(
            f"{changed} pixels are padding (Pixel Padding Value (0028,0120)), which is replaced by the value of air: "
            "measured slices could not keep their stored values"
        )


def _number(frame: Frame) -> int:
    """Return the slice's number as viewers show it: its Instance Number, or of a multi-frame object its frame."""
    if int(frame.header.get("NumberOfFrames") or 1) > 1:
        return frame.number + 1
    number = frame.number_of("InstanceNumber")
    return 0 if number is None else int(number)
