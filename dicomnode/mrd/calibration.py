"""The fully sampled block about the centre of k-space that coil sensitivities are calibrated from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["find_calibration_block"]

_MINIMUM = 6
"""Fewer lines than one ESPIRiT kernel are not a calibration."""


def find_calibration_block(
    mask: NDArray[np.bool_], flagged: NDArray[np.intp]
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return the largest block sampled in every slice about the centre, as half-open ranges ((a0, a1), (b0, b1)).

    ``mask`` (slice, a, b). ``flagged`` (n, 1 or 2): positions a or (a, b) that the scanner flagged as calibration; when
    there are any, the block lies within them, unless they make no block.
    """
    sampled: NDArray[np.bool_] = np.all(mask, axis=0)
    if flagged.size:
        allowed = np.zeros_like(sampled)
        allowed[tuple(flagged.T)] = True
        block = _largest_about_centre(sampled & allowed)
        if block is not None:
            return block
    return _largest_about_centre(sampled)


def _largest_about_centre(sampled: NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Rows a - up ... a + down share the narrowest reach to each side of the centre column; the largest area wins."""
    na, nb = sampled.shape
    a, b = na // 2, nb // 2
    left = np.logical_and.accumulate(sampled[:, b::-1], axis=1).sum(axis=1)
    right = np.logical_and.accumulate(sampled[:, b:], axis=1).sum(axis=1)
    left_up, left_down = (np.minimum.accumulate(part) for part in (left[a::-1], left[a:]))
    right_up, right_down = (np.minimum.accumulate(part) for part in (right[a::-1], right[a:]))
    to_left = np.minimum(left_up[:, None], left_down[None, :])
    to_right = np.minimum(right_up[:, None], right_down[None, :])
    width = np.where((to_left > 0) & (to_right > 0), to_left + to_right - 1, 0)
    height = np.arange(1, len(left_up) + 1)[:, None] + np.arange(len(left_down))[None, :]
    up, down = np.unravel_index(np.argmax(width * height), width.shape)
    rows, columns = int(height[up, down]), int(width[up, down])
    if rows < min(_MINIMUM, na) or columns < min(_MINIMUM, nb):
        return None
    first_b = b - int(to_left[up, down]) + 1
    return (a - int(up), a + int(down) + 1), (first_b, first_b + columns)
