"""Projections of two ellipses as files: an array with its geometry, and views in DICOM-CT-PD."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian, generate_uid

from dicomnode import sinogram
from model_zoo.ct_geometry import CtGeometry
from tests.ellipses import Ellipse, integrate
from tests.findings import NOW

__all__ = [
    "BODY",
    "FAN",
    "PARALLEL",
    "PHOTONS",
    "make_counts",
    "make_geometry",
    "npy",
    "write_ct_pd",
    "write_files",
    "write_raw_data",
]

PHOTONS = 1e5
BODY = [Ellipse(0.0193, (0.0, 0.0), (90.0, 70.0)), Ellipse(0.0193, (40.0, 10.0), (18.0, 25.0))]
PARALLEL = CtGeometry((32, 32), 7.5, views=40, bins=48, bin_mm=7.0)
FAN = CtGeometry((32, 32), 7.0, views=72, bins=56, bin_mm=6.0, arc_deg=360.0, source_mm=500.0, offset_bins=0.25)


def make_counts(beam: CtGeometry, slices: int = 1) -> NDArray[np.float32]:
    """Return photons (slice, view, bin) with noise; each slice has noise of its own."""
    generator = torch.Generator().manual_seed(3)
    mean = PHOTONS * torch.exp(-integrate(BODY, beam)).expand(slices, -1, -1)
    return np.asarray(torch.poisson(mean.contiguous(), generator=generator).numpy(), np.float32)


def make_geometry(beam: CtGeometry, /, **changed: Any) -> dict[str, Any]:
    """Return the content of the geometry file, with ``changed`` keys; None takes a key out."""
    geometry: dict[str, Any] = {
        "values": "counts", "photons": PHOTONS, "beam": "parallel" if beam.source_mm is None else "fan",
        "views": beam.views, "bins": beam.bins, "bin_mm": beam.bin_mm, "arc_deg": beam.arc_deg,
        "first_deg": beam.first_deg, "offset_bins": beam.offset_bins, "pixels": list(beam.shape),
        "pixel_mm": beam.pixel_mm, "slice_mm": 4.0, "orientation": [0, 1, 0, 0, 0, -1],
        "centre_mm": [10.0, -20.0, 30.0],
        "water_per_mm": 0.0193,
    }  # fmt: skip
    if beam.source_mm is not None:
        geometry |= {"source_mm": beam.source_mm, "detector": "arc"}
    return {key: value for key, value in (geometry | changed).items() if value is not None}


def npy(values: NDArray[Any]) -> bytes:
    """Return the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def write_files(folder: Path, beam: CtGeometry, slices: int = 1, /, **changed: Any) -> tuple[Path, Path]:
    """Write array and geometry; return their paths."""
    array, geometry = folder / "scan.npy", folder / "scan.json"
    array.write_bytes(npy(make_counts(beam, slices)))
    geometry.write_text(json.dumps(make_geometry(beam, **changed)))
    return array, geometry


def write_raw_data(path: Path, beam: CtGeometry, slices: int = 1, /, **facts: str) -> Path:
    """Write a Raw Data object of a chest."""
    packed = sinogram.pack(npy(make_counts(beam, slices)), json.dumps(make_geometry(beam)))
    stated = {"PatientID": "CT1", "PatientName": "Phantom^Ct", "BodyPartExamined": "CHEST"} | facts
    sinogram.wrap(packed, now=NOW, facts=stated).save_as(path, enforce_file_format=True)
    return path


def write_ct_pd(folder: Path, beam: CtGeometry = FAN, *, mirror: bool = False, **changed: Any) -> list[Path]:
    """Write a view per file, in implicit VR, as from the public collections; ``changed``: private values by tag."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.log(PHOTONS / make_counts(beam)[0])
    values = values[:, ::-1] if mirror else values
    offset = -beam.offset_bins if mirror else beam.offset_bins
    series = generate_uid(entropy_srcs=[str(folder)])
    paths = []
    for number, (angle, line) in enumerate(zip(beam.view_angles, values, strict=True)):
        ds = _make_view(number, line, series)
        source_mm = beam.source_mm or 0.0
        private: dict[int, tuple[str, Any]] = {
            0x70290010: ("LO", "DetectorSystemArrangementModule"), 0x70291002: ("FL", beam.bin_mm * 2),
            0x70291006: ("FL", 2.0), 0x7029100B: ("CS", "CYLINDRICAL"), 0x70291010: ("US", 1),
            0x70291011: ("US", beam.bins), 0x70310010: ("LO", "DetectorDynamicsModule"),
            0x70311001: ("FL", float(angle)), 0x70311002: ("FL", 12.0), 0x70311003: ("FL", source_mm),
            0x70311031: ("FL", 2 * source_mm), 0x70311033: ("FL", [(beam.bins - 1) / 2 - offset + 1, 1.0]),
            0x70330010: ("LO", "SourceDynamicsModule"), 0x7033100B: ("FL", 0.0), 0x7033100E: ("CS", "FFSNONE"),
            0x70331065: ("FL", [PHOTONS] * beam.bins), 0x70370010: ("LO", "ProjectionDataModule"),
            0x70371009: ("CS", "AXIAL"), 0x7037100A: ("CS", "FANBEAM"), 0x70390010: ("LO", "PreprocessingFlagsModule"),
            0x70391003: ("CS", "YES"), 0x70391008: ("CS", "YES"), 0x70391009: ("CS", "YES"),
            0x70410010: ("LO", "WaterAttenuationModule"), 0x70411001: ("DS", "0.0193"),
        }  # fmt: skip
        for tag, (vr, value) in sorted((private | changed.get(f"view_{number}", {}) | changed.get("all", {})).items()):
            if value is not None:
                ds.add_new(tag, vr, value)
        paths.append(folder / f"{number:04d}.dcm")
        ds.save_as(paths[-1], implicit_vr=True, little_endian=True, enforce_file_format=True)
    return paths


def _make_view(number: int, line: NDArray[np.float64], series: str) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    ds.SOPClassUID, ds.Modality, ds.PatientName, ds.PatientID = CTImageStorage, "CT", "Phantom^Ct", "CT1"
    ds.SOPInstanceUID, ds.SeriesInstanceUID = f"{series[:56]}.{number + 1}", series
    ds.StudyInstanceUID = f"{series[:56]}.0"
    ds.StudyDate, ds.StudyTime, ds.SeriesNumber, ds.InstanceNumber = "20260102", "1000", 1, number + 1
    for keyword in ("AccessionNumber", "StudyID", "ReferringPhysicianName", "PatientBirthDate", "PatientSex"):
        setattr(ds, keyword, "")
    ds.BodyPartExamined, ds.ReconstructionDiameter = "CHEST", "220"
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.Rows, ds.Columns = 1, "MONOCHROME2", 1, len(line)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleSlope, ds.RescaleIntercept = "0.0005", "-1"
    ds.PixelData = np.rint((line + 1) / 0.0005).astype("<u2").tobytes()
    return ds
