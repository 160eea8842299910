"""Image -> one PET Image (PS3.3 A.21) or MR Image (A.4) per slice, where that is honest.

Honest is PET made from PET of the same scan, whose radiopharmaceutical, times and corrections are copied and not made
up, and MR reconstructed from its own k-space. Nothing else: of an image of another modality or contrast these facts
would be invented. Such an object says that it is synthetic as every other does; the labelled twin stays a Secondary
Capture, so that no search for hot spots finds letters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import MRImageStorage, PositronEmissionTomographyImageStorage, RawDataStorage

from dicomnode.datasets.validity import find_fault
from dicomnode.reading import pet
from dicomnode.reading.frames import frames_of
from dicomnode.results import image as images_of
from dicomnode.results import planes
from dicomnode.results.frame_geometry import FrameGeometry, decimal
from dicomnode.results.header import Context, Series, code, complete
from pipelines.contract import Grid, Image

__all__ = ["possible", "write"]

_UNITS = MappingProxyType({code: term for term, code in pet.UCUM.items()})
_NEEDED = ("SeriesType", "DecayCorrection", "RadiopharmaceuticalInformationSequence")
_OF_PET_SERIES = (
    "SeriesDate", "SeriesTime", "SeriesType", "CountsSource", "CorrectedImage", "DecayCorrection", "SUVType",
    "RandomsCorrectionMethod", "AttenuationCorrectionMethod", "ScatterCorrectionMethod", "CollimatorType",
    "ReconstructionMethod", "ConvolutionKernel",
    "RadiopharmaceuticalInformationSequence", "PatientOrientationCodeSequence", "PatientGantryRelationshipCodeSequence",
)  # fmt: skip
"""Series Date and Time among them: decay is corrected to them (PS3.3 C.8.9.1.1.4)."""
_OF_PET_SLICES = (
    "FrameReferenceTime", "ActualFrameDuration", "DecayFactor", "AcquisitionDate", "AcquisitionTime", "FrameTime",
)  # fmt: skip
_ONE_VOLUME = (["STATIC"], ["WHOLE BODY"], ["DYNAMIC"])
_FULL_SCALE = 32767
_LYING = codes.cid19.Recumbent
_LIES = {"S": codes.cid20.Supine, "P": codes.cid20.Prone, "DR": codes.cid20.RightLateralDecubitus,
         "DL": codes.cid20.LeftLateralDecubitus}  # fmt: skip
_ENTERS = {"HF": codes.cid21.Headfirst, "FF": codes.cid21.FeetFirst}
_MR_FACTS = MappingProxyType({
    "tr_ms": "RepetitionTime", "te_ms": "EchoTime", "ti_ms": "InversionTime", "flip_angle_deg": "FlipAngle",
    "field_strength_t": "MagneticFieldStrength",
})  # fmt: skip


def possible(image: Image, context: Context) -> bool:
    """Whether an object of the image's modality can be made of it without inventing a fact."""
    if image.modality == "PT":
        sources = _pet_of(context, image.volume.grid)
        return bool(sources) and _units(image, sources[0]) != "" and _tell(sources)
    if image.modality == "MR":
        return all(source.SOPClassUID == RawDataStorage for source in context.sources) and context.modality == "MR"
    return False


def write(image: Image, context: Context, number: int) -> list[Dataset]:
    """The instances of one series, clean. Raises ``GeometryError`` or ``InputRefused``."""
    geometry = FrameGeometry.from_grid(image.volume.grid)
    ds = Dataset()
    ds.Modality = image.modality
    ds.BurnedInAnnotation, ds.LossyImageCompression, ds.PatientOrientation = "NO", "00", ""
    ds.ImageOrientationPatient = [decimal(value) for value in geometry.orientation]
    _, rows, columns = geometry.spacing_mm
    ds.PixelSpacing, ds.SliceThickness = [decimal(rows), decimal(columns)], decimal(image.slice_thickness_mm)
    ds.SpacingBetweenSlices = decimal(geometry.spacing_mm[0])
    stored = _stored(ds, geometry, image)
    slices = _pet(ds, image, context) if image.modality == "PT" else _mr(ds, context, len(stored))
    name = f"{image.name}/clean/modality"
    complete(ds, context, Series(name, number, image.description, f"{image.description}.", images_of.DERIVATION))
    ds.update(slices.of_the_series)
    if image.modality == "PT":
        _orient(ds)
    elif "PatientPosition" not in ds:
        ds.PatientPosition = ""
    return _instances(ds, context, name, geometry, stored, slices.of_each)


@dataclass(frozen=True)
class _Facts:
    """What belongs to the series, after everything else is said, and to each of its slices."""

    of_the_series: Dataset
    of_each: Sequence[Dataset]


def _stored(ds: Dataset, geometry: FrameGeometry, image: Image) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Signed, with one slope for all slices and no intercept (PS3.3 C.8.9.4.1.4)."""
    data = images_of.checked(image)
    largest = float(np.abs(data).max())
    slope = decimal(largest / _FULL_SCALE if largest > 0 else 1.0)
    ds.Rows, ds.Columns = data.shape[1:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleIntercept, ds.RescaleSlope = "0", slope
    images_of.show(ds, images_of.window_of(data), float(slope))
    values = np.round(geometry.arrange(data).astype(np.float64) / float(slope))
    return np.clip(values, -_FULL_SCALE, _FULL_SCALE).astype("<i2")


def _pet_of(context: Context, grid: Grid) -> list[Dataset]:
    """The PET slices whose places are those of the grid, in the order of the result's slices; none unless all are."""
    pet = [source for source in context.sources if source.SOPClassUID == PositronEmissionTomographyImageStorage]
    shown = planes.shown_by(pet, grid)
    if len(shown) != grid.shape[0] or any(len(frames_of(each)) != 1 for each in shown):
        return []
    along = np.cross(*np.reshape(FrameGeometry.from_grid(grid).orientation, (2, 3)))
    return sorted(shown, key=lambda each: float(np.dot(along, np.array(each.ImagePositionPatient, float))))


