"""One image frame with its attributes, wherever its class keeps them: at the top of a single-frame data set, or in the
functional groups of an enhanced one (PS3.3 C.7.6.16).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID

from dicomnode.datasets import inflating
from dicomnode.datasets.encoding import check_inflated_size
from dicomnode.datasets.titles import title
from dicomnode.errors import CannotUnderstand, InputRefused
from dicomnode.reading import lookup, pet
from dicomnode.reading.unreadable import UNDECODABLE, decode

__all__ = [
    "Frame",
    "check_single",
    "check_syntax",
    "cite",
    "count_frames",
    "find_rescale",
    "frames_of",
    "read_header",
    "real_world_values",
    "unit",
]

_MACROS = MappingProxyType({
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
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
    "EchoTrainLength": "MRTimingAndRelatedParametersSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "ConvolutionKernel": "CTReconstructionSequence",
    "KVP": "CTXRayDetailsSequence",
})  # fmt: skip
"""Keywords, each with the functional group that holds it."""
_FRAME_TYPE = frozenset(
    {"FrameType", "ComplexImageComponent", "VolumetricProperties", "VolumeBasedCalculationTechnique"}
)
_FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")

_UNASSIGNED = ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence")
_GROUPS = frozenset({*_MACROS.values(), *_FRAME_TYPES, "FrameVOILUTSequence"}) - {"FrameAnatomySequence"}
"""Functional groups of which a frame has one, with one item."""
_SINGLE = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "ConcatenationUID",
    "InConcatenationNumber", "InConcatenationTotalNumber", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip
"""Attributes of which an instance has one value: they tell which it is, or lay out its pixels."""
_MOST_SWELLING = 1032
"""Bytes that one byte of a deflated data set can stand for (RFC 1951)."""


@dataclass(frozen=True)
class Frame:
    """Frame ``number`` (from 0) of the instance with this ``header``; ``groups`` are its own functional groups, then
    the shared ones."""

    header: Dataset
    number: int
    groups: tuple[Dataset, ...] = ()

    def get(self, keyword: str, default: Any = None) -> Any:
        """Return the value for this frame, or ``default`` where it is absent or empty."""
        macros = _FRAME_TYPES if keyword in _FRAME_TYPE else (_MACROS[keyword],) if keyword in _MACROS else ()
        places = [item for macro in macros for group in self.groups for item in group.get(macro) or ()]
        for place in (*places, self.header, *self.unassigned()):
            value = place.get(keyword)
            if value is not None and value != "":
                return value
        return default

    def item(self, sequence: str) -> Dataset | None:
        """Return the first item of a functional group or of a sequence at the top."""
        for place in (*self.groups, self.header, *self.unassigned()):
            if place.get(sequence):
                found: Dataset = place[sequence].value[0]
                return found
        return None

    def unassigned(self) -> Iterator[Dataset]:
        """Yield the items of source attributes without a place in a legacy converted object (PS3.3 C.7.6.16.2.25)."""
        for group in self.groups:
            for keyword in _UNASSIGNED:
                yield from group.get(keyword) or ()

    def numbers(self, keyword: str, count: int) -> NDArray[np.float64] | None:
        """Return ``count`` finite numbers, or None."""
        value = self.get(keyword)
        value = [value] if count == 1 and value is not None and not isinstance(value, Iterable) else value
        if not isinstance(value, Iterable) or isinstance(value, str) or len(list(value)) != count:
            return None
        try:
            found = np.array([float(each) for each in value])
        except (TypeError, ValueError):
            return None
        return found if np.isfinite(found).all() else None

    def number_of(self, keyword: str) -> float | None:
        """Return one finite number, or None."""
        found = self.numbers(keyword, 1)
        return None if found is None else float(found[0])


def read_header(path: Path) -> Dataset:
    """Return the data set of a file without its pixels, every element decoded (``unreadable.decode``).

    Raises InputRefused.

    pydicom's warnings quote values, which may be a patient's, and are about what does not concern us here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check_syntax(path)
            ds = dcmread(path, stop_before_pixels=True)
            decode(ds)
        except (InvalidDicomError, ValueError, TypeError, NotImplementedError, EOFError, OSError) as error:
            raise InputRefused(f"an instance cannot be read as DICOM ({type(error).__name__})") from None
    check_single(ds)
    if count_frames(ds) > _MOST_SWELLING * path.stat().st_size:
        raise InputRefused(f"{cite(ds)}: {ds.NumberOfFrames} frames are announced, more than the file's bytes can hold")
    return ds


