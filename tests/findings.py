"""Findings of an invented pipeline and headers of their sources."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage, RawDataStorage

from dicomnode import results, uids
from dicomnode.config.results import ResultsConfig
from pipelines.contract import (
    Code,
    Finding,
    Grid,
    Image,
    Measurement,
    ParametricMap,
    Segment,
    Segmentation,
    Volume,
)
from tests.scanner import make_grid

__all__ = ["CONFIG", "NOW", "PROVENANCE", "PhantomFindings", "grid", "make_findings", "save", "source", "write_objects"]

NOW = datetime(2026, 11, 20, 9, 30, 15, tzinfo=UTC)
CONFIG = ResultsConfig(report=False)
PROVENANCE = results.Provenance(
    model_name="mri-prior", model_version="1.2.0", model_digest="ab" * 32, pipeline="mri_reconstruction",
    parameters={"sampler": "dds", "steps": 40, "samples": 4}, seed=7, device="cpu", node_version="0.1.0",
    trained_on="simulated slices of label maps only", job_key="job-1",
)  # fmt: skip
STANDARD_DEVIATION = Code("113061", "DCM", "Standard Deviation")
LOW_CONFIDENCE = Segment(
    1, "Low confidence", Code("49755003", "SCT", "Morphologically Abnormal Structure"),
    Code("LOWCONF", "99DICOMNODE", "Region of low confidence"),
)  # fmt: skip


@dataclass(frozen=True)
class PhantomFindings:
    """Findings on one grid, with the arrays of the pipeline."""

    grid: Grid
    image: NDArray[np.float32]
    deviation: NDArray[np.float32]
    labels: NDArray[np.uint8]
    findings: list[Finding]


def grid(orientation: str, slices: int = 4, rows: int = 40, columns: int = 132) -> Grid:
    """Return an anisotropic grid away from the isocentre."""
    return make_grid(orientation, (slices, rows, columns), (3.7, 1.3, 0.9), (-31.25, 17.125, 55.5))


def make_findings(place: Grid, *, empty: bool = False) -> PhantomFindings:
    """Make an image from -5 to 807, a map, and labels in every slice but the first."""
    generator = np.random.default_rng(11)
    data = (generator.random(place.shape) * 812 - 5).astype(np.float32)
    deviation = (generator.random(place.shape) * 3).astype(np.float32)
    labels = (generator.random(place.shape) > 0.9).astype(np.uint8)
    labels[:1] = 0
    if empty:
        labels[:] = 0
    findings: list[Finding] = [
        Image("image", Volume(data, place), "Reconstructed MR image", 3.0),
        ParametricMap("deviation", Volume(deviation, place), STANDARD_DEVIATION, "Standard deviation", 3.0),
        Segmentation("confidence", labels, place, (LOW_CONFIDENCE,), "Region of low confidence", 3.0),
        Measurement("chi-square", 1.02, "1", "residual of the measured samples against the noise"),
        Measurement("noise level", 0.0125, "1"),
        Measurement("acceleration R", 8.04, "1"),
        Measurement("computing time", 12.5, "s"),
    ]
    return PhantomFindings(place, data, deviation, labels, findings)


def source(kind: str = "raw", number: int = 1, **values: Any) -> Dataset:
    """Return the header of an input instance: "raw" data or an "mr" image."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = RawDataStorage if kind == "raw" else MRImageStorage
    ds.SOPInstanceUID = uids.derive("source", kind, str(number))
    ds.SeriesInstanceUID = uids.derive("source series", kind)
    ds.StudyInstanceUID, ds.FrameOfReferenceUID = uids.derive("study"), uids.derive("frame of reference")
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Müller^Jörg", "4711", "19700131", "M"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20261119", "101112", "S1", "815"
    ds.ReferringPhysicianName, ds.Modality, ds.BodyPartExamined = "", "MR", "HEAD"
    ds.Manufacturer, ds.DeviceSerialNumber = "Scanner works", "scanner-1"
    for keyword, value in values.items():
        setattr(ds, keyword, value) if value is not None else delattr(ds, keyword)
    return ds


def write_objects(
    phantom_findings: PhantomFindings, config: ResultsConfig = CONFIG, *sources: Dataset
) -> list[Dataset]:
    """Write the findings as clean image, labelled image, map and segmentation, or as configured."""
    return results.write(phantom_findings.findings, sources or (source(),), PROVENANCE, config, NOW)


def save(ds: Dataset, folder: Path, name: str = "result.dcm") -> Path:
    """Save a data set as the node does; return its path."""
    ds.save_as(folder / name, enforce_file_format=True)
    return folder / name
