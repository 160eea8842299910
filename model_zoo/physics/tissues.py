"""Tissue classes of the head: the index of a class in ``TISSUES`` is its number in tissue maps and tissue tables."""

from __future__ import annotations

__all__ = ["TISSUES", "tissue_of"]

TISSUES: dict[str, tuple[int, ...]] = {
    "air": (0,),
    "white matter": (2, 41, 7, 46),
    "cortex": (3, 42),
    "cerebellar cortex": (8, 47),
    "thalamus": (10, 49, 28, 60),
    "caudate": (11, 50, 26, 58),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "hippocampus": (17, 53, 18, 54),
    "csf": (4, 43, 5, 44, 14, 15, 24, 72),
    "lesion": (25, 57),
    "brain stem": (16,),
    "bone": (515, 516),
    "fat": (507,),
    "muscle": (502, 508, 509, 512, 514, 530),
    "marrow": (511,),
    "eye": (506,),
    "vessel": (30, 62, 31, 63, 85, 136, 137, 163, 164),
}
"""Tissue class by name: its index here is the value in ``read_tissue_map``; the tuple holds the label map's numbers."""

_TISSUE_OF_STRUCTURE = {
    "cerebral white matter": "white matter",
    "lateral ventricles": "csf",
    "third and fourth ventricles": "csf",
    "cerebellar white matter": "white matter",
    "amygdala": "hippocampus",
    "ventral diencephalon": "thalamus",
}


def tissue_of(structure: str) -> int:
    """Return the tissue class of a structure of ``model_zoo.structures`` by name; cortical regions are cortex."""
    name = _TISSUE_OF_STRUCTURE.get(structure, structure)
    return list(TISSUES).index(name if name in TISSUES else "cortex")
