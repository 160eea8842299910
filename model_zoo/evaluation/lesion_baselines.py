"""Plain rules on FLAIR that segment lesions, as baselines of the network: a threshold, and seeds that grow.

The seeds are sure cores: white matter at least ``DEEP_MM`` inside that is ``SEED_SD`` robust standard deviations above
its median. Each grows over connected voxels to the half level between white matter and its core, since raters draw
lesions about as far as that.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_zoo.structures import BRAIN, CORTEX, number

__all__ = ["grow_to_half_level", "segment_by_seeds", "segment_by_threshold"]

THRESHOLD_SD, SEED_SD, LEAST_SD = 3.5, 4.5, 0.02
DEEP_MM, BEYOND_WHITE_MM = 2.0, 3.0
"""Least depth of a seed in white matter, and how far a lesion may grow out of the white matter, cortex excepted."""
CORE_QUANTILE = 0.9
SMALLEST_MM3 = 15.0
REACH = 12
"""Voxels that a lesion may grow beyond the box of its seed."""

Mask = NDArray[np.bool_]


def segment_by_threshold(flair: NDArray[np.float32], structure: NDArray[np.uint8], spacing_mm: float = 1.0) -> Mask:
    """Return the white matter that is far brighter than usual; ``flair`` (k, j, i) without bias field."""
    white = structure == number("cerebral white matter")
    level, sd = _measure_white_matter(flair, white)
    return _keep_large(white & (flair > level + THRESHOLD_SD * sd), spacing_mm)


def segment_by_seeds(flair: NDArray[np.float32], structure: NDArray[np.uint8], spacing_mm: float = 1.0) -> Mask:
    """Return the lesions that grow from sure cores; ``flair`` (k, j, i) without bias field."""
    white = structure == number("cerebral white matter")
    level, sd = _measure_white_matter(flair, white)
    depth_mm = ndimage.distance_transform_edt(ndimage.binary_fill_holes(white)) * spacing_mm
    seeds = white & (depth_mm >= DEEP_MM) & (flair > level + SEED_SD * sd)
    near = ndimage.distance_transform_edt(~seeds) * spacing_mm <= BEYOND_WHITE_MM
    allowed = np.isin(structure, BRAIN) & (white | near) & ~np.isin(structure, CORTEX)
    return _keep_large(grow_to_half_level(seeds, flair, level, allowed), spacing_mm)


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


def _measure_white_matter(flair: NDArray[np.float32], white: Mask) -> tuple[float, float]:
    """Return median and robust standard deviation."""
    values = flair[white]
    level = float(np.median(values)) if values.size else 1.0
    return level, max(1.4826 * float(np.median(np.abs(values - level))), LEAST_SD) if values.size else LEAST_SD


def _keep_large(mask: Mask, spacing_mm: float) -> Mask:
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    large = np.bincount(labels.ravel()) * spacing_mm**3 >= SMALLEST_MM3
    large[0] = False
    return np.asarray(large[labels])
