"""Series of images with known values as scanners send them, one file per slice or enhanced multi-frame."""

from __future__ import annotations

import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage

from dicomnode import uids
from pipelines.contract import Grid

__all__ = ["unpack_series", "write_enhanced", "write_slices"]

Edit = Callable[[int, Dataset], None]


def _keep_unchanged(_: int, ds: Dataset) -> None:
    """Leave the data set unchanged."""


def write_slices(
    folder: Path, grid: Grid, data: NDArray[np.generic], *, edit: Edit = _keep_unchanged, key: str = "series"
) -> list[Path]:
    """Write one file per slice, numbered backwards and in shuffled files; ``edit(k, ds)`` changes a slice.

    ``data`` (k, j, i) are the stored values, uint16 or int16. The header holds data of a patient; they must appear
    nowhere else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(grid.shape[0]):
        ds = _make_image(MRImageStorage, data, uids.derive(key, "slice", str(k)), key)
        ds.InstanceNumber = grid.shape[0] - k
        ds.ImagePositionPatient = _format_place(grid, k)
        ds.update(_make_plane(grid))
        ds.PixelData = np.ascontiguousarray(data[k]).tobytes()
        edit(k, ds)
        paths.append(_save(ds, folder / f"{(7 * k) % 97:02d}-{k}.dcm"))
    return sorted(paths)


def write_enhanced(
    path: Path,
    grid: Grid,
    data: NDArray[np.generic],
    order: list[int],
    edit: Edit = _keep_unchanged,
    key: str = "enhanced",
) -> Path:
    """Write an enhanced object with its frames in ``order``; ``edit(frame, group)`` changes the groups of a frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds = _make_image(EnhancedMRImageStorage, data, uids.derive(key), key)
    ds.InstanceNumber, ds.NumberOfFrames = 1, len(order)
    shared, frames = Dataset(), []
    plane = _make_plane(grid)
    shared.PlaneOrientationSequence = [_copy_only(plane, "ImageOrientationPatient")]
    shared.PixelMeasuresSequence = [_copy_only(plane, "PixelSpacing", "SliceThickness")]
    for number, k in enumerate(order):
        frame, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = _format_place(grid, k)
        content.InStackPositionNumber, content.StackID = k + 1, "1"
        frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
        edit(number, frame)
        frames.append(frame)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], frames
    ds.PixelData = np.ascontiguousarray(data[order]).tobytes()
    return _save(ds, path)


def unpack_series(archive: Path, folder: Path) -> list[Path]:
    """Unpack a series of the data kit; return its files."""
    with lzma.open(archive) as file, tarfile.open(fileobj=file) as tar:
        tar.extractall(folder, filter="data")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _make_image(kind: UID, data: NDArray[np.generic], uid: UID, key: str) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = kind, uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uids.derive("study", key), uids.derive("series", key)
    ds.FrameOfReferenceUID = uids.derive("frame", key)
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Müller^Jörg", "4711-geheim", "19700131", "M"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20260101", "120000", "1", ""
    ds.ReferringPhysicianName, ds.Modality, ds.SeriesNumber = "", "MR", 3
    ds.Manufacturer, ds.ImageType, ds.BodyPartExamined = "Scanner works", ["ORIGINAL", "PRIMARY", "M"], "BRAIN"
    ds.PatientPosition, ds.PositionReferenceIndicator, ds.PatientAge = "HFS", "", "056Y"
    ds.MagneticFieldStrength, ds.RepetitionTime, ds.EchoTime = "3", "2300", "2.98"
    ds.Rows, ds.Columns = data.shape[1:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(np.issubdtype(data.dtype, np.signedinteger))
    return ds


def _make_plane(grid: Grid) -> Dataset:
    ds = Dataset()
    axes = grid.affine_mm[:3, :3] / np.linalg.norm(grid.affine_mm[:3, :3], axis=0)
    between, row, column = grid.spacing_mm
    ds.ImageOrientationPatient = [f"{value:.10f}" for value in (*axes[:, 0], *axes[:, 1])]
    ds.PixelSpacing, ds.SliceThickness = [row, column], between
    return ds


def _format_place(grid: Grid, k: int) -> list[str]:
    return [f"{value:.9f}" for value in (grid.affine_mm @ [0, 0, k, 1])[:3]]


def _copy_only(ds: Dataset, *keywords: str) -> Dataset:
    item = Dataset()
    for keyword in keywords:
        setattr(item, keyword, ds[keyword].value)
    return item


def _save(ds: Dataset, path: Path) -> Path:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    return path
