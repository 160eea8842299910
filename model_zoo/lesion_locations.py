"""Location classes of lesions, by which multiple sclerosis is diagnosed, from a mask and the structures.

The classes are those of the McDonald criteria 2017 (Thompson et al., Lancet Neurol. 17, 2018): juxtacortical touches
the cortex, cortical lies mostly in it, periventricular touches the lateral ventricles.
Distances allow for partial volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_zoo.structures import CORTEX, number

__all__ = ["LOCATIONS", "Lesion", "classify_location", "find_lesions"]

LOCATIONS = ("periventricular", "juxtacortical", "deep", "infratentorial", "cortical")
PERIVENTRICULAR_MM, JUXTACORTICAL_MM = 3.0, 1.5
INFRATENTORIAL = tuple(number(name) for name in ("cerebellar cortex", "cerebellar white matter", "brain stem"))


@dataclass(frozen=True)
class Lesion:
    """One connected component: its ``label`` in the returned map, volume, centre in voxels (k, j, i) and location."""

    label: int
    volume_mm3: float
    centre: tuple[float, float, float]
    location: str


def find_lesions(
    mask: NDArray[np.bool_], structure: NDArray[np.uint8], spacing_mm: float = 1.0, *, smallest_mm3: float = 10.0
) -> tuple[NDArray[np.int32], tuple[Lesion, ...]]:
    """Return the connected components (26 neighbours) of ``mask`` (k, j, i) as labels 1, 2, ... and as lesions.

    ``structure``: the numbers of ``structures.STRUCTURES`` on the same grid of isotropic ``spacing_mm``; lesions count
    as white matter there. Components under ``smallest_mm3`` are dropped. Raises ValueError where the shapes differ.
    """
    if mask.shape != structure.shape:
        raise ValueError(f"mask {mask.shape} and structure {structure.shape} are not on one grid")
    components, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    labels = np.zeros(mask.shape, np.int32)
    lesions: list[Lesion] = []
    margin = int(np.ceil((PERIVENTRICULAR_MM + 1) / spacing_mm))
    for index, box in enumerate(ndimage.find_objects(components), start=1):
        inside = components[box] == index
        volume_mm3 = float(inside.sum()) * spacing_mm**3
        if volume_mm3 < smallest_mm3:
            continue
        labels[box][inside] = len(lesions) + 1
        centre = [float(c) + s.start for c, s in zip(ndimage.center_of_mass(inside), box, strict=True)]
        near = tuple(slice(max(0, s.start - margin), s.stop + margin) for s in box)
        location = classify_location(components[near] == index, structure[near], spacing_mm)
        lesions.append(Lesion(len(lesions) + 1, volume_mm3, (centre[0], centre[1], centre[2]), location))
    return labels, tuple(lesions)


def classify_location(lesion: NDArray[np.bool_], structure: NDArray[np.uint8], spacing_mm: float = 1.0) -> str:
    """Return the class of the one lesion in ``lesion``; ``structure`` on the same grid, with 4 mm around it at least.

    In this order: infratentorial (most of it in brain stem or cerebellum), cortical (most of it in cortex),
    periventricular (within 3 mm of the lateral ventricles), juxtacortical (within 1.5 mm of cortex), deep.
    """
    own = structure[lesion]
    if np.isin(own, INFRATENTORIAL).mean() > 0.5:
        return "infratentorial"
    if np.isin(own, CORTEX).mean() > 0.5:
        return "cortical"
    distance_mm = ndimage.distance_transform_edt(~lesion) * spacing_mm
    if (distance_mm[structure == number("lateral ventricles")] <= PERIVENTRICULAR_MM).any():
        return "periventricular"
    if (distance_mm[np.isin(structure, CORTEX)] <= JUXTACORTICAL_MM).any():
        return "juxtacortical"
    return "deep"
