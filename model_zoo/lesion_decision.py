"""Which parts of a lesion probability are lesions: sure ones, and on FLAIR brighter than is usual where they lie.

A network calls much a lesion that is bright by nature (brain stem, limbic cortex) or that it is not sure of. The
defaults are chosen on simulated patients of the validation subjects: of what the probability alone finds there four
parts of five are none; with both conditions one of five, and 87 % of the lesions stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_zoo import lesion_locations
from model_zoo.lesion_locations import Lesion
from model_zoo.structures import BRAIN

__all__ = ["Decided", "Decision", "departure", "levels"]

LEAST_SD = 0.02
"""In units of white matter: a structure without any spread is no measure of what is unusual."""


@dataclass(frozen=True)
class Decided:
    """``labels`` int32 (k, j, i) of all parts that are large enough; those of them that are ``lesions``; how many are
    ``unsure`` and how many of the others are ``unsupported``."""

    labels: NDArray[np.int32]
    lesions: tuple[Lesion, ...]
    unsure: int
    unsupported: int

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where lesions are."""
        return np.isin(self.labels, [lesion.label for lesion in self.lesions])


@dataclass(frozen=True)
class Decision:
    """A part is connected (26 neighbours) with a ``probability`` above this; a lesion is ``smallest_mm3`` at least,
    has a mean probability of ``sure``, and a tenth of it is ``flair`` robust standard deviations above the median of
    its structure."""

    probability: float = 0.5
    smallest_mm3: float = 15.0
    sure: float = 0.85
    flair: float = 2.5

    def decide(
        self,
        lesion: NDArray[np.float32],
        flair: NDArray[np.float32],
        structure: NDArray[np.uint8],
        spacing_mm: float = 1.0,
    ) -> Decided:
        """``lesion``: probability; ``flair`` in units of white matter; ``structure`` numbers; all (k, j, i)."""
        mask = (lesion > self.probability) & np.isin(structure, BRAIN)
        labels, parts = lesion_locations.lesions(mask, structure, spacing_mm, smallest_mm3=self.smallest_mm3)
        above, boxes = departure(flair, structure), ndimage.find_objects(labels, max_label=len(parts))
        sure, supported = [], []
        for part, box in zip(parts, boxes, strict=True):
            inside = labels[box] == part.label
            if float(lesion[box][inside].mean()) >= self.sure:
                sure.append(part)
                if float(np.quantile(above[box][inside], 0.9)) >= self.flair:
                    supported.append(part)
        return Decided(labels, tuple(supported), len(parts) - len(sure), len(sure) - len(supported))


def departure(image: NDArray[np.float32], structure: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How far above the median of its own structure a voxel is, in the robust standard deviations of that structure."""
    level, sd = levels(image, structure)
    return np.asarray((image - level[structure]) / sd[structure])


def levels(image: NDArray[np.float32], structure: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Median and robust standard deviation of each structure of the brain, by its number (0 and 1 for others)."""
    level, sd = np.zeros(256, np.float32), np.ones(256, np.float32)
    for n in BRAIN:
        values = image[structure == n]
        if values.size:
            level[n] = np.median(values)
            sd[n] = max(1.4826 * float(np.median(np.abs(values - level[n]))), LEAST_SD)
    return level, sd
