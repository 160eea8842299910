"""The structures that the anatomy model distinguishes: one table for simulator, network, pipelines and results.

Left and right share a number. Codes are SNOMED CT and DICOM ones of PS3.16 CID 7140 and 7153; where neither list holds
exactly the segmented structure the code is ours (scheme ``99DICOMNODE``). The code of a region of the cortex names a
lobe or gyri, of whose tissue only the cortex is meant. White-matter lesions count as white matter.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BRAIN", "CORTEX", "COUNT", "STRUCTURES", "TISSUE_GROUPS", "Structure", "number"]


@dataclass(frozen=True)
class Structure:
    """A structure: number in label arrays (0 is all else), tissue (grey matter, white matter or csf) and code."""

    number: int
    name: str
    tissue: str
    code_value: str
    code_scheme: str
    code_meaning: str

    @property
    def is_part_of_cortex(self) -> bool:
        """True where the code names a region of which the structure is the cerebral cortex."""
        return self.number in CORTEX and self.name != "insula"


def _table(*rows: tuple[str, str, str, str, str]) -> tuple[Structure, ...]:
    return tuple(Structure(number, *row) for number, row in enumerate(rows, start=1))


STRUCTURES = _table(
    ("cerebral white matter", "white matter", "68523003", "SCT", "Cerebral White Matter"),
    ("frontal cortex", "grey matter", "83251001", "SCT", "Frontal lobe"),
    ("sensorimotor cortex", "grey matter", "SENSORIMOTOR", "99DICOMNODE", "Precentral and postcentral gyrus"),
    ("parietal cortex", "grey matter", "16630005", "SCT", "Parietal lobe"),
    ("precuneus", "grey matter", "PRECUNEUS", "99DICOMNODE", "Precuneus"),
    ("cingulate cortex", "grey matter", "CINGULATE", "99DICOMNODE", "Cingulate gyrus"),
    ("temporal cortex", "grey matter", "78277001", "SCT", "Temporal lobe"),
    (
        "parahippocampal cortex",
        "grey matter",
        "PARAHIPPOCAMPAL",
        "99DICOMNODE",
        "Parahippocampal and entorhinal gyrus",
    ),
    ("occipital cortex", "grey matter", "31065004", "SCT", "Occipital lobe"),
    ("insula", "grey matter", "36169008", "SCT", "Insula"),
    ("lateral ventricles", "csf", "66720007", "SCT", "Lateral Ventricle"),
    ("third and fourth ventricles", "csf", "VENTRICLES34", "99DICOMNODE", "Third and fourth ventricles"),
    ("csf", "csf", "33930006", "SCT", "Cranial Subarachnoid Space"),
    ("cerebellar cortex", "grey matter", "25991003", "SCT", "Cerebellar Cortex"),
    ("cerebellar white matter", "white matter", "33060004", "SCT", "Cerebellar White Matter"),
    ("thalamus", "grey matter", "42695009", "SCT", "Thalamus"),
    ("caudate", "grey matter", "CAUDATEACCUMBENS", "99DICOMNODE", "Caudate nucleus and nucleus accumbens"),
    ("putamen", "grey matter", "89278009", "SCT", "Putamen"),
    ("pallidum", "grey matter", "14738005", "SCT", "Globus Pallidus"),
    ("hippocampus", "grey matter", "5366008", "SCT", "Hippocampus"),
    ("amygdala", "grey matter", "4958002", "SCT", "Amygdala"),
    ("brain stem", "white matter", "119238007", "SCT", "Brain Stem"),
    ("ventral diencephalon", "grey matter", "110700", "DCM", "Ventral Diencephalon"),
)
"""Structures in the order of their numbers, from 1.

Caudate includes the accumbens, parahippocampal cortex the entorhinal one; csf is the fluid outside the ventricles."""

COUNT = len(STRUCTURES)

_NUMBERS = {structure.name: structure.number for structure in STRUCTURES}


def number(name: str) -> int:
    """Return the number of the structure of that name. Raises KeyError naming all structures."""
    if name not in _NUMBERS:
        raise KeyError(f"no structure {name!r}; there are: {', '.join(_NUMBERS)}")
    return _NUMBERS[name]


CORTEX = tuple(range(number("frontal cortex"), number("insula") + 1))
BRAIN = tuple(s.number for s in STRUCTURES if s.name != "csf")
TISSUE_GROUPS = {
    tissue: tuple(s.number for s in STRUCTURES if s.tissue == tissue)
    for tissue in ("grey matter", "white matter", "csf")
}
