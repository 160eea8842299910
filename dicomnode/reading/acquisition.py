"""Facts of an image acquisition for pipelines and readers of results. No names, identifiers, dates or free text;
of the patient only what quantities depend on: age, sex, weight and size.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomnode.datasets.ages import parse_age
from dicomnode.datasets.lossy import is_lossy
from dicomnode.errors import InputRefused
from dicomnode.reading import kinds, tracer, vendor_reconstruction
from dicomnode.reading.frames import Frame

__all__ = ["component", "facts", "plane"]

_NUMBERS = MappingProxyType({
    "tr_ms": "RepetitionTime", "te_ms": "EchoTime", "ti_ms": "InversionTime", "flip_angle_deg": "FlipAngle",
    "field_strength_t": "MagneticFieldStrength", "diffusion_b_value": "DiffusionBValue",
    "echo_train_length": "EchoTrainLength",
    "weight_kg": "PatientWeight", "size_m": "PatientSize",
})  # fmt: skip
_GE_COMPONENT = (0x0043, "GEMS_PARM_01", 0x2F)
_COMPONENTS = ("MAGNITUDE", "PHASE", "REAL", "IMAGINARY")
_COMPONENT_WORDS = MappingProxyType({
    "P": "PHASE", "PHASE": "PHASE", "PHASE MAP": "PHASE", "R": "REAL", "REAL": "REAL", "I": "IMAGINARY",
    "IMAGINARY": "IMAGINARY", "M": "MAGNITUDE", "MAGNITUDE": "MAGNITUDE",
})  # fmt: skip
_SAME = 1e-3
"""Relative; what differs more, such as the repetition times of a triggered acquisition, is no fact of the volume."""
_POSITIVE = ("weight_kg", "size_m", "field_strength_t")  # zero stands for unknown
_WORDS = MappingProxyType({
    "modality": "Modality", "manufacturer": "Manufacturer", "model": "ManufacturerModelName",
    "body_part": "BodyPartExamined", "image_type": "ImageType", "acquisition_type": "MRAcquisitionType",
    "scanning_sequence": "ScanningSequence", "sequence_variant": "SequenceVariant",
    "patient_position": "PatientPosition", "sex": "PatientSex",
})  # fmt: skip


def facts(frames: Sequence[Frame]) -> dict[str, Any]:
    """Return the facts that the frames state, by name with the unit in it; of enhanced MR the effective times.

    Facts that no frame states are absent. The frames agree on each fact (``agreement``), but not all need state it.
    """
    found: dict[str, Any] = {}
    for fact, keyword in _WORDS.items():
        value = _first_value(frames, keyword)
        if value is not None:
            found[fact] = str(value) if isinstance(value, str) else tuple(map(str, value))
    for fact, keyword in _NUMBERS.items():
        numbers = [each for frame in frames if (each := frame.number_of(keyword)) is not None]
        if (
            numbers
            and np.allclose(numbers, numbers[0], rtol=_SAME, atol=0)
            and (numbers[0] > 0 or fact not in _POSITIVE)
        ):
            found[fact] = numbers[0]
    found |= _enhanced(frames) | _components(frames, found.get("image_type", ()))
    orientation = frames[0].numbers("ImageOrientationPatient", 6)
    if orientation is not None:
        found["plane"] = plane(orientation.reshape(2, 3))
    age = parse_age(str(_first_value(frames, "PatientAge") or ""))
    if age is not None:
        found["age_years"] = age
    if frames[0].get("ContrastBolusAgent"):
        found["contrast_agent"] = True
    if any(is_lossy(frame.header) for frame in frames):
        found["lossy_compressed"] = True
    found |= vendor_reconstruction.facts(frames)
    return found | (tracer.facts(frames) if found.get("modality") == "PT" else {})


def component(frame: Frame) -> str:
    """Return the part of the complex signal that an MR frame shows, as DICOM's term (PS3.3 C.8.13.3.1.1), or "".

    GE says so in a private element only, Siemens and Philips in Image Type.
    """
    if component_value := str(frame.get("ComplexImageComponent") or ""):
        return component_value
    group, creator, element = _GE_COMPONENT
    try:
        number = int(np.atleast_1d(frame.header.private_block(group, creator)[element].value)[0])
    except (KeyError, TypeError, ValueError, IndexError):
        number = -1
    if number in range(len(_COMPONENTS)):
        return _COMPONENTS[number]
    words = kinds.words_of(frame.get("FrameType"), frame.get("ImageType"))
    return next((meaning for term, meaning in _COMPONENT_WORDS.items() if term in words), "")


def _components(frames: Sequence[Frame], image_type: Any) -> dict[str, Any]:
    """Return Image Type with the component of the signal, where that is not the magnitude and not in Image Type yet."""
    found = {component(frame) for frame in frames}
    if len(found) > 1:
        raise InputRefused(f"the slices show several components of the signal: {', '.join(sorted(found - {''}))}")
    part = found.pop()
    words = tuple(map(str, np.atleast_1d(image_type)))
    return {"image_type": (*words, part)} if part not in ("", "MAGNITUDE", *words) else {}


def _first_value(frames: Sequence[Frame], keyword: str) -> Any:
    return next((value for frame in frames if (value := frame.get(keyword)) is not None), None)


def plane(directions: NDArray[np.float64]) -> str:
    """Return "axial", "sagittal" or "coronal", with "oblique" where the normal is over five degrees off the axis."""
    normal = np.cross(directions[0], directions[1])
    normal = normal / max(float(np.linalg.norm(normal)), 1e-12)
    axis = int(np.argmax(np.abs(normal)))
    term = ("sagittal", "coronal", "axial")[axis]
    return term if abs(normal[axis]) > np.cos(np.radians(5)) else f"oblique {term}"


def _enhanced(frames: Sequence[Frame]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    te = next((each for frame in frames if (each := frame.number_of("EffectiveEchoTime")) is not None), None)
    if te is not None:
        found["te_ms"] = te
    inversions = _first_value(frames, "InversionTimes")
    if inversions is not None:
        times = tuple(float(each) for each in np.atleast_1d(inversions))
        found |= {"ti_ms": times[0]} if len(times) == 1 else {"inversion_times_ms": times}
    regions = {
        str(each[0].get("CodeMeaning") or "") for frame in frames if (each := frame.get("AnatomicRegionSequence"))
    }
    if len(regions) == 1 and any(regions):
        found["region"] = regions.pop()
    return found