def _tell(sources: Sequence[Dataset]) -> bool:
    """Whether each says what a PET image must say and only the scanner knows, and all say the same of the series.

    Nought is a Frame Reference Time. A gated or reprojected series has facts that one volume does not keep, and what
    breaks its rules is not copied.
    """
    first = sources[0]
    kind = list(first.get("SeriesType") or [])
    return (
        kind[:1] in _ONE_VOLUME
        and kind[1:] == ["IMAGE"]
        and all(_tells(each) for each in sources)
        and all(each.get(keyword) == first.get(keyword) for each in sources for keyword in (*_OF_PET_SERIES, "Units"))
    )


def _tells(source: Dataset) -> bool:
    copied = [keyword for keyword in (*_OF_PET_SERIES, *_OF_PET_SLICES) if keyword in source]
    stated = all(source.get(keyword) for keyword in _NEEDED) and source.get("FrameReferenceTime") is not None
    return stated and not any(find_fault(source[keyword]) for keyword in copied)


def _units(image: Image, source: Dataset) -> str:
    stated = str(source.get("Units", ""))
    return stated if image.volume.unit == "1" else _UNITS.get(image.volume.unit, "")


def _pet(ds: Dataset, image: Image, context: Context) -> _Facts:
    sources = _pet_of(context, image.volume.grid)
    ds.SOPClassUID = PositronEmissionTomographyImageStorage
    ds.ImageType = ["DERIVED", "PRIMARY", "SYNTHETIC", "CLEAN"]  # PS3.3 C.8.9.4.1.1: value 2 is PRIMARY
    series = _copied(sources[0], _OF_PET_SERIES)
    series.Units = _units(image, sources[0])
    series.NumberOfSlices = len(sources)
    if series.SeriesType[0] == "DYNAMIC":
        series.NumberOfTimeSlices = 1  # PS3.3 C.8.9.1: 1C, of dynamic series only; the result is one of theirs
    series.CountsSource = series.get("CountsSource") or "EMISSION"  # what attenuation was corrected for
    for item in series.RadiopharmaceuticalInformationSequence:
        if "RadionuclideCodeSequence" not in item:
            item.RadionuclideCodeSequence = []
    for keyword in ("CorrectedImage", "CollimatorType"):
        if keyword not in series:
            setattr(series, keyword, "")
    slices = [_copied(source, _OF_PET_SLICES) for source in sources]
    for number, each in enumerate(slices, 1):
        each.ImageIndex = number
        for keyword in ("AcquisitionDate", "AcquisitionTime", "ActualFrameDuration"):
            if keyword not in each:
                setattr(each, keyword, "")
    return _Facts(series, slices)


def _orient(ds: Dataset) -> None:
    """PET has codes in place of Patient Position (PS3.3 C.7.3.1, C.8.4.6): the source's, or what its word means."""
    position = str(ds.get("PatientPosition") or "")
    ds.pop("PatientPosition", None)
    if "PatientOrientationCodeSequence" not in ds:
        lies = _LIES.get(position[2:])
        ds.PatientOrientationCodeSequence = [_item(_LYING)] if lies else []
        if lies:
            ds.PatientOrientationCodeSequence[0].PatientOrientationModifierCodeSequence = [_item(lies)]
    if "PatientGantryRelationshipCodeSequence" not in ds:
        enters = _ENTERS.get(position[:2])
        ds.PatientGantryRelationshipCodeSequence = [_item(enters)] if enters else []


def _item(concept: Code) -> Dataset:
    return code(concept.value, concept.scheme_designator, concept.meaning)


def _mr(ds: Dataset, context: Context, count: int) -> _Facts:
    ds.SOPClassUID = MRImageStorage
    ds.ImageType = ["DERIVED", "SECONDARY", "OTHER", "SYNTHETIC"]
    facts: Mapping[str, Any] = context.provenance.facts
    series = Dataset()
    # MRD names no sequence in DICOM's terms: of those PS3.3 C.8.3.1 has for it, Research Mode claims nothing.
    series.ScanningSequence, series.SequenceVariant, series.ScanOptions = "RM", "NONE", ""
    series.MRAcquisitionType, series.EchoTrainLength = "", ""
    series.RepetitionTime = series.EchoTime = ""
    for fact, keyword in _MR_FACTS.items():
        stated = facts.get(fact)
        values = [float(value) for value in np.atleast_1d(stated if stated is not None else [])]
        if len(values) == 1:
            setattr(series, keyword, decimal(values[0]))
    return _Facts(series, [Dataset() for _ in range(count)])


def _copied(source: Dataset, keywords: Sequence[str]) -> Dataset:
    found = Dataset()
    for keyword in keywords:
        if keyword in source:
            found[keyword] = deepcopy(source[keyword])
    return found


def _instances(
    header: Dataset, context: Context, name: str, geometry: FrameGeometry, stored: Any, facts: Sequence[Dataset]
) -> list[Dataset]:
    instances = []
    for number, (pixels, position, own) in enumerate(zip(stored, geometry.positions_mm, facts, strict=True), 1):
        one = deepcopy(header)
        one.update(own)
        one.InstanceNumber = number
        one.ImagePositionPatient = [decimal(value) for value in position]
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = context.uid("instance", name, str(number))
        one.PixelData = pixels.tobytes()
        one["PixelData"].VR = "OW"
        instances.append(one)
    return instances