def read_keywords(path: Path, keywords: Collection[str]) -> Dataset:
    """Return the elements of these keywords at the top of a file, decoded when they are used, which may raise then.

    Faster than ``read_header`` by far for a header with a functional group for each of a thousand frames. Raises
    InputRefused.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check_syntax(path)
            ds = dcmread(path, stop_before_pixels=True, specific_tags=[*_SINGLE, "InstanceNumber", *keywords])
            check_single(ds)
        except UNDECODABLE as error:
            raise InputRefused(f"an instance cannot be read as DICOM ({type(error).__name__})") from None
    return ds


def check_single(ds: Dataset) -> None:
    """Refuse several values where an instance has one. Raises InputRefused."""
    for keyword in _SINGLE:
        if keyword in ds and ds[keyword].VM > 1:
            raise InputRefused(f"{cite(ds)}: {title(keyword)} has {ds[keyword].VM} values, where an instance has one")


def check_syntax(path: Path) -> None:
    """Refuse a private transfer syntax, which only its maker can read, and what inflates beyond the bound."""
    syntax = UID(read_file_meta_info(path).get("TransferSyntaxUID") or "")
    if syntax and syntax.is_private:
        raise InputRefused(f"an instance is in a private transfer syntax ({syntax}), which nothing here reads")
    try:
        if inflating.is_deflated(syntax):
            check_inflated_size(path)
    except CannotUnderstand as error:
        raise InputRefused(f"an instance cannot be read: {error}") from None


def cite(ds: Dataset) -> str:
    """Return how messages cite an instance: by its number in the series, never by anything a person wrote."""
    number = ds.get("InstanceNumber")
    return f"instance {number}" if number is not None else "an instance without a number"


def frames_of(ds: Dataset) -> list[Frame]:
    """Return the frames of one instance in stored order.

    Raises InputRefused where functional groups do not describe each frame exactly once.
    """
    number = count_frames(ds)
    each = ds.get("PerFrameFunctionalGroupsSequence") or []
    shared = tuple(ds.get("SharedFunctionalGroupsSequence") or [])
    if not each:
        return [Frame(ds, n, shared[:1]) for n in range(number)]
    if len(each) != number:
        raise InputRefused(f"{cite(ds)}: {number} frames, but functional groups for {len(each)}")
    if len(shared) > 1:
        raise InputRefused(f"{cite(ds)}: Shared Functional Groups Sequence (5200,9229) has {len(shared)} items")
    for group in (*each, *shared):
        _check_groups(ds, group, shared)
    return [Frame(ds, n, (group, *shared)) for n, group in enumerate(each)]


def _check_groups(ds: Dataset, group: Dataset, shared: tuple[Dataset, ...]) -> None:
    """A group of one frame must not stand with another one that is shared, nor have several items (C.7.6.16.1)."""
    tags = [tag for tag in list(group.keys()) if keyword_for_tag(tag) in _GROUPS]
    for element in map(group.__getitem__, tags):
        if len(element.value) > 1:
            raise InputRefused(f"{cite(ds)}: {element.name} {element.tag} has {len(element.value)} items in one group")
        if shared and group is not shared[0] and element.keyword in shared[0] and shared[0][element.tag] != element:
            raise InputRefused(f"{cite(ds)}: {element.name} {element.tag} is shared by all frames and another in one")


def count_frames(ds: Dataset) -> int:
    """Return the number of frames of an instance. Raises InputRefused."""
    try:
        found = int(ds.get("NumberOfFrames") or 1)
    except (TypeError, ValueError, OverflowError):
        raise InputRefused(f"{cite(ds)}: NumberOfFrames is no number") from None
    if found < 1:
        raise InputRefused(f"{cite(ds)}: Number of Frames (0028,0008) is {found}")
    return found


def real_world_values(
    frame: Frame, pixels: NDArray[Any], padded: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Return stored values (row, column) of one frame in the unit that ``unit`` names; ``padded`` ones have no meaning.

    By the real world value mapping where that says more than "no units" (PS3.3 C.7.6.16.2.11), else by the Modality
    LUT or rescale (C.11.1), which every viewer applies. PET is rescaled to its Units; Philips' counts become activity
    by its private factor. Philips' private MR scale (2005,100E), which makes series comparable with each other, is
    not applied: what viewers show is what is computed on. Raises InputRefused where a value has no or two meanings.
    """
    mappings, where = _mappings(frame), cite(frame.header)
    lookup.check_colours(frame.header, pixels, where)
    if mappings:
        return lookup.apply_mappings(mappings, pixels, padded, where).astype(np.float32)
    if _is_in_units(frame):
        return _activity(frame, pixels)
    place = _transformation(frame)
    return (_fraction(frame, place) * lookup.apply_rescale(pixels, place, where)).astype(np.float32)


