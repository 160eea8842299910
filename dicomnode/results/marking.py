"""Between the writer and the wire: nothing leaves that does not say that it is synthetic, and from what it was made."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from dicomnode.errors import NotMarked
from dicomnode.results.header import SYNTHESIZING_EQUIPMENT
from dicomnode.results.provenance import recorded

__all__ = ["check"]

_SECONDARY = (MultiFrameGrayscaleWordSecondaryCaptureImageStorage, SecondaryCaptureImageStorage)
_NOT_EMPTY = (
    "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "SeriesNumber", "Manufacturer", "ManufacturerModelName",
    "SoftwareVersions", "DeviceSerialNumber",
)  # fmt: skip
_NOT_EMPTY_IN_IMAGES = ("FrameOfReferenceUID", "ImageComments")
_PRESENT = ("PatientName", "PatientID", "AccessionNumber")  # may be empty, as in the source
_PROVENANCE = ("model", "pipeline", "parameters", "seed", "device", "node", "measurements")
_MODEL = ("name", "version", "sha256", "trained_on")


def check(ds: Dataset) -> None:
    """Raises ``NotMarked`` naming every mark that is missing. A report has marks of its own in place of an image's."""
    report = ds.get("SOPClassUID") == Comprehensive3DSRStorage
    marks = _MARKS | (_MARKS_OF_REPORTS if report else _MARKS_OF_IMAGES)
    missing = [mark for mark, present in marks.items() if not present(ds)]
    missing += [keyword for keyword in _NOT_EMPTY + (() if report else _NOT_EMPTY_IN_IMAGES) if not ds.get(keyword)]
    missing += [keyword for keyword in _PRESENT if keyword not in ds]
    if missing:
        raise NotMarked(
            f"result of class {ds.get('SOPClassUID', 'unknown')} is not sent; missing or wrong: {', '.join(missing)}"
        )


def _image_type(ds: Dataset) -> bool:
    """PS3.3 C.8.20.2 and C.8.32.2 fix DERIVED, PRIMARY for segmentations and maps; an image is SECONDARY."""
    kind = list(ds.get("ImageType") or [])[:2]
    return kind == ["DERIVED", "SECONDARY" if ds.get("SOPClassUID") in _SECONDARY else "PRIMARY"]


def _burned_in(ds: Dataset) -> bool:
    """An image says whether its label is in its pixels; other kinds have no pixels to read words from."""
    if ds.get("SOPClassUID") not in _SECONDARY:
        return True
    labelled = "LABELLED" in list(ds.get("ImageType") or [])
    return bool(ds.get("BurnedInAnnotation") == ("YES" if labelled else "NO"))


def _synthesizer(ds: Dataset) -> bool:
    needed = ("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "ContributionDateTime")
    return any(
        _purpose(item) == SYNTHESIZING_EQUIPMENT[:2] and all(item.get(keyword) for keyword in needed)
        for item in ds.get("ContributingEquipmentSequence") or []
    )


def _sources(ds: Dataset) -> bool:
    """At least one input, and each with the class, the instance and its part in the derivation."""
    items: Sequence[Dataset] = [*(ds.get("SourceImageSequence") or []), *(ds.get("SourceInstanceSequence") or [])]
    return bool(items) and all(
        item.get("ReferencedSOPClassUID") and item.get("ReferencedSOPInstanceUID") and _purpose(item) for item in items
    )


def _said(ds: Dataset) -> bool:
    """At the top of the tree, where a viewer shows it first."""
    words = [str(item.get("TextValue", "")) for item in ds.get("ContentSequence") or []]
    return any(line.startswith("SYNTHETIC - RESEARCH USE ONLY") for line in words)


def _evidence(ds: Dataset) -> bool:
    """At least one input."""
    studies = ds.get("CurrentRequestedProcedureEvidenceSequence") or []
    series = [each for study in studies for each in study.get("ReferencedSeriesSequence") or []]
    return any(each.get("ReferencedSOPSequence") for each in series)


def _derivation(ds: Dataset) -> bool:
    items = ds.get("DerivationCodeSequence") or []
    return bool(items) and all(item.get("CodeValue") and item.get("CodeMeaning") for item in items)


def _provenance(ds: Dataset) -> bool:
    try:
        content: dict[str, Any] = recorded(ds)
    except (KeyError, json.JSONDecodeError):
        return False
    model = content.get("model")
    return all(key in content for key in _PROVENANCE) and isinstance(model, dict) and all(map(model.get, _MODEL))


def _purpose(item: Dataset) -> tuple[str, str] | None:
    codes = item.get("PurposeOfReferenceCodeSequence") or []
    return (codes[0].get("CodeValue"), codes[0].get("CodingSchemeDesignator")) if codes else None


_MARKS: dict[str, Callable[[Dataset], bool]] = {
    "SyntheticData": lambda ds: ds.get("SyntheticData") == "YES",
    "ContentQualification": lambda ds: ds.get("ContentQualification") == "RESEARCH",
    "ContributingEquipmentSequence": _synthesizer,
    "SeriesDescription": lambda ds: str(ds.get("SeriesDescription", "")).startswith("SYN "),
    "provenance block": _provenance,
}
_MARKS_OF_IMAGES: dict[str, Callable[[Dataset], bool]] = {
    "ImageType": _image_type,
    "BurnedInAnnotation": _burned_in,
    "DerivationDescription": lambda ds: "SYNTHETIC" in str(ds.get("DerivationDescription", "")),
    "DerivationCodeSequence": _derivation,
    "SourceImageSequence or SourceInstanceSequence": _sources,
}
_MARKS_OF_REPORTS: dict[str, Callable[[Dataset], bool]] = {
    "words in ContentSequence": _said,
    "CurrentRequestedProcedureEvidenceSequence": _evidence,
    "VerificationFlag": lambda ds: ds.get("VerificationFlag") == "UNVERIFIED",
    "PreliminaryFlag": lambda ds: ds.get("PreliminaryFlag") == "PRELIMINARY",
}
