"""DICOM attributes by which studies, series and instances are found, and the matching of each."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

__all__ = [
    "COUNTS",
    "IMAGE",
    "IMAGE_STORED",
    "IN_SEQUENCES",
    "KINDS",
    "PATIENT",
    "RESULT_STORED",
    "SERIES",
    "STUDY",
    "STUDY_COLUMNS",
    "Kind",
    "fold_name",
    "join_values",
    "pick",
]


class Kind(StrEnum):
    """Matching of a value (PS3.4 C.2.2.2); ``returned``: in answers only, never matched."""

    UID = "uid"
    TEXT = "text"
    CODE = "code"
    NAME = "name"
    DATE = "date"
    TIME = "time"
    NUMBER = "number"
    RETURNED = "returned"


STUDY_COLUMNS: Mapping[str, str] = {
    "StudyInstanceUID": "study_uid",
    "StudyDate": "study_date",
    "StudyTime": "study_time",
    "StudyID": "study_id",
    "StudyDescription": "study_description",
    "AccessionNumber": "accession_number",
    "ReferringPhysicianName": "referring_physician_name",
    "PatientID": "patient_id",
    "IssuerOfPatientID": "issuer_of_patient_id",
    "PatientName": "patient_name",
    "PatientBirthDate": "patient_birth_date",
    "PatientSex": "patient_sex",
}
"""Columns of a study by keyword; the first instance describes the study."""

STUDY: Mapping[str, Kind] = {
    **dict.fromkeys(STUDY_COLUMNS, Kind.TEXT),
    "StudyInstanceUID": Kind.UID,
    "StudyDate": Kind.DATE,
    "StudyTime": Kind.TIME,
    "PatientBirthDate": Kind.DATE,
    "PatientName": Kind.NAME,
    "ReferringPhysicianName": Kind.NAME,
    "PatientSex": Kind.CODE,
    "ModalitiesInStudy": Kind.CODE,
    "SOPClassesInStudy": Kind.UID,
    "NumberOfStudyRelatedSeries": Kind.RETURNED,
    "NumberOfStudyRelatedInstances": Kind.RETURNED,
}

PATIENT: Mapping[str, Kind] = {
    "PatientID": Kind.TEXT,
    "IssuerOfPatientID": Kind.TEXT,
    "PatientName": Kind.NAME,
    "PatientBirthDate": Kind.DATE,
    "PatientSex": Kind.CODE,
    "NumberOfPatientRelatedStudies": Kind.RETURNED,
    "NumberOfPatientRelatedSeries": Kind.RETURNED,
    "NumberOfPatientRelatedInstances": Kind.RETURNED,
}
"""Keywords at PATIENT level; below it these are keys of the study, without the counts."""

IN_SEQUENCES = "."
"""Separator in a key between a sequence and an attribute of its items: one item must match all keys of the sequence
(PS3.4 C.2.2.2.6)."""

SERIES: Mapping[str, Kind] = {
    "SeriesInstanceUID": Kind.UID,
    "Modality": Kind.CODE,
    "SeriesNumber": Kind.NUMBER,
    "SeriesDescription": Kind.TEXT,
    "SeriesDate": Kind.DATE,
    "SeriesTime": Kind.TIME,
    "ProtocolName": Kind.TEXT,
    "BodyPartExamined": Kind.CODE,
    "Laterality": Kind.CODE,
    "PatientPosition": Kind.CODE,
    "Manufacturer": Kind.TEXT,
    "ManufacturerModelName": Kind.TEXT,
    "InstitutionName": Kind.TEXT,
    "StationName": Kind.TEXT,
    "FrameOfReferenceUID": Kind.UID,
    "MRAcquisitionType": Kind.CODE,
    "SequenceName": Kind.TEXT,
    "ContrastBolusAgent": Kind.TEXT,
    "SyntheticData": Kind.CODE,
    "PerformedProcedureStepStartDate": Kind.DATE,
    "PerformedProcedureStepStartTime": Kind.TIME,
    "PerformedProcedureStepDescription": Kind.TEXT,
    "RequestAttributesSequence": Kind.RETURNED,
    "RequestAttributesSequence.ScheduledProcedureStepID": Kind.TEXT,
    "RequestAttributesSequence.RequestedProcedureID": Kind.TEXT,
    "TimezoneOffsetFromUTC": Kind.RETURNED,
    "NumberOfSeriesRelatedInstances": Kind.RETURNED,
}

IMAGE: Mapping[str, Kind] = {
    "SOPInstanceUID": Kind.UID,
    "SOPClassUID": Kind.UID,
    "AvailableTransferSyntaxUID": Kind.UID,
    "InstanceNumber": Kind.NUMBER,
    "AcquisitionNumber": Kind.NUMBER,
    "ContentDate": Kind.DATE,
    "ContentTime": Kind.TIME,
    "Rows": Kind.NUMBER,
    "Columns": Kind.NUMBER,
    "BitsAllocated": Kind.NUMBER,
    "NumberOfFrames": Kind.NUMBER,
}

KINDS: Mapping[str, Kind] = {**STUDY, **SERIES, **IMAGE}

COUNTS = frozenset(
    {
        "ModalitiesInStudy",
        "SOPClassesInStudy",
        "NumberOfStudyRelatedSeries",
        "NumberOfStudyRelatedInstances",
        "NumberOfSeriesRelatedInstances",
        "NumberOfPatientRelatedStudies",
        "NumberOfPatientRelatedSeries",
        "NumberOfPatientRelatedInstances",
    }
)
"""Keywords whose values are read from other rows."""

IMAGE_STORED = tuple(IMAGE.keys() - {"SOPInstanceUID", "SOPClassUID", "AvailableTransferSyntaxUID"})
"""Attributes stored with each instance."""

RESULT_STORED = (*IMAGE_STORED, *(SERIES.keys() - COUNTS - {"SeriesInstanceUID"}))
"""Attributes stored with each result, whose series has no row of its own."""


def pick(attributes: Mapping[str, Any], keywords: Iterable[str]) -> dict[str, Any]:
    """Return those of the attributes that have a value, in a fixed order."""
    found = {keyword: attributes.get(keyword) for keyword in sorted(keywords)}
    return {keyword: value for keyword, value in found.items() if value not in (None, "")}


def join_values(value: Any) -> str:
    """Return a value as text, several separated by backslashes."""
    if value is None:
        return ""
    return "\\".join(map(str, value)) if isinstance(value, list) else str(value)


def fold_name(name: str) -> str:
    """Return a person's name as it is matched: case-folded, each component group between equals signs.

    Trailing delimiters are left out (PS3.5 6.2.1.1); an empty name stays empty.
    """
    groups = [group.rstrip(" ^") for group in unicodedata.normalize("NFKC", name).casefold().split("=")]
    return f"={'='.join(groups)}=" if any(groups) else ""
