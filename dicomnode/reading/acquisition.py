"""Facts of an image acquisition that pipelines and readers of results want. No names, identifiers, dates or free text;
of the patient only what quantities depend on: age, sex, weight and size.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomnode.reading import tracer
from dicomnode.reading.frames import Frame

__all__ = ["facts", "plane"]

_NUMBERS = MappingProxyType({
    "tr_ms": "RepetitionTime", "te_ms": "EchoTime", "ti_ms": "InversionTime", "flip_angle_deg": "FlipAngle",
    "field_strength_t": "MagneticFieldStrength", "diffusion_b_value": "DiffusionBValue",
    "echo_train_length": "EchoTrainLength",
    "weight_kg": "PatientWeight", "size_m": "PatientSize",
})  # fmt: skip
_POSITIVE = ("weight_kg", "size_m", "field_strength_t")  # zero stands for unknown
_WORDS = MappingProxyType({
    "modality": "Modality", "manufacturer": "Manufacturer", "model": "ManufacturerModelName",
    "body_part": "BodyPartExamined", "image_type": "ImageType", "acquisition_type": "MRAcquisitionType",
    "scanning_sequence": "ScanningSequence", "sequence_variant": "SequenceVariant",
    "patient_position": "PatientPosition", "units": "Units", "decay_correction": "DecayCorrection",
    "corrections": "CorrectedImage", "sex": "PatientSex",
})  # fmt: skip


def facts(frames: Sequence[Frame]) -> dict[str, Any]:
    """What is stated, by name with the unit in it; absent where nothing is. Of enhanced MR the effective times."""
    first = frames[0]
    found: dict[str, Any] = {}
    for fact, keyword in _WORDS.items():
        value = first.get(keyword)
        if value is not None:
            found[fact] = str(value) if isinstance(value, str) else tuple(map(str, value))
    for fact, keyword in _NUMBERS.items():
        number = first.number_of(keyword)
        if number is not None and (number > 0 or fact not in _POSITIVE):
            found[fact] = number
    found |= _enhanced(first)
    orientation = first.numbers("ImageOrientationPatient", 6)
    if orientation is not None:
        found["plane"] = plane(orientation.reshape(2, 3))
    age = _age_years(str(first.get("PatientAge", "")))
    if age is not None:
        found["age_years"] = age
    if first.get("ContrastBolusAgent"):
        found["contrast_agent"] = True
    return found | (tracer.facts(frames) if found.get("modality") == "PT" else {})


def plane(directions: NDArray[np.float64]) -> str:
    """ "axial", "sagittal" or "coronal", with "oblique" where the normal is more than five degrees off the axis."""
    normal = np.cross(directions[0], directions[1])
    normal = normal / max(float(np.linalg.norm(normal)), 1e-12)
    axis = int(np.argmax(np.abs(normal)))
    word = ("sagittal", "coronal", "axial")[axis]
    return word if abs(normal[axis]) > np.cos(np.radians(5)) else f"oblique {word}"


def _enhanced(frame: Frame) -> dict[str, Any]:
    found: dict[str, Any] = {}
    te, ti = frame.number_of("EffectiveEchoTime"), frame.get("InversionTimes")
    if te is not None:
        found["te_ms"] = te
    if ti is not None:
        found["ti_ms"] = float(np.atleast_1d(ti)[0])
    region = frame.get("AnatomicRegionSequence")
    if region and region[0].get("CodeMeaning"):
        found["region"] = str(region[0].CodeMeaning)
    return found


def _age_years(text: str) -> float | None:
    """An Age String: three digits and D, W, M or Y (PS3.5 6.2)."""
    years = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}.get(text[-1:])
    return int(text[:-1]) * years if years and text[:-1].isdigit() else None
