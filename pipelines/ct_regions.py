"""Lung, fat, soft tissue and bone of the CT of a PET/CT, laid upon its PET.

Nothing is moved: the two scans of one examination share a frame of reference, and a CT of another one is not used.
Whether the bodies of both lie upon each other is seen in the images (Dice, where the CT reaches). Tissues are those of
``model_zoo.ct_tissues``: they hold for regional numbers, and for a network that was trained with them.
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

from model_zoo.ct_tissues import BONE, CT_TISSUES, LUNG, NAMES, classify, without_skin
from pipelines import resampling
from pipelines.contract import Code, Grid, Refused, Volume
from pipelines.uptake import Region, find_body

__all__ = ["CtTissues", "find_ct_tissues"]

LEAST_DICE = 0.75
ENCLOSED_MM2 = 4000.0
BEYOND_SKULL_MM = 40.0


@dataclass(frozen=True)
class CtTissues:
    """``on_pet`` uint8 (k, j, i): numbers of ``CT_TISSUES`` on ``grid``, the PET's. ``dice``: of the two bodies.

    ``same_frame``: whether both name one frame of reference; None where it is not known. ``contrast``: agent was given.
    """

    on_pet: NDArray[np.uint8]
    grid: Grid
    dice: float
    same_frame: bool | None = None
    contrast: bool = False

    @property
    def is_registered(self) -> bool:
        return self.dice >= LEAST_DICE and self.same_frame is not False

    @property
    def names(self) -> tuple[str, ...]:
        """What a network may know of it."""
        return NAMES

    @property
    def words(self) -> str:
        if self.same_frame is False:
            return "The CT has another frame of reference (0020,0052) than the PET and was not used."
        if not self.is_registered:
            return f"The body of the CT does not lie upon that of the PET (Dice {self.dice:.2f}): it was not used."
        agent = " Contrast agent was given: bone may hold vessels." if self.contrast else ""
        head = " Of the head the network was told nothing by CT." if _of_the_head(self.on_pet, self.grid).any() else ""
        return (
            f"Tissues by CT number, from the CT of the examination (Dice of the bodies {self.dice:.2f}).{agent}{head}"
        )

    def maps(self, names: Sequence[str], onto: Grid) -> Tensor:
        """Shares of the tissues of that name (r, k, j, i) on a lattice; zero where a name is none by CT, and in heads.

        Networks learn CT numbers in torsos: told that all within a skull is one soft tissue, they make the brain one
        (2 dB worse than told nothing at half the dose, 1 dB at a tenth).
        """
        found = torch.zeros((len(names), *onto.shape))
        torso = ~_of_the_head(self.on_pet, self.grid)[:, None, None]
        for tissue in CT_TISSUES:
            if tissue.name in names:
                mask = torch.from_numpy((self.on_pet == tissue.number) & torso).float()[None]
                found[names.index(tissue.name)] = resampling.resample(mask, self.grid, onto)[0]
        return found

    def structures(self) -> list[Region]:
        """Every tissue on the PET's grid."""
        return [
            Region(each.name, self.on_pet == each.number, Code(each.code_value, "SCT", each.code_meaning))
            for each in CT_TISSUES
        ]


def find_ct_tissues(ct: Volume, pet: Volume, facts: Mapping[str, Any]) -> CtTissues:
    """Classify ``ct`` (``facts``: of its series) and lay it upon ``pet``. Raises Refused where it is no CT in HU."""
    if facts.get("modality", "CT") != "CT" or ct.unit != "[hnsf'U]":
        raise Refused(f"the input ct is {facts.get('modality', 'an image')} in {ct.unit}, not a CT in Hounsfield units")
    labels = resampling.resample_labels(classify(ct.data), ct.grid, pet.grid, len(NAMES))
    seen = find_body(pet)
    labels[(labels == LUNG) & ~seen] = 0  # the foam of the couch has its CT number
    labels = without_skin(labels)
    body = _body(labels, seen)
    labels[~body] = 0
    dice = _dice(body, seen, _field(ct.grid, pet.grid))
    return CtTissues(labels, pet.grid, dice, facts.get("same_frame"), bool(facts.get("contrast_agent")))


def _of_the_head(labels: NDArray[np.uint8], grid: Grid) -> NDArray[np.bool_]:
    """Planes (k,) within 4 cm of one on which bone encloses at least 40 cm^2: the skull, and no other bone."""
    area_mm2 = grid.spacing_mm[1] * grid.spacing_mm[2]
    bone = labels == BONE
    enclosed = [ndimage.binary_fill_holes(ndimage.binary_closing(plane)) & ~plane for plane in bone]
    skull = np.array([plane.sum() * area_mm2 >= ENCLOSED_MM2 for plane in enclosed])
    reach = round(BEYOND_SKULL_MM / grid.spacing_mm[0])
    found: NDArray[np.bool_] = ndimage.binary_dilation(skull, iterations=reach) if reach else skull
    return found


def _body(labels: NDArray[np.uint8], seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pieces of tissue, with what they enclose in each slice, that lie in the PET's body: the couch does not."""
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in labels > 0])
    pieces, count = ndimage.label(ndimage.binary_opening(filled, np.ones((1, 3, 3), bool)))
    shares = np.asarray(ndimage.mean(seen, pieces, range(1, count + 1)))
    return np.isin(pieces, 1 + np.flatnonzero(shares > 0.5))


def _field(ct: Grid, onto: Grid) -> NDArray[np.bool_]:
    """Where the CT reaches."""
    to_ct = np.linalg.solve(ct.affine_mm, onto.affine_mm)
    k, j, i = np.ogrid[tuple(slice(n) for n in onto.shape)]
    reached = np.ones(onto.shape, bool)
    for row, size in zip(to_ct, reversed(ct.shape), strict=False):
        place = row[0] * i + row[1] * j + row[2] * k + row[3]
        reached &= (place > -0.5) & (place < size - 0.5)
    return reached


def _dice(body: NDArray[np.bool_], seen: NDArray[np.bool_], field: NDArray[np.bool_]) -> float:
    """Of the two bodies within the field; 0 where it holds neither."""
    sizes = int((body & field).sum()) + int((seen & field).sum())
    return 2 * int((body & seen & field).sum()) / sizes if sizes else 0.0
