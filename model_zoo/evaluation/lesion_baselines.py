"""Plain rules on FLAIR that segment lesions, as baselines of the network: a threshold, and seeds that grow.

The seeds are the bright cores of ``lesion_growth``. Each grows over connected voxels to the half level between white
matter and its core.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_zoo.lesion_growth import Mask, find_bright_cores, grow_to_half_level, measure_white_matter
from model_zoo.structures import BRAIN, CORTEX, number

__all__ = ["segment_by_seeds", "segment_by_threshold"]

THRESHOLD_SD = 3.5
BEYOND_WHITE_MM = 3.0
"""How far a lesion may grow out of the white matter, cortex excepted."""
SMALLEST_MM3 = 15.0


def segment_by_threshold(flair: NDArray[np.float32], structure: NDArray[np.uint8], spacing_mm: float = 1.0) -> Mask:
    """Return the white matter that is far brighter than usual; ``flair`` (k, j, i) without bias field."""
    white = structure == number("cerebral white matter")
    level, sd = measure_white_matter(flair, white)
    return _keep_large(white & (flair > level + THRESHOLD_SD * sd), spacing_mm)


def segment_by_seeds(flair: NDArray[np.float32], structure: NDArray[np.uint8], spacing_mm: float = 1.0) -> Mask:
    """Return the lesions that grow from sure cores; ``flair`` (k, j, i) without bias field."""
    white = structure == number("cerebral white matter")
    seeds = find_bright_cores(flair, structure, spacing_mm)
    level, _ = measure_white_matter(flair, white)
    near = ndimage.distance_transform_edt(~seeds) * spacing_mm <= BEYOND_WHITE_MM
    allowed = np.isin(structure, BRAIN) & (white | near) & ~np.isin(structure, CORTEX)
    return _keep_large(grow_to_half_level(seeds, flair, level, allowed), spacing_mm)


def _keep_large(mask: Mask, spacing_mm: float) -> Mask:
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    large = np.bincount(labels.ravel()) * spacing_mm**3 >= SMALLEST_MM3
    large[0] = False
    return np.asarray(large[labels])
