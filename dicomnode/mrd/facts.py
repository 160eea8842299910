"""Facts of the acquisition in an MRD header, and the identity that belongs into DICOM."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import ismrmrd
import numpy as np

from dicomnode.mrd.lines import Lines
from pipelines.contract import KSpace, Refused

__all__ = ["acquisition_facts", "read_identity"]

_IDENTITY = {
    "subjectInformation": {
        "PatientName": "patientName",
        "PatientID": "patientID",
        "PatientBirthDate": "patientBirthdate",
        "PatientSex": "patientGender",
        "PatientWeight": "patientWeight_kg",
        "PatientSize": "patientHeight_m",
    },
    "studyInformation": {
        "StudyDate": "studyDate",
        "StudyTime": "studyTime",
        "StudyID": "studyID",
        "AccessionNumber": "accessionNumber",
        "ReferringPhysicianName": "referringPhysicianName",
        "StudyDescription": "studyDescription",
        "StudyInstanceUID": "studyInstanceUID",
        "BodyPartExamined": "bodyPartExamined",
    },
    "measurementInformation": {
        "SeriesDate": "seriesDate",
        "SeriesTime": "seriesTime",
        "PatientPosition": "patientPosition",
        "SeriesNumber": "initialSeriesNumber",
        "ProtocolName": "protocolName",
        "SeriesDescription": "seriesDescription",
        "FrameOfReferenceUID": "frameOfReferenceUID",
    },
    "acquisitionSystemInformation": {
        "Manufacturer": "systemVendor",
        "ManufacturerModelName": "systemModel",
        "InstitutionName": "institutionName",
        "StationName": "stationName",
        "DeviceSerialNumber": "deviceSerialNumber",
    },
}


def acquisition_facts(header: ismrmrd.xsd.ismrmrdHeader, lines: Lines, kspace: KSpace) -> dict[str, Any]:
    """Return the facts for a reader of the result; no names, dates or free text."""
    system, sequence = header.acquisitionSystemInformation, header.sequenceParameters
    _, coils, na, nb = kspace.samples.shape
    sampled = float(kspace.mask.mean())
    parallel = lines.encoding.parallelImaging
    acceleration = parallel.accelerationFactor if parallel else None
    facts: dict[str, Any] = lines.facts | {
        "coils": coils,
        "slices": kspace.samples.shape[0],
        "matrix": (na, nb),
        "sampled_fraction": sampled,
        "acceleration": 1 / sampled if sampled else None,
        "acceleration_stated": acceleration
        and (acceleration.kspace_encoding_step_1, acceleration.kspace_encoding_step_2),
        "calibration": kspace.calibration,
        "noise_samples": 0 if kspace.noise is None else int(kspace.noise.shape[1]),
        "noise_level": None if kspace.noise is None else float(np.std(kspace.noise) / np.sqrt(2)),
        "field_strength_t": system.systemFieldStrength_T if system else None,
    }
    _check_finite("systemFieldStrength_T", (facts["field_strength_t"] or 0.0,))
    for fact, field in (("tr_ms", "TR"), ("te_ms", "TE"), ("ti_ms", "TI"), ("flip_angle_deg", "flipAngle_deg")):
        facts[fact] = tuple(getattr(sequence, field)) if sequence else ()
        _check_finite(field, facts[fact])
    return facts


def _check_finite(field: str, values: Iterable[float]) -> None:
    if not all(map(math.isfinite, values)):
        raise Refused(f"k-space header: {field} is not a finite number")


def read_identity(header: ismrmrd.xsd.ismrmrdHeader) -> dict[str, str]:
    """Return the header's statements about patient, study, series and scanner as text by DICOM keyword."""
    found: dict[str, str] = {}
    for group, fields in _IDENTITY.items():
        part = getattr(header, group)
        for keyword, field in fields.items():
            value = getattr(part, field) if part else None
            if value is not None:
                found[keyword] = _text(keyword, value)
    if _table_moved(header):
        found.pop("FrameOfReferenceUID", None)
    return found


def _table_moved(header: ismrmrd.xsd.ismrmrdHeader) -> bool:
    """Return whether the table has moved: positions count from the isocentre, so the frame of reference is another."""
    moved = header.measurementInformation.relativeTablePosition if header.measurementInformation else None
    return moved is not None and (moved.x, moved.y, moved.z) != (0, 0, 0)


def _text(keyword: str, value: Any) -> str:
    if isinstance(value, str) and keyword.endswith(("Date", "Time")):  # the parser keeps what is none as text
        raise Refused(f"k-space header: {keyword} is no date or time of the ISMRMRD format")
    if keyword.endswith("Date"):
        return f"{value.year:04d}{value.month:02d}{value.day:02d}"
    if keyword.endswith("Time"):
        return f"{value.hour:02d}{value.minute:02d}{value.second:02d}"
    return str(getattr(value, "value", value))
