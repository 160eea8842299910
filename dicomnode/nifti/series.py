"""A NIfTI image as a DICOM series, so that one reader, one contract and one writer serve both.

The series states what is known and nothing else: no patient, no date, no frame of reference that another image shares.
It is a derived image, because a file may be averaged, stripped or computed without saying so.
Integers are stored as they are. Other values are rounded to 16 bits, and refused where that would lose contrast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)
from pydicom.valuerep import format_number_as_ds

from dicomnode import uids
from dicomnode.errors import InputRefused
from dicomnode.nifti.images import NiftiImage
from model_zoo.grid import Grid

__all__ = ["DERIVATION", "write_series"]

_CLASSES = {"MR": MRImageStorage, "CT": CTImageStorage, "PT": PositronEmissionTomographyImageStorage}
_OF_THE_STUDY = (
    "SpecificCharacterSet", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "ReferringPhysicianName", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "TimezoneOffsetFromUTC", "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
)  # fmt: skip
"""Attributes that a file takes over from the DICOM study that it is used with."""
_EMPTY = (
    "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID",
    "PatientBirthDate", "PatientSex", "Manufacturer", "PositionReferenceIndicator",
)  # fmt: skip
DERIVATION = "Converted from a NIfTI file, not from the scanner. What was done to the image before is not known."
_COARSEST = 2e-3
"""Largest step of stored values, relative to the range of the middle 99 % of all values."""


@dataclass(frozen=True)
class _Stored:
    pixels: NDArray[Any]
    slope: float
    intercept: float
    is_exact: bool


def write_series(
    image: NiftiImage,
    attributes: Mapping[str, Any],
    folder: Path,
    *,
    name: str,
    study: Dataset | None = None,
    has_frame: bool = True,
) -> list[Path]:
    """Write the image as one file per slice; the same image and attributes give the same files.

    ``attributes``: what is stated about the image, by keyword. ``study``: a header of the study that the image belongs
    to; without one it is a study of its own. ``has_frame``: False leaves out the frame of reference, where it is not
    known whether the image shares that of another. Raises InputRefused.
    """
    modality = str(attributes.get("Modality") or "")
    if modality not in _CLASSES:
        raise InputRefused(f"{name}: its modality is not known; state --modality MR, PT or CT")
    key = repr([image.digest, sorted((key, str(value)) for key, value in attributes.items())])
    stored = _store(image.values, modality, name)
    common = _make_header(attributes, modality, key, study)
    if has_frame:
        common.FrameOfReferenceUID = uids.derive("nifti frame", key)
    _add_pixel_module(common, stored, modality)
    folder.mkdir(parents=True, exist_ok=True)
    return [_write_slice(common, image.grid, stored, k, key, folder) for k in range(image.grid.shape[0])]


def _make_header(attributes: Mapping[str, Any], modality: str, key: str, study: Dataset | None) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _EMPTY:
        setattr(ds, keyword, "")
    ds.StudyInstanceUID = uids.derive("nifti study", key)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    ds.SeriesDescription = f"NIFTI {attributes.get('SeriesDescription', '')}".strip()[:64]
    ds.ImageType = ["DERIVED", "SECONDARY", *_list_further_types(attributes.get("ImageType"))]
    ds.DerivationDescription = DERIVATION
    for keyword in _OF_THE_STUDY if study is not None else ():
        if study is not None and keyword in study:
            ds[keyword] = study[keyword]
    ds.SOPClassUID, ds.Modality = _CLASSES[modality], modality
    ds.SeriesInstanceUID, ds.SeriesNumber = uids.derive("nifti series", key), 1
    return ds


def _list_further_types(stated_type: Any) -> list[str]:
    """Return the values of a stated Image Type that say what the image shows: the third and later ones."""
    values = list(stated_type) if isinstance(stated_type, list | tuple) else [stated_type] if stated_type else []
    return values[2:] if values[:1] in (["ORIGINAL"], ["DERIVED"]) else values


def _add_pixel_module(ds: Dataset, stored: _Stored, modality: str) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(stored.pixels.dtype.kind == "i")
    if modality != "MR" or not stored.is_exact:
        ds.RescaleSlope, ds.RescaleIntercept = format_number_as_ds(stored.slope), format_number_as_ds(stored.intercept)
        ds.RescaleType = {"CT": "HU", "MR": "US"}.get(modality, ds.get("Units", ""))


def _write_slice(common: Dataset, grid: Grid, stored: _Stored, k: int, key: str, folder: Path) -> Path:
    ds = Dataset(common)
    axes = grid.affine_mm[:3, :3] / np.linalg.norm(grid.affine_mm[:3, :3], axis=0)
    between, row, column = grid.spacing_mm
    ds.SOPInstanceUID, ds.InstanceNumber = uids.derive("nifti slice", key, str(k)), k + 1
    ds.ImageOrientationPatient = [format_number_as_ds(each) for each in (*axes[:, 0], *axes[:, 1])]
    ds.ImagePositionPatient = [format_number_as_ds(each) for each in (grid.affine_mm @ [0, 0, k, 1])[:3]]
    ds.PixelSpacing, ds.SliceThickness = (
        [format_number_as_ds(row), format_number_as_ds(column)],
        format_number_as_ds(between),
    )
    ds.Rows, ds.Columns = grid.shape[1:]
    ds.PixelData = np.ascontiguousarray(stored.pixels[k]).tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = folder / f"{k + 1:04}.dcm"
    ds.save_as(path, enforce_file_format=True)
    return path


def _store(values: NDArray[Any], modality: str, name: str) -> _Stored:
    """Return stored values; in PET the intercept is 0, as its class demands."""
    low, high = float(values.min()), float(values.max())
    if not np.mod(values, 1).any():
        for dtype in (np.uint16, np.int16):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return _Stored(values.astype(dtype), 1.0, 0.0, True)
    dtype, intercept = (np.int16, 0.0) if modality == "PT" and low < 0 else (np.uint16, min(low, 0.0))
    if modality != "PT":
        intercept = float(format_number_as_ds(low))
    slope = float(
        format_number_as_ds(max(abs(low), high) / 32767 if dtype is np.int16 else (high - intercept) / 65535 or 1.0)
    )
    middle = np.subtract(*np.percentile(values, (99.5, 0.5)))
    if slope > _COARSEST * middle:
        raise InputRefused(
            f"{name}: its values from {low:g} to {high:g} lose their contrast in 16 bits (steps of {slope:.3g}, the "
            f"middle 99 % span {middle:.3g}); clip what lies far outside"
        )
    limits = np.iinfo(dtype)
    pixels = np.clip(np.round((values - intercept) / slope), limits.min, limits.max)
    return _Stored(pixels.astype(dtype), slope, intercept, False)
