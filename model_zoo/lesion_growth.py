"""Bright cores of lesions on FLAIR, and their growth to the half level of the rim: raters draw about as far as that.

A bright core is white matter at least ``DEEP_MM`` inside that is ``SEED_SD`` robust standard deviations above its
median.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_zoo.structures import number

__all__ = ["Mask", "find_bright_cores", "grow_to_half_level", "measure_white_matter"]

SEED_SD, LEAST_SD = 4.5, 0.02
DEEP_MM = 2.0
"""Least depth of a core in white matter."""

CORE_QUANTILE = 0.9
REACH = 12
"""Voxels that a lesion may grow beyond the box of its seed."""

Mask = NDArray[np.bool_]


def find_bright_cores(flair: NDArray[np.float32], structure: NDArray[np.uint8], spacing_mm: float = 1.0) -> Mask:
    """Return the bright cores; ``flair`` (k, j, i) without bias field."""
    white = structure == number("cerebral white matter")
    level, sd = measure_white_matter(flair, white)
    depth_mm = ndimage.distance_transform_edt(ndimage.binary_fill_holes(white)) * spacing_mm
    return np.asarray(white & (depth_mm >= DEEP_MM) & (flair > level + SEED_SD * sd))


def grow_to_half_level(seeds: Mask, flair: NDArray[np.float32], white_level: float, allowed: Mask) -> Mask:
    """Return seeds and allowed voxels connected to them by faces above the half level of each seed's core."""
    labels, _ = ndimage.label(seeds, np.ones((3, 3, 3)))
    grown = np.zeros(seeds.shape, np.bool_)
    for n, box in enumerate(ndimage.find_objects(labels), start=1):
        near = tuple(slice(max(0, s.start - REACH), s.stop + REACH) for s in box)
        inside = labels[near] == n
        core = float(np.quantile(flair[near][inside], CORE_QUANTILE))
        above = inside | (allowed[near] & (flair[near] > white_level + 0.5 * (core - white_level)))
        grown[near] |= ndimage.binary_propagation(inside, mask=above)
    return grown


def measure_white_matter(flair: NDArray[np.float32], white: Mask) -> tuple[float, float]:
    """Return median and robust standard deviation."""
    values = flair[white]
    level = float(np.median(values)) if values.size else 1.0
    return level, max(1.4826 * float(np.median(np.abs(values - level))), LEAST_SD) if values.size else LEAST_SD
