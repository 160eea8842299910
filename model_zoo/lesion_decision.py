"""Selection of lesions among the parts of a lesion probability: sure ones, unusually bright on FLAIR for their place.

A network gives lesion probability to tissue that is bright by nature (brain stem, limbic cortex) and to parts of which
it is not sure. The defaults are chosen on simulated patients of the validation subjects: by probability alone four
parts of five are no lesions; with both conditions one of five, and 87 % of the lesions stay.

The network is unsure of faint lesions. A bright core deep in white matter (``lesion_growth``) is therefore a lesion at
a lower probability: on hard simulated examinations this finds 84 % of the lesions instead of 69 %, at a similar
precision (``docs/benchmarks.md``). The network also stops short of hazy rims, which it was not trained with: lesions
grow on FLAIR to the half level between white matter and their core, over connected white matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_zoo import lesion_locations
from model_zoo.lesion_growth import Mask, find_bright_cores, grow_to_half_level
from model_zoo.lesion_locations import Lesion
from model_zoo.structures import BRAIN, number

__all__ = ["LesionCriteria", "LesionSelection", "robust_deviation", "structure_statistics"]

WHITE = ("cerebral white matter", "cerebellar white matter")
LEAST_SD = 0.02
"""Smallest standard deviation of a structure, in units of white matter."""


@dataclass(frozen=True)
class LesionSelection:
    """The lesions among the parts of a lesion probability.

    ``labels`` int32 (k, j, i): the lesions after growth, 0 elsewhere; ``unsure``: number of parts of too low a
    probability; ``unsupported``: number of the others that FLAIR does not support.
    """

    labels: NDArray[np.int32]
    lesions: tuple[Lesion, ...]
    unsure: int
    unsupported: int

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Mask of the selected lesions, (k, j, i)."""
        return self.labels > 0


@dataclass(frozen=True)
class LesionCriteria:
    """Conditions for a lesion.

    A part is connected (26 neighbours) with a probability above ``probability``. A lesion is a part of ``smallest_mm3``
    at least, with a mean probability of ``sure`` at least, a tenth of which is ``flair`` robust standard deviations
    above the median of its structure. So is a bright core in white matter with a mean probability of
    ``sure_core`` at least. A lesion grows by ``growth_mm`` at most; 0: not at all.
    """

    probability: float = 0.5
    smallest_mm3: float = 15.0
    sure: float = 0.85
    flair: float = 2.5
    growth_mm: float = 3.0
    sure_core: float = 0.2

    def select(
        self,
        lesion: NDArray[np.float32],
        flair: NDArray[np.float32],
        structure: NDArray[np.uint8],
        spacing_mm: float = 1.0,
    ) -> LesionSelection:
        """Select the lesions.

        ``lesion``: probability; ``flair`` in units of white matter; ``structure`` numbers; all (k, j, i).
        """
        mask = (lesion > self.probability) & np.isin(structure, BRAIN)
        labels, parts = lesion_locations.find_lesions(mask, structure, spacing_mm, smallest_mm3=self.smallest_mm3)
        above, boxes = robust_deviation(flair, structure), ndimage.find_objects(labels, max_label=len(parts))
        sure, supported = [], []
        for part, box in zip(parts, boxes, strict=True):
            inside = labels[box] == part.label
            if float(lesion[box][inside].mean()) >= self.sure:
                sure.append(part)
                if float(np.quantile(above[box][inside], 0.9)) >= self.flair:
                    supported.append(part.label)
        cores = np.isin(labels, supported) | self._find_cores(lesion, flair, structure, spacing_mm)
        unsure = {part.label for part in parts} - {part.label for part in sure} - set(np.unique(labels[cores]).tolist())
        grown = lesion_locations.find_lesions(
            self._grow(cores, flair, structure, spacing_mm), structure, spacing_mm, smallest_mm3=self.smallest_mm3
        )
        return LesionSelection(*grown, len(unsure), len(sure) - len(supported))

    def _find_cores(
        self, lesion: NDArray[np.float32], flair: NDArray[np.float32], structure: NDArray[np.uint8], spacing_mm: float
    ) -> Mask:
        """Return the bright cores to which the network gives enough probability."""
        labels, count = ndimage.label(find_bright_cores(flair, structure, spacing_mm), np.ones((3, 3, 3)))
        numbers = np.arange(1, count + 1)
        return np.isin(labels, numbers[np.asarray(ndimage.mean(lesion, labels, numbers)) >= self.sure_core])

    def _grow(self, cores: Mask, flair: NDArray[np.float32], structure: NDArray[np.uint8], spacing_mm: float) -> Mask:
        """Return the parts with their rims in white matter; parts that meet become one."""
        white = np.isin(structure, [number(name) for name in WHITE])
        if not self.growth_mm or not cores.any() or not (structure == number(WHITE[0])).any():
            return cores
        near = ndimage.distance_transform_edt(~cores) * spacing_mm <= self.growth_mm
        level = float(np.median(flair[structure == number(WHITE[0])]))
        return grow_to_half_level(cores, flair, level, white & near)


def robust_deviation(image: NDArray[np.float32], structure: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return each voxel's distance above the median of its structure, in that structure's robust sd."""
    level, sd = structure_statistics(image, structure)
    return np.asarray((image - level[structure]) / sd[structure])


def structure_statistics(
    image: NDArray[np.float32], structure: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return median and robust sd of each structure of the brain, by its number (0 and 1 for others)."""
    level, sd = np.zeros(256, np.float32), np.ones(256, np.float32)
    for n in BRAIN:
        values = image[structure == n]
        if values.size:
            level[n] = np.median(values)
            sd[n] = max(1.4826 * float(np.median(np.abs(values - level[n]))), LEAST_SD)
    return level, sd
