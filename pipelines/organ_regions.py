"""Organs from a Segmentation of the same examination, on the grid of a PET: chapter 11's conditions at inference.

The Segmentation is not moved: it shares the PET's frame of reference, or is not used. Its segments are recognised by
their SNOMED CT codes; those that no network knows are left out. Which voxels hold an organ is the Segmentation's
answer, and the result names who gave it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines import resampling
from pipelines.contract import Code, Grid, Labels, Refused, Volume
from pipelines.uptake import Region, find_body

__all__ = ["ORGANS", "OrganRegions", "find_organs"]

FEWEST_ORGANS = 5
"""Fewest regions of ORGANS that are told to a network, which was trained with whole torsos: fewer would say that the
others are not there."""
LEAST_INSIDE = 0.9
"""Least share of the organs' voxels that must lie in the body of the PET."""
_VERTEBRAE = (
    "421060004", "51282000", "14806007", "39976000", "113205007", "5329002", "36978003", "36054005", "87391001",
    "64864005", "53733008", "1626008", "73071006", "56401006", "45296009", "62487009", "11068009", "82687006",
    "7610001", "12989004", "23215003", "66794005", "14293000", "36470004", "11994002", "49668003", "54735007",
)  # fmt: skip
_BONES = (
    "272673000", "113197003", "56873002", "51299004", "71341001", "85050009", "79601000", "29836001", "816092008",
)  # fmt: skip
_LUNGS = ("39607008", "44029006", "3341006", "31094006", "45653009", "90572001", "72481006")

ORGANS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "lungs": _LUNGS,
    "heart": ("80891009",),
    "liver": ("10200004",),
    "spleen": ("78961009",),
    "stomach": ("69695003",),
    "kidneys": ("64033007", "18639004", "9846003"),
    "spine": _VERTEBRAE,
    "bone": _BONES,
    "bladder": ("89837001",),
})  # fmt: skip
"""SNOMED CT codes of the segments that are a region, by the region's name in ``standard_dose_pet``; the first names
it."""


@dataclass(frozen=True)
class OrganRegions:
    """Organs of a Segmentation on a PET.

    ``labels`` uint8 (k, j, i) on ``grid``, the Segmentation's: place in ORGANS plus one; ``on_pet``: the same on the
    PET's grid. ``inside``: share of the organs in the PET's body; ``same_frame``: True where both name one frame of
    reference, None where unknown; ``origin``: who segmented; ``left_out``: labels of other segments.
    """

    labels: NDArray[np.uint8]
    grid: Grid
    on_pet: NDArray[np.uint8]
    inside: float
    same_frame: bool | None
    origin: str
    left_out: tuple[str, ...]

    @property
    def is_registered(self) -> bool:
        """True where the organs may be used: their frame of reference is the PET's, and its body holds them."""
        return self.same_frame is True and self.inside >= LEAST_INSIDE

    @property
    def organ_names(self) -> tuple[str, ...]:
        """Names of the organs on the PET's grid."""
        return tuple(name for number, name in enumerate(ORGANS, start=1) if (self.on_pet == number).any())

    @property
    def tissue_names(self) -> tuple[str, ...]:
        """Names of the organs that a network may be given: none where too few were segmented."""
        return tuple(ORGANS) if len(self.organ_names) >= FEWEST_ORGANS else ()

    @property
    def description(self) -> str:
        if self.same_frame is not True:
            return "The segmentation does not name the PET's frame of reference (0020,0052); its organs were not used."
        if not self.is_registered:
            return f"Only {100 * self.inside:.0f} % of the segmented organs lie in the PET's body; they were not used."
        remark = "" if self.tissue_names else f" Fewer than {FEWEST_ORGANS}: they serve for numbers only."
        return (
            f"Organs from the segmentation of the examination ({self.origin}): {', '.join(self.organ_names)}.{remark}"
        )

    def resample_fractions(self, names: Sequence[str], onto: Grid) -> Tensor:
        """Return the fractions (r, k, j, i) of the named organs on a grid; zero for other names."""
        fractions = torch.zeros((len(names), *onto.shape))
        for number, name in enumerate(ORGANS, start=1):
            if name in names:
                mask = torch.from_numpy(self.labels == number).float()[None]
                fractions[names.index(name)] = resampling.resample(mask, self.grid, onto)[0]
        return fractions

    def list_regions(self) -> list[Region]:
        """Return every organ on the PET's grid."""
        return [
            Region(name, self.on_pet == number, Code(codes[0], "SCT", _MEANINGS[name]))
            for number, (name, codes) in enumerate(ORGANS.items(), start=1)
        ]


_MEANINGS = MappingProxyType({
    "lungs": "Lung", "heart": "Heart", "liver": "Liver", "spleen": "Spleen", "stomach": "Stomach",
    "kidneys": "Kidney", "spine": "Spine", "bone": "Bone", "bladder": "Bladder",
})  # fmt: skip


def find_organs(segmentation: Labels, pet: Volume, facts: Mapping[str, Any]) -> OrganRegions:
    """Find the known organs of a segmentation. ``facts``: of the segmentation. Raises Refused where it holds none."""
    places = {code: number for number, codes in enumerate(ORGANS.values(), start=1) for code in codes}
    table = np.zeros(1 + max((each.number for each in segmentation.segments), default=0), np.uint8)
    for segment in segmentation.segments:
        if segment.type.scheme == "SCT":
            table[segment.number] = places.get(segment.type.value, 0)
    labels = table[segmentation.data]
    if not labels.any():
        raise Refused("the segmentation holds none of the organs that the model knows, by their SNOMED CT codes")
    on_pet = resampling.resample_labels(labels, segmentation.grid, pet.grid, len(ORGANS))
    voxels = int((on_pet > 0).sum())
    inside = float((on_pet > 0)[find_body(pet)].sum() / voxels) if voxels else 0.0
    left_out = tuple(each.label for each in segmentation.segments if not table[each.number])
    origin = ", ".join(facts.get("algorithms", ())) or "by an unknown method"
    return OrganRegions(labels, segmentation.grid, on_pet, inside, facts.get("same_frame"), origin, left_out)
