"""Agreement of the slices of a volume in its frame of reference, its echo, its patient and every fact of it.

``pet.check`` compares the attributes that only PET has (unit, corrections).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from dicomnode.datasets.titles import title
from dicomnode.errors import InputRefused
from dicomnode.reading.frames import Frame

__all__ = ["check", "check_concatenations"]

_IDENTITIES = (
    "StudyInstanceUID", "PatientID", "IssuerOfPatientID", "FrameOfReferenceUID", "PatientAge", "PatientSex",
    "PatientWeight", "PatientSize",
)  # fmt: skip
"""Attributes whose values no message quotes."""
_EVERYWHERE = ("StudyInstanceUID", "PatientID", "FrameOfReferenceUID", "Modality", "RescaleType")
"""Attributes that all slices state or none; of the others some slices may state nothing."""
_NUMBERS = (
    "SliceThickness", "EchoTime", "EffectiveEchoTime", "RepetitionTime", "InversionTime", "InversionTimes", "FlipAngle",
    "DiffusionBValue", "MagneticFieldStrength", "EchoTrainLength", "KVP",
)  # fmt: skip
_WORDS = (
    "Modality", "SOPClassUID", "PhotometricInterpretation", "RescaleType", "ImageType", "FrameType",
    "ComplexImageComponent", "EchoNumbers", "StackID", "TemporalPositionIdentifier", "TemporalPositionIndex",
    "Manufacturer", "ManufacturerModelName", "BodyPartExamined", "PatientPosition", "MRAcquisitionType",
    "ScanningSequence", "SequenceVariant", "ConvolutionKernel",
)  # fmt: skip
_UNORDERED = ("ScanningSequence", "SequenceVariant")
"""Attributes whose values may stand in any order."""
_PRESENT = ("RescaleSlope", "ModalityLUTSequence", "RealWorldValueMappingSequence", "ContrastBolusAgent")
"""Attributes whose values may differ, but which all slices have or none."""
_TRIGGERS = frozenset({"CG", "PPG", "RG"})
"""Scan Options (0018,0022) with which the heart or the breath sets the time between excitations."""
_RELATIVE = 1e-3


def check(frames: Sequence[Frame]) -> None:
    """Raise InputRefused for the first attribute that differs among the frames of a volume."""
    for keyword in (*_IDENTITIES, *_WORDS, *_NUMBERS):
        values = [frame.get(keyword) for frame in frames]
        found = {_plain(each, keyword in _UNORDERED) for each in values if each is not None}
        found |= {None} if None in values and keyword in _EVERYWHERE else set()
        if keyword == "RepetitionTime" and all(_is_triggered(frame) for frame in frames):
            continue
        if len(found) > 1 and not (keyword in _NUMBERS and _nearly(found)):
            quoted = "" if keyword in _IDENTITIES else f" ({_quoted(found)})"
            raise InputRefused(f"{title(keyword)} differs among the slices{quoted}; a volume has one")
    for keyword in _PRESENT:
        if len({_has(frame, keyword) for frame in frames}) > 1:
            raise InputRefused(f"some slices have {title(keyword)} and others have none")


def check_concatenations(headers: Iterable[Dataset]) -> None:
    """Raise InputRefused where a part of a concatenation is missing (PS3.3 C.7.6.16.2.2.4)."""
    parts: dict[str, list[Dataset]] = {}
    for ds in headers:
        if uid := ds.get("ConcatenationUID"):
            parts.setdefault(str(uid), []).append(ds)
    for held in parts.values():
        numbers = {int(ds.get("InConcatenationNumber") or 0) for ds in held}
        total = max(int(ds.get("InConcatenationTotalNumber") or 0) for ds in held)
        if numbers != set(range(1, max(total, *numbers) + 1)):
            raise InputRefused(
                f"parts of a concatenation are missing: {len(numbers)} of {max(total, *numbers)} are there, by "
                "In-concatenation Number (0020,9162)"
            )


def _is_triggered(frame: Frame) -> bool:
    return not _TRIGGERS.isdisjoint(np.atleast_1d(frame.get("ScanOptions") or []).tolist())


def _has(frame: Frame, keyword: str) -> bool:
    place = frame.item("PixelValueTransformationSequence") if keyword == "RescaleSlope" else None
    return bool(place) or (frame.get(keyword) is not None and frame.get(keyword) != [])


def _plain(value: Any, unordered: bool = False) -> Any:
    """Return the value as something hashable; numbers as numbers, whatever their text."""
    if isinstance(value, str | float | int):
        return value
    found = tuple(_plain(each) for each in value)
    return tuple(sorted(found)) if unordered else found


def _nearly(found: Iterable[Any]) -> bool:
    """Return whether numbers, or lists of them, are the same but for rounding; text that is no number is not."""
    try:
        lists = [np.atleast_1d(np.asarray(each, np.float64)) for each in found]
    except ValueError:
        return False
    if len({each.shape for each in lists}) > 1:
        return False
    return bool(np.allclose(lists, lists[0], rtol=_RELATIVE, atol=0))


def _quoted(found: Iterable[Any]) -> str:
    texts = ["\\".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in found if each is not None]
    return ", ".join(sorted(texts)[:4])