def find_rescale(frame: Frame) -> tuple[float, float] | None:
    """Return slope and intercept from stored values to ``real_world_values``; None where no line gives them."""
    place = _transformation(frame)
    if _is_in_units(frame) or _mappings(frame) or place.get("ModalityLUTSequence"):
        return None
    if place.get("RescaleSlope") is None and place.get("RescaleIntercept") is None:
        return 1.0, 0.0
    slope, intercept = lookup.finite(place.get("RescaleSlope")), lookup.finite(place.get("RescaleIntercept"))
    if slope is None or slope <= 0 or intercept is None or _fraction(frame, place) != 1:
        return None
    return slope, intercept


def _fraction(frame: Frame, place: Dataset) -> float:
    """Return what of the quantity one modality value is: a thousandth in some results of this node, 1 in other files.

    Rescale Type of another vendor's image may have the form of a fraction, too; what viewers show is kept there.
    """
    if frame.get("SyntheticData") != "YES":
        return 1.0
    return lookup.split_rescale_type(str(place.get("RescaleType") or ""))[0]


def unit(frame: Frame) -> str:
    """Return the UCUM code of ``real_world_values``.

    Raises InputRefused for PET in no known unit, and for CT of another quantity.
    """
    if _is_in_units(frame):
        fault = pet.unit_fault(frame)
        if fault:
            raise InputRefused(f"{cite(frame.header)}: {fault}")
        return pet.unit(frame)
    if mappings := _mappings(frame):
        return lookup.unit_of(mappings[0])
    return _hounsfield(frame) if frame.get("Modality") == "CT" else "1"


def _activity(frame: Frame, pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Return stored values of PET in its own unit."""
    place = _transformation(frame)
    if fault := pet.scale_fault(frame, place):
        raise InputRefused(f"{cite(frame.header)}: {fault}")
    slope, intercept = pet.scale(frame, place)
    return (pixels * slope + intercept).astype(np.float32)


def _hounsfield(frame: Frame) -> str:
    place = _transformation(frame)
    tables = place.get("ModalityLUTSequence") or []
    kind = str((tables[0].get("ModalityLUTType") if tables else place.get("RescaleType")) or "HU")
    if kind != "HU" or not (tables or "RescaleSlope" in place):
        raise InputRefused(
            f"{cite(frame.header)}: CT whose values are not in Hounsfield units by Rescale Type (0028,1054) {kind} and "
            "Rescale Slope (0028,1053)"
        )
    return "[hnsf'U]"


def _is_in_units(frame: Frame) -> bool:
    """Return whether the values are in Units (PS3.3 C.8.9.1): a synthetic Secondary Capture of PET maps them."""
    is_mapped_result = frame.get("SyntheticData") == "YES" and "Units" not in frame.header and bool(_items(frame))
    return frame.get("Modality") == "PT" and not (is_mapped_result and not pet.is_enhanced(frame))


def _transformation(frame: Frame) -> Dataset:
    return frame.item("PixelValueTransformationSequence") or frame.header


def _mappings(frame: Frame) -> list[Dataset]:
    """Return the real world value mappings to use."""
    if _is_in_units(frame):
        used = pet.mapping(frame)
        return [used] if used is not None else []
    return lookup.mappings_with_unit(_items(frame), cite(frame.header))


def _items(frame: Frame) -> Sequence[Dataset]:
    place = next((each for each in (*frame.groups, frame.header) if each.get("RealWorldValueMappingSequence")), None)
    found: Sequence[Dataset] = place.RealWorldValueMappingSequence if place is not None else ()
    return found
