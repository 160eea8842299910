"""Coded concepts that several pipelines use."""

from __future__ import annotations

from model_zoo.structures import Structure
from pipelines.contract import Code

__all__ = [
    "ANATOMICAL_STRUCTURE",
    "BRAIN",
    "CEREBRAL_CORTEX",
    "LOW_CONFIDENCE",
    "MAXIMUM",
    "MEAN",
    "NUMBER_OF_LESIONS",
    "PEAK",
    "PROBABILITY",
    "SPATIAL",
    "STANDARD_DEVIATION",
    "SUV_BW",
    "SUV_BW_UNIT",
    "VOLUME",
    "encode_structure",
]

STANDARD_DEVIATION = Code("386136009", "SCT", "Standard Deviation")
VOLUME = Code("118565006", "SCT", "Volume")
PROBABILITY = Code("122157", "DCM", "Probability")
NUMBER_OF_LESIONS = Code("246206008", "SCT", "Number of lesions")
SUV_BW = Code("126401", "DCM", "SUVbw")
SUV_BW_UNIT = "g/ml{SUVbw}"
"""UCUM, CID 85."""

MEAN = Code("373098007", "SCT", "Mean")  # PS3.16 CID 7464
MAXIMUM = Code("56851009", "SCT", "Maximum")
PEAK = Code("126031", "DCM", "Peak Value Within ROI")

ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")  # PS3.16 CID 7150
SPATIAL = Code("309825002", "SCT", "Spatial and Relational Concept")
BRAIN = Code("12738006", "SCT", "Brain")
CEREBRAL_CORTEX = Code("40146001", "SCT", "Cerebral cortex")
LOW_CONFIDENCE = Code("LOWCONF", "99DICOMNODE", "Low-confidence region of a result")


def encode_structure(structure: Structure) -> Code:
    """Return the code of a structure; a region of the cortex is cerebral cortex with the region as modifier."""
    code = Code(structure.code_value, structure.code_scheme, structure.code_meaning)
    if not structure.is_part_of_cortex:
        return code
    return Code(CEREBRAL_CORTEX.value, CEREBRAL_CORTEX.scheme, CEREBRAL_CORTEX.meaning, (code,))
