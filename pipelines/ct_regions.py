"""Lung, fat, soft tissue and bone from the CT of a PET/CT, on the grid of its PET.

The CT is not moved: the two scans of one examination share a frame of reference, and a CT of another frame is not used.
The images show whether the two bodies coincide (Dice, within the CT's field of view). The tissues are those of
``model_zoo.ct_tissues``; they serve for regional numbers, and for a network that was trained with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from model_zoo import similarity
from model_zoo.ct_tissues import BONE, CT_TISSUES, LUNG, NAMES, classify, remove_thin_lung
from pipelines import resampling
from pipelines.contract import Code, Grid, Refused, Volume
from pipelines.uptake import Region, find_body

__all__ = ["CtTissues", "find_ct_tissues"]

LEAST_DICE = 0.75
ENCLOSED_MM2 = 4000.0
BEYOND_SKULL_MM = 40.0


@dataclass(frozen=True)
class CtTissues:
    """Tissues by CT number on a PET.

    ``on_pet`` uint8 (k, j, i): numbers of ``CT_TISSUES`` on ``grid``, the PET's. ``dice``: of the two bodies.
    ``same_frame``: True where both name one frame of reference; None where unknown. ``contrast``: True where a contrast
    agent was given.
    """

    on_pet: NDArray[np.uint8]
    grid: Grid
    dice: float
    same_frame: bool | None = None
    contrast: bool = False

    @property
    def is_registered(self) -> bool:
        """True where CT and PET coincide well enough for the tissues to be used."""
        return self.dice >= LEAST_DICE and self.same_frame is not False

    @property
    def tissue_names(self) -> tuple[str, ...]:
        """Names of the tissues that a network may be given."""
        return NAMES

    @property
    def description(self) -> str:
        if self.same_frame is False:
            return "The CT has another frame of reference (0020,0052) than the PET and was not used."
        if not self.is_registered:
            return f"The body of the CT does not lie upon that of the PET (Dice {self.dice:.2f}): it was not used."
        agent = " Contrast agent was given: bone may hold vessels." if self.contrast else ""
        has_head = bool(_find_head_planes(self.on_pet, self.grid).any())
        head = " Of the head the network was told nothing by CT." if has_head else ""
        return (
            f"Tissues by CT number, from the CT of the examination (Dice of the bodies {self.dice:.2f}).{agent}{head}"
        )

    def resample_fractions(self, names: Sequence[str], onto: Grid) -> Tensor:
        """Return the fractions (r, k, j, i) of the named tissues on a grid; zero for other names, and in heads.

        Networks learn CT numbers in torsos: a map with one soft tissue within the skull makes them restore the brain as
        one tissue (2 dB worse than without maps at half the dose, 1 dB at a tenth).
        """
        fractions = torch.zeros((len(names), *onto.shape))
        torso = ~_find_head_planes(self.on_pet, self.grid)[:, None, None]
        for tissue in CT_TISSUES:
            if tissue.name in names:
                mask = torch.from_numpy((self.on_pet == tissue.number) & torso).float()[None]
                fractions[names.index(tissue.name)] = resampling.resample(mask, self.grid, onto)[0]
        return fractions

    def list_regions(self) -> list[Region]:
        """Return every tissue on the PET's grid."""
        return [
            Region(each.name, self.on_pet == each.number, Code(each.code_value, "SCT", each.code_meaning))
            for each in CT_TISSUES
        ]


def find_ct_tissues(ct: Volume, pet: Volume, facts: Mapping[str, Any]) -> CtTissues:
    """Classify ``ct`` on the grid of ``pet``. Raises Refused where it is no CT in HU.

    ``facts``: facts of the CT series.
    """
    if facts.get("modality", "CT") != "CT" or ct.unit != "[hnsf'U]":
        raise Refused(f"the input ct is {facts.get('modality', 'an image')} in {ct.unit}, not a CT in Hounsfield units")
    labels = resampling.resample_labels(classify(ct.data), ct.grid, pet.grid, len(NAMES))
    pet_body = find_body(pet)
    labels[(labels == LUNG) & ~pet_body] = 0  # the foam of the couch has its CT number
    labels = remove_thin_lung(labels)
    body = _find_body(labels, pet_body)
    labels[~body] = 0
    field = _field_of_view(ct.grid, pet.grid)
    dice = similarity.dice(body & field, pet_body & field)
    return CtTissues(labels, pet.grid, dice, facts.get("same_frame"), bool(facts.get("contrast_agent")))


def _find_head_planes(labels: NDArray[np.uint8], grid: Grid) -> NDArray[np.bool_]:
    """Return the planes (k,) within 4 cm of one on which bone encloses at least 40 cm^2, as only the skull does."""
    area_mm2 = grid.spacing_mm[1] * grid.spacing_mm[2]
    bone = labels == BONE
    enclosed = [ndimage.binary_fill_holes(ndimage.binary_closing(plane)) & ~plane for plane in bone]
    skull = np.array([plane.sum() * area_mm2 >= ENCLOSED_MM2 for plane in enclosed])
    reach = round(BEYOND_SKULL_MM / grid.spacing_mm[0])
    planes: NDArray[np.bool_] = ndimage.binary_dilation(skull, iterations=reach) if reach else skull
    return planes


def _find_body(labels: NDArray[np.uint8], pet_body: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pieces of tissue, filled slice by slice, that lie in the PET's body, as the couch does not."""
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in labels > 0])
    pieces, count = ndimage.label(ndimage.binary_opening(filled, np.ones((1, 3, 3), bool)))
    shares = np.asarray(ndimage.mean(pet_body, pieces, range(1, count + 1)))
    return np.isin(pieces, 1 + np.flatnonzero(shares > 0.5))


def _field_of_view(ct: Grid, onto: Grid) -> NDArray[np.bool_]:
    """Return the mask of the voxels of ``onto`` that lie in the field of view of the CT."""
    to_ct = np.linalg.solve(ct.affine_mm, onto.affine_mm)
    k, j, i = np.ogrid[tuple(slice(n) for n in onto.shape)]
    reached = np.ones(onto.shape, bool)
    for row, size in zip(to_ct, reversed(ct.shape), strict=False):
        place = row[0] * i + row[1] * j + row[2] * k + row[3]
        reached &= (place > -0.5) & (place < size - 0.5)
    return reached
