"""The fully sampled block about the centre of k-space that coil sensitivities are calibrated from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["find_calibration_block"]

_LEAST_SIDE = 6
"""Fewer lines than one ESPIRiT kernel are not a calibration."""
_SUFFICIENT_SIDE = 24
"""Side that maps are estimated from: what exceeds it counts only where the rest is equal."""

Block = tuple[tuple[int, int], tuple[int, int]]


def find_calibration_block(samples: NDArray[np.complex64], mask: NDArray[np.bool_]) -> Block | None:
    """Return the best block sampled in every slice about the centre, as half-open ranges ((a0, a1), (b0, b1)).

    ``samples`` (slice, coil, a, b), ``mask`` (slice, a, b). Flags of the scanner are not asked: they may be wrong, and
    what was sampled can serve. The block contains the strongest samples, where the echo is, or the middle of the
    matrix: the better of two such blocks is taken. Of all blocks that is the one with the most samples, where a side
    beyond ``_SUFFICIENT_SIDE`` counts only between blocks that are equal without it.
    """
    from scipy.ndimage import median_filter  # the web imports this module and needs no scipy

    sampled: NDArray[np.bool_] = np.all(mask, axis=0)
    na, nb = sampled.shape
    energy = np.zeros((na, nb))
    for one in samples:
        for coil in one:
            energy += np.abs(coil) ** 2
    energy = median_filter(energy, 3)  # leaves out a spike, which is one sample or two
    peak_a, peak_b = np.unravel_index(np.argmax(np.where(sampled, energy, 0.0)), energy.shape)
    found = [_find_about(sampled, a, b) for a, b in ((na // 2, nb // 2), (int(peak_a), int(peak_b)))]
    blocks = [block for block in found if block is not None]
    return max(blocks, key=lambda block: _score(block[0][1] - block[0][0], block[1][1] - block[1][0]), default=None)


def _find_about(sampled: NDArray[np.bool_], a: int, b: int) -> Block | None:
    """Return the best block that contains sample (a, b), or None.

    Rows a - up ... a + down share the narrowest reach to each side of column b.
    """
    na, nb = sampled.shape
    left = np.logical_and.accumulate(sampled[:, b::-1], axis=1).sum(axis=1)
    right = np.logical_and.accumulate(sampled[:, b:], axis=1).sum(axis=1)
    left_up, left_down = (np.minimum.accumulate(part) for part in (left[a::-1], left[a:]))
    right_up, right_down = (np.minimum.accumulate(part) for part in (right[a::-1], right[a:]))
    above, below = np.count_nonzero(left_up), np.count_nonzero(left_down)  # the tables are as large as what was sampled
    to_left = np.minimum(left_up[:above, None], left_down[None, :below])
    to_right = np.minimum(right_up[:above, None], right_down[None, :below])
    width = to_left + to_right - 1
    height = np.arange(1, above + 1)[:, None] + np.arange(below)[None, :]
    is_wide = (height >= min(_LEAST_SIDE, na)) & (width >= min(_LEAST_SIDE, nb))
    if not is_wide.any():
        return None
    up, down = np.unravel_index(np.argmax(np.where(is_wide, _score(height, width), 0)), width.shape)
    first_b = b - int(to_left[up, down]) + 1
    return (a - int(up), a + int(down) + 1), (first_b, first_b + int(width[up, down]))


def _score(height: Any, width: Any) -> Any:
    """Return a number, or an array, that orders blocks by their samples up to the sufficient side, then by all."""
    sufficient = np.minimum(height, _SUFFICIENT_SIDE) * np.minimum(width, _SUFFICIENT_SIDE)
    return sufficient * 10**9 + height * width
