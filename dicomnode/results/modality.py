"""One PET Image (PS3.3 A.21) or MR Image (A.4) per slice of an image, where that is honest.

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
from dicomnode.results.display_scale import choose_factor, scale_window, set_mapping, set_rescale
from dicomnode.results.frame_geometry import FrameGeometry, decimal
from dicomnode.results.header import Context, Series, add_common_modules, code_item
from dicomnode.results.wording import cut_words
from pipelines.contract import Grid, Image

__all__ = ["is_possible", "write"]

_UNITS = MappingProxyType({ucum: term for term, ucum in pet.UCUM.items()})
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


def is_possible(image: Image, context: Context) -> bool:
    """Return whether the image can become an object of its modality without an invented fact."""
    if image.modality == "PT":
        sources = _pet_of(context, image.volume.grid)
        return bool(sources) and _units(image, sources[0]) != "" and _agree_in_facts(sources)
    if image.modality == "MR":
        return all(source.SOPClassUID == RawDataStorage for source in context.sources) and context.modality == "MR"
    return False


def write(image: Image, context: Context, number: int) -> list[Dataset]:
    """Return the instances of one series, clean. Raises ``GeometryError`` or ``InputRefused``."""
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
    add_common_modules(
        ds, context, Series(name, number, image.description, f"{image.description}.", images_of.DERIVATION)
    )
    ds.update(slices.of_the_series)
    if image.modality == "PT":
        _orient(ds)
    elif "PatientPosition" not in ds:
        ds.PatientPosition = ""
    return _instances(ds, context, name, geometry, stored, slices.of_each)


@dataclass(frozen=True)
class _Facts:
    """Attributes of the series that override all others, and those of each of its slices."""

    of_the_series: Dataset
    of_each: Sequence[Dataset]


def _stored(ds: Dataset, geometry: FrameGeometry, image: Image) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Set pixel attributes and return stored values: signed, one slope, no intercept (PS3.3 C.8.9.4.1.4)."""
    data = images_of.check_values(image)
    window = images_of.display_window(data)
    # PS3.3 C.8.9.1.1.3: the values of PET are in its Units; those of MR are in none
    factor = 1 if image.modality == "PT" else choose_factor(image.volume.unit, window)
    largest = factor * float(np.abs(data).max())
    slope = decimal(largest / _FULL_SCALE if largest > 0 else 1.0)
    ds.Rows, ds.Columns = data.shape[1:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    if image.modality == "PT":
        ds.RescaleIntercept, ds.RescaleSlope = "0", slope
    else:
        set_rescale(ds, slope, "0", image.volume.unit, factor)
        set_mapping(ds, image.volume.unit, factor, cut_words(image.description), (-_FULL_SCALE, _FULL_SCALE))
    images_of.set_window(ds, scale_window(window, factor), float(slope))
    values = np.round(factor * geometry.arrange(data).astype(np.float64) / float(slope))
    return np.clip(values, -_FULL_SCALE, _FULL_SCALE).astype("<i2")


def _pet_of(context: Context, grid: Grid) -> list[Dataset]:
    """Return the PET slices that lie on the slices of the grid, in the order of the result; none unless all do."""
    pet = [source for source in context.sources if source.SOPClassUID == PositronEmissionTomographyImageStorage]
    on_grid = planes.find_series_on(pet, grid)
    if len(on_grid) != grid.shape[0] or any(len(frames_of(each)) != 1 for each in on_grid):
        return []
    along = np.cross(*np.reshape(FrameGeometry.from_grid(grid).orientation, (2, 3)))
    return sorted(on_grid, key=lambda each: float(np.dot(along, np.array(each.ImagePositionPatient, float))))


def _agree_in_facts(sources: Sequence[Dataset]) -> bool:
    """Return whether each source states the facts of PET that only the scanner knows, and all the same of the series.

    Zero is a valid Frame Reference Time. A gated or reprojected series has facts that one volume does not keep, and
    values that break their rules are not copied.
    """
    first = sources[0]
    kind = list(first.get("SeriesType") or [])
    return (
        kind[:1] in _ONE_VOLUME
        and kind[1:] == ["IMAGE"]
        and all(_states_facts(each) for each in sources)
        and all(each.get(keyword) == first.get(keyword) for each in sources for keyword in (*_OF_PET_SERIES, "Units"))
    )


def _states_facts(source: Dataset) -> bool:
    copied = [keyword for keyword in (*_OF_PET_SERIES, *_OF_PET_SLICES) if keyword in source]
    own = all(source.get(keyword) for keyword in _NEEDED) and source.get("FrameReferenceTime") is not None
    return own and not any(find_fault(source[keyword]) for keyword in copied)


def _units(image: Image, source: Dataset) -> str:
    own = str(source.get("Units", ""))
    return own if image.volume.unit == "1" else _UNITS.get(image.volume.unit, "")


def _pet(ds: Dataset, image: Image, context: Context) -> _Facts:
    sources = _pet_of(context, image.volume.grid)
    ds.SOPClassUID = PositronEmissionTomographyImageStorage
    ds.ImageType = ["DERIVED", "PRIMARY", "SYNTHETIC", "CLEAN"]  # PS3.3 C.8.9.4.1.1: value 2 is PRIMARY
    series = _copy(sources[0], _OF_PET_SERIES)
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
    slices = [_copy(source, _OF_PET_SLICES) for source in sources]
    for number, each in enumerate(slices, 1):
        each.ImageIndex = number
        for keyword in ("AcquisitionDate", "AcquisitionTime", "ActualFrameDuration"):
            if keyword not in each:
                setattr(each, keyword, "")
    return _Facts(series, slices)


def _orient(ds: Dataset) -> None:
    """Replace Patient Position by the codes that PET has (PS3.3 C.7.3.1, C.8.4.6): the source's, or its meaning."""
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
    return code_item(concept.value, concept.scheme_designator, concept.meaning)


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
        own = facts.get(fact)
        values = [float(value) for value in np.atleast_1d(own if own is not None else [])]
        if len(values) == 1:
            setattr(series, keyword, decimal(values[0]))
    return _Facts(series, [Dataset() for _ in range(count)])


def _copy(source: Dataset, keywords: Sequence[str]) -> Dataset:
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
