"""One image frame, and what is said of it wherever its class keeps that: at the top of a single-frame data set, or in
the functional groups of an enhanced one (PS3.3 C.7.6.16).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array

from dicomnode.errors import InputRefused
from dicomnode.reading import pet
from dicomnode.reading.unreadable import decode

__all__ = ["Frame", "frames_of", "header", "name", "stored", "unit", "values"]

_MACROS = MappingProxyType({
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "FrameType": "MRImageFrameTypeSequence",
    "ComplexImageComponent": "MRImageFrameTypeSequence",
    "EffectiveEchoTime": "MREchoSequence",
    "RepetitionTime": "MRTimingAndRelatedParametersSequence",
    "FlipAngle": "MRTimingAndRelatedParametersSequence",
    "InversionTimes": "MRModifierSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "StackID": "FrameContentSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "FrameAcquisitionDateTime": "FrameContentSequence",
    "FrameReferenceDateTime": "FrameContentSequence",
    "FrameAcquisitionDuration": "FrameContentSequence",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
    "AnatomicRegionSequence": "FrameAnatomySequence",
})  # fmt: skip
"""Keyword to the functional group that holds it."""

_UNASSIGNED = ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence")
_MOST_INFLATED = 1032
"""Bytes that one byte of a deflated data set can stand for (RFC 1951)."""
_NO_UNIT = frozenset({"1", "US", "no units"})


@dataclass(frozen=True)
class Frame:
    """Frame ``number`` (from 0) of the instance with this ``header``; ``groups`` are its own functional groups, then
    the shared ones."""

    header: Dataset
    number: int
    groups: tuple[Dataset, ...] = ()

    def get(self, keyword: str, default: Any = None) -> Any:
        """The value for this frame, or ``default`` where it is absent or empty."""
        macro = _MACROS.get(keyword, "")
        places = [item for group in self.groups for item in group.get(macro) or [] if macro]
        for place in (*places, self.header, *self.unassigned()):
            value = place.get(keyword)
            if value is not None and value != "":
                return value
        return default

    def item(self, sequence: str) -> Dataset | None:
        """The first item of a functional group or of a sequence at the top."""
        for place in (*self.groups, self.header, *self.unassigned()):
            if place.get(sequence):
                found: Dataset = place[sequence].value[0]
                return found
        return None

    def unassigned(self) -> Iterator[Dataset]:
        """What a legacy converted object keeps of its source and has no place for (PS3.3 C.7.6.16.2.25)."""
        for group in self.groups:
            for keyword in _UNASSIGNED:
                yield from group.get(keyword) or ()

    def numbers(self, keyword: str, count: int) -> NDArray[np.float64] | None:
        """``count`` finite numbers, or None."""
        value = self.get(keyword)
        value = [value] if count == 1 and value is not None and not isinstance(value, Iterable) else value
        if value is None or isinstance(value, str) or len(value) != count:
            return None
        try:
            found = np.array([float(each) for each in value])
        except (TypeError, ValueError):
            return None
        return found if np.isfinite(found).all() else None

    def number_of(self, keyword: str) -> float | None:
        """One finite number, or None."""
        found = self.numbers(keyword, 1)
        return None if found is None else float(found[0])


def header(path: Path) -> Dataset:
    """The data set without its pixels, every element decoded (``unreadable.decode``). Raises InputRefused.

    pydicom's warnings quote values, which may be a patient's, and are about what does not concern us here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ds = dcmread(path, stop_before_pixels=True)
            decode(ds)
        except (InvalidDicomError, ValueError, TypeError, NotImplementedError, EOFError, OSError) as error:
            raise InputRefused(f"an instance cannot be read as DICOM ({type(error).__name__})") from None
    if _count(ds) > _MOST_INFLATED * path.stat().st_size:
        raise InputRefused(f"{name(ds)}: {ds.NumberOfFrames} frames are announced, more than the file's bytes can hold")
    return ds


def name(ds: Dataset) -> str:
    """How messages call an instance: by its number in the series, never by anything a person wrote."""
    number = ds.get("InstanceNumber")
    return f"instance {number}" if number is not None else "an instance without a number"


