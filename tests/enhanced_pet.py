"""The same PET as ``tests.pet_series`` writes, as an Enhanced PET and as a Legacy Converted Enhanced PET object."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from highdicom.legacy import LegacyConvertedEnhancedPETImage
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import EnhancedPETImageStorage, ExplicitVRLittleEndian

from dicomnode import uids
from pipelines.contract import Grid
from tests.pet_series import DOSE_BQ, HALF_LIFE_S, WEIGHT_KG, write_pet

__all__ = ["make_code", "mapping", "write_enhanced_pet", "write_legacy_pet"]

Edit = Callable[[Dataset], None]
_CORRECTED = (
    "DecayCorrected", "AttenuationCorrected", "ScatterCorrected", "DeadTimeCorrected", "RandomsCorrected",
    "DetectorNormalizationCorrection", "SensitivityCalibrated", "CountLossNormalizationCorrected",
)  # fmt: skip
_NOT_CORRECTED = ("GantryMotionCorrected", "PatientMotionCorrected", "NonUniformRadialSamplingCorrected")


def _keep(_: Dataset) -> None:
    """Change nothing."""


def write_legacy_pet(path: Path, sources: list[Path], edit: Edit = _keep) -> Path:
    """Convert a classic series by highdicom; ``edit`` changes the object before it is saved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about elements that the sources lack
        ds = LegacyConvertedEnhancedPETImage(
            [dcmread(source) for source in sources],
            series_instance_uid=uids.derive("legacy series"),
            series_number=9,
            sop_instance_uid=uids.derive("legacy"),
            instance_number=1,
        )
        edit(ds)
        ds.save_as(path, enforce_file_format=True)
    return path


def write_enhanced_pet(path: Path, grid: Grid, bq_ml: NDArray[np.float32], edit: Edit = _keep) -> Path:
    """Write one Enhanced PET object with a mapping to Bq/ml for each frame, decay-corrected to the start of the scan.

    The classic series gives patient, study and geometry.
    """
    slices = [dcmread(each) for each in write_pet(path.parent / "classic", grid, bq_ml, key="enhanced")]
    slices.sort(key=lambda each: -int(each.InstanceNumber))
    ds = _make_header(slices[0], len(slices))
    ds.SharedFunctionalGroupsSequence = [_make_shared_groups(slices[0])]
    ds.PerFrameFunctionalGroupsSequence = [_make_frame_groups(each) for each in slices]
    ds.PixelData = b"".join(each.PixelData for each in slices)
    edit(ds)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    return path


def mapping(unit: str, slope: float) -> Dataset:
    """Return a real world value mapping of all signed 16-bit values to a unit by its UCUM code."""
    item = Dataset()
    item.RealWorldValueIntercept, item.RealWorldValueSlope = 0.0, slope
    item.add_new(0x00409216, "SS", -32768)
    item.add_new(0x00409211, "SS", 32767)
    item.LUTLabel, item.LUTExplanation = "values", "values"
    item.MeasurementUnitsCodeSequence = [make_code(unit, "UCUM")]
    return item


def make_code(value: str, scheme: str, meaning: str = "something") -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _make_header(first: Dataset, count: int) -> Dataset:
    ds = Dataset()
    for keyword in (
        "SpecificCharacterSet", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientName",
        "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyDate", "StudyTime", "StudyID",
        "AccessionNumber", "ReferringPhysicianName", "SeriesNumber", "Manufacturer", "Rows", "Columns",
        "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
        "PixelRepresentation", "SeriesDate",
    ):  # fmt: skip
        setattr(ds, keyword, first[keyword].value)
    ds.SOPClassUID, ds.SOPInstanceUID = EnhancedPETImageStorage, uids.derive("enhanced pet")
    ds.Modality, ds.InstanceNumber, ds.NumberOfFrames = "PT", 1, count
    ds.ImageType, ds.PatientWeight = ["ORIGINAL", "PRIMARY", "STATIC", "NONE"], f"{WEIGHT_KG}"
    ds.SeriesTime = "150000"  # time of a reconstruction; no test depends on it
    ds.CountsSource, ds.DecayCorrectionDateTime = "EMISSION", "20260101130000"
    for keyword in _CORRECTED:
        setattr(ds, keyword, "YES")
    for keyword in _NOT_CORRECTED:
        setattr(ds, keyword, "NO")
    ds.RadiopharmaceuticalInformationSequence = [_make_agent()]
    return ds


def _make_agent() -> Dataset:
    item = Dataset()
    item.RadiopharmaceuticalAgentNumber = 1
    item.RadiopharmaceuticalStartDateTime = "20260101120000"
    item.RadionuclideTotalDose, item.RadionuclideHalfLife = f"{DOSE_BQ / 1e6:g}", f"{HALF_LIFE_S}"
    item.RadionuclidePositronFraction = "0.97"
    fluorine = codes.cid4020._18Fluorine
    item.RadionuclideCodeSequence = [make_code(fluorine.value, fluorine.scheme_designator, fluorine.meaning)]
    item.RadiopharmaceuticalCodeSequence = [make_code("35321007", "SCT", "Fluorodeoxyglucose F^18^")]
    return item


def _make_shared_groups(first: Dataset) -> Dataset:
    group, orientation, measures, use = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = first.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
    use.RadiopharmaceuticalAgentNumber = 1
    group.PlaneOrientationSequence, group.PixelMeasuresSequence = [orientation], [measures]
    group.RadiopharmaceuticalUsageSequence = [use]
    return group


def _make_frame_groups(classic: Dataset) -> Dataset:
    group, position, content, values = Dataset(), Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = classic.ImagePositionPatient
    content.FrameAcquisitionDateTime, content.FrameAcquisitionDuration = "20260101130000", 600000.0
    values.RescaleIntercept, values.RescaleSlope, values.RescaleType = "0", "1", "US"
    group.PlanePositionSequence, group.FrameContentSequence = [position], [content]
    group.PixelValueTransformationSequence = [values]
    group.RealWorldValueMappingSequence = [mapping("Bq/ml", float(classic.RescaleSlope))]
    return group
