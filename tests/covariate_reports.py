"""Structured reports with covariates, as a site sends them with the images; see ``docs/covariates.md``."""

from __future__ import annotations

from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian

from dicomnode import uids

__all__ = ["APOE_GENOTYPE", "MMSE", "PTAU217", "code", "coded", "container", "number", "report", "save", "text"]

MMSE = ("72106-8", "LN", "Total score [MMSE]")
PTAU217 = ("104663-0", "LN", "Phosphorylated tau 217 in plasma")
APOE_GENOTYPE = ("APOE-GENOTYPE", "99DICOMNODE", "APOE genotype")
CLINICAL_DATA = ("55752-0", "LN", "Clinical information")


def report(image: Dataset, *items: Dataset, key: str = "report") -> Dataset:
    """Return a Comprehensive SR in the study of ``image`` whose root container holds the items."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = ComprehensiveSRStorage, uids.derive(key, "instance")
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID"):
        setattr(ds, keyword, image[keyword].value)
    ds.StudyDate, ds.StudyTime, ds.ContentDate, ds.ContentTime = "20260101", "120000", "20260101", "120000"
    ds.AccessionNumber, ds.ReferringPhysicianName, ds.Manufacturer = "", "", "Memory clinic"
    ds.SeriesInstanceUID, ds.SeriesNumber, ds.InstanceNumber, ds.Modality = uids.derive(key, "series"), 50, 1, "SR"
    ds.CompletionFlag, ds.VerificationFlag = "COMPLETE", "UNVERIFIED"
    ds.ReferencedPerformedProcedureStepSequence, ds.PerformedProcedureCodeSequence = [], []
    ds.ValueType, ds.ContinuityOfContent = "CONTAINER", "SEPARATE"
    ds.ConceptNameCodeSequence = [code(*CLINICAL_DATA)]
    ds.ContentSequence = list(items)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def save(ds: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def number(concept: tuple[str, str, str], value: float | str, unit: str) -> Dataset:
    """Return a NUM item; ``unit`` in UCUM."""
    item, measured = _item("NUM", concept), Dataset()
    measured.NumericValue = str(value)
    measured.MeasurementUnitsCodeSequence = [code(unit, "UCUM", unit)]
    item.MeasuredValueSequence = [measured]
    return item


def text(concept: tuple[str, str, str], value: str) -> Dataset:
    item = _item("TEXT", concept)
    item.TextValue = value
    return item


def coded(concept: tuple[str, str, str], value: tuple[str, str, str]) -> Dataset:
    item = _item("CODE", concept)
    item.ConceptCodeSequence = [code(*value)]
    return item


def container(*items: Dataset) -> Dataset:
    item = _item("CONTAINER", CLINICAL_DATA)
    item.ContinuityOfContent, item.ContentSequence = "SEPARATE", list(items)
    return item


def _item(kind: str, concept: tuple[str, str, str]) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", kind
    item.ConceptNameCodeSequence = [code(*concept)]
    return item