def frames_of(ds: Dataset) -> list[Frame]:
    """The frames of one instance in stored order. Raises InputRefused when the functional groups are not as many."""
    count = _count(ds)
    each = ds.get("PerFrameFunctionalGroupsSequence") or []
    if not each:
        return [Frame(ds, number) for number in range(count)]
    if len(each) != count:
        raise InputRefused(f"{name(ds)}: {count} frames, but functional groups for {len(each)}")
    shared = tuple(ds.get("SharedFunctionalGroupsSequence") or [])[:1]
    return [Frame(ds, number, (group, *shared)) for number, group in enumerate(each)]


def _count(ds: Dataset) -> int:
    try:
        return max(int(ds.get("NumberOfFrames") or 1), 1)
    except (TypeError, ValueError):
        raise InputRefused(f"{name(ds)}: NumberOfFrames is no number") from None


def stored(path: Path, ds: Dataset) -> NDArray[Any]:
    """Stored pixel values (frame, row, column), of any transfer syntax that pydicom's plug-ins decode.

    Raises InputRefused when there are too few bytes, or nothing decodes them.
    """
    syntax = ds.file_meta.get("TransferSyntaxUID")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels = pixel_array(path)
        except (AttributeError, EOFError, IndexError, KeyError, NotImplementedError, RuntimeError, ValueError) as error:
            told = str(error).splitlines()[0] if isinstance(error, ValueError | RuntimeError) else type(error).__name__
            syntax_name = syntax.name if syntax else "unknown transfer syntax"
            raise InputRefused(
                f"{name(ds)}: the pixels are damaged, incomplete or not to be decoded ({syntax_name}): {told}"
            ) from None
    shape = (_count(ds), int(ds.Rows), int(ds.Columns))
    if pixels.size != math.prod(shape):
        raise InputRefused(f"{name(ds)}: {pixels.size} pixels decoded, {shape} announced")
    return pixels.reshape(shape)


def values(frame: Frame, pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Stored values (row, column) of one frame in the unit that ``unit`` names.

    By the real world value mapping where that says more than "no units" (PS3.3 C.7.6.16.2.11), else by the Modality
    LUT or rescale (C.11.1), which every viewer applies. PET is rescaled to its Units; Philips' counts become activity
    by its private factor. Philips' private MR scale (2005,100E), which makes series comparable with each other, is
    not applied: what viewers show is what is computed on.
    """
    mapping = _mapping(frame)
    if mapping is not None:
        return _mapped(mapping, pixels)
    place = frame.item("PixelValueTransformationSequence") or frame.header
    if frame.get("Modality") == "PT":
        fault = pet.scale_fault(frame, place)
        if fault:
            raise InputRefused(f"{name(frame.header)}: {fault}")
        slope, intercept = pet.scale(frame, place)
        return (pixels * slope + intercept).astype(np.float32)
    return np.asarray(apply_modality_lut(pixels, place), np.float64).astype(np.float32)


def unit(frame: Frame) -> str:
    """UCUM code of what ``values`` gives. Raises InputRefused for PET in no known unit."""
    if frame.get("Modality") == "PT":
        fault = pet.unit_fault(frame)
        if fault:
            raise InputRefused(f"{name(frame.header)}: {fault}")
        return pet.unit(frame)
    mapping = _mapping(frame)
    if mapping is not None:
        return str(mapping.MeasurementUnitsCodeSequence[0].CodeValue)
    return "[hnsf'U]" if frame.get("Modality") == "CT" else "1"


def _mapping(frame: Frame) -> Dataset | None:
    """The real world value mapping to use."""
    if frame.get("Modality") == "PT":
        return pet.mapping(frame)
    mapping = frame.item("RealWorldValueMappingSequence")
    if mapping is None:
        return None
    codes: Sequence[Dataset] = mapping.get("MeasurementUnitsCodeSequence") or []
    return mapping if codes and codes[0].get("CodeValue", "1") not in _NO_UNIT else None


def _mapped(mapping: Dataset, pixels: NDArray[Any]) -> NDArray[np.float32]:
    if "RealWorldValueSlope" in mapping:
        slope, intercept = float(mapping.RealWorldValueSlope), float(mapping.RealWorldValueIntercept)
        return (pixels * slope + intercept).astype(np.float32)
    table = np.asarray(mapping.RealWorldValueLUTData, np.float32)
    index = pixels.astype(np.int64) - int(mapping.RealWorldValueFirstValueMapped)
    return table[np.clip(index, 0, len(table) - 1)]
