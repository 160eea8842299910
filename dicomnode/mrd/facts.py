"""What an MRD header says: facts of the acquisition, and the identity that belongs into DICOM."""

from __future__ import annotations

from typing import Any

import ismrmrd
import numpy as np

from dicomnode.mrd.lines import Lines
from pipelines.contract import KSpace

__all__ = ["acquisition_facts", "identity"]

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
    """Facts a reader of the result wants; no names, dates or free text."""
    system, sequence = header.acquisitionSystemInformation, header.sequenceParameters
    _, coils, na, nb = kspace.samples.shape
    sampled = float(kspace.mask.mean())
    parallel = lines.encoding.parallelImaging
    stated = parallel.accelerationFactor if parallel else None
    facts: dict[str, Any] = lines.facts | {
        "coils": coils,
        "slices": kspace.samples.shape[0],
        "matrix": (na, nb),
        "sampled_fraction": sampled,
        "acceleration": 1 / sampled if sampled else None,
        "acceleration_stated": stated and (stated.kspace_encoding_step_1, stated.kspace_encoding_step_2),
        "calibration": kspace.calibration,
        "noise_samples": 0 if kspace.noise is None else int(kspace.noise.shape[1]),
        "noise_level": None if kspace.noise is None else float(np.std(kspace.noise) / np.sqrt(2)),
        "field_strength_t": system.systemFieldStrength_T if system else None,
    }
    for fact, field in (("tr_ms", "TR"), ("te_ms", "TE"), ("ti_ms", "TI"), ("flip_angle_deg", "flipAngle_deg")):
        facts[fact] = tuple(getattr(sequence, field)) if sequence else ()
    return facts


def identity(header: ismrmrd.xsd.ismrmrdHeader) -> dict[str, str]:
    """DICOM keyword -> text, for whatever the header states about patient, study, series and scanner."""
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
    """Positions count from the isocentre: after the table has moved, that is another frame of reference."""
    moved = header.measurementInformation.relativeTablePosition if header.measurementInformation else None
    return moved is not None and (moved.x, moved.y, moved.z) != (0, 0, 0)


def _text(keyword: str, value: Any) -> str:
    if keyword.endswith("Date"):
        return f"{value.year:04d}{value.month:02d}{value.day:02d}"
    if keyword.endswith("Time"):
        return f"{value.hour:02d}{value.minute:02d}{value.second:02d}"
    return str(getattr(value, "value", value))
