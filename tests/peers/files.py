"""Small valid instances to send."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from dicomnode import results
from dicomnode.config.results import ResultsConfig
from pipelines.contract import Grid, Image, Volume

__all__ = ["write_instance", "write_result"]


def write_instance(
    path: Path,
    *,
    study_uid: str = "1.2.826.0.1.3680043.8.498.1",
    series_uid: str = "1.2.826.0.1.3680043.8.498.2",
    sop_class_uid: UID = MRImageStorage,
    transfer_syntax_uid: UID = ExplicitVRLittleEndian,
    rows: int = 16,
    frames_bytes: int | None = None,
    **attributes: object,
) -> Dataset:
    """Write one instance and return it; ``attributes`` are DICOM keywords. ``frames_bytes`` sets the pixels' size."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = sop_class_uid
    ds.SOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study_uid, series_uid
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20260101", "120000", "1", ""
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Test^Phantom", "PHANTOM", "", "O"
    ds.ReferringPhysicianName, ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "", "MR", 1, 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.Rows, ds.Columns = 1, "MONOCHROME2", rows, rows
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.PixelData = bytes(frames_bytes) if frames_bytes else np.arange(rows * rows, dtype="<u2").tobytes()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = transfer_syntax_uid
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return ds


def write_result(path: Path, **attributes: object) -> Dataset:
    """Write one result as the node does, with every mark, from an instance with ``attributes``; return it."""
    source = write_instance(path, **attributes)  # type: ignore[arg-type]
    volume = Volume(np.zeros((2, 16, 16), np.float32), Grid((2, 16, 16), np.eye(4)))
    provenance = results.Provenance(
        model_name="test",
        model_version="1",
        model_digest="0" * 64,
        pipeline="test",
        parameters={},
        seed=1,
        device="cpu",
        node_version="0",
        trained_on="nothing",
        job_key="test",
    )
    now = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
    image = Image("image", volume, "image", slice_thickness_mm=1.0)
    (ds,) = results.write([image], [source], provenance, ResultsConfig(labelled=False, report=False), now)
    ds.save_as(path, enforce_file_format=True)
    return ds
