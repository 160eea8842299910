"""Check before the wire: no object leaves without its marks as synthetic and the sources that it was made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    CTImageStorage,
    EncapsulatedPDFStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    KeyObjectSelectionDocumentStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    MRImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    ParametricMapStorage,
    PositronEmissionTomographyImageStorage,
    RawDataStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicomnode.errors import NotMarked
from dicomnode.results import label
from dicomnode.results.header import SYNTHESIZING_EQUIPMENT
from dicomnode.results.provenance import read_record

__all__ = ["check_marks"]

_LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"  # pydicom 3.0.2 does not name it
_SECONDARY = (MultiFrameGrayscaleWordSecondaryCaptureImageStorage, SecondaryCaptureImageStorage)
_PRIMARY = (
    ParametricMapStorage, SegmentationStorage, _LABEL_MAP, PositronEmissionTomographyImageStorage,
)  # fmt: skip
_WITHOUT_LETTERS = (ParametricMapStorage, SegmentationStorage, _LABEL_MAP)
_MEASURED = (
    (PositronEmissionTomographyImageStorage, EnhancedPETImageStorage, LegacyConvertedEnhancedPETImageStorage),
    (MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage, RawDataStorage),
    (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage),
)
"""Classes that one modality measures: a result of such a class claims the facts of a scan, so a source must have it."""
_NOT_EMPTY = (
    "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "SeriesNumber", "Manufacturer", "ManufacturerModelName",
    "SoftwareVersions", "DeviceSerialNumber",
)  # fmt: skip
_NOT_EMPTY_IN_IMAGES = ("FrameOfReferenceUID", "ImageComments")
_PRESENT = ("PatientName", "PatientID", "AccessionNumber")  # may be empty, as in the source
_PROVENANCE = ("model", "pipeline", "parameters", "seed", "device", "node", "measurements")
_MODEL = ("name", "version", "sha256", "trained_on")


def check_marks(ds: Dataset) -> None:
    """Raise ``NotMarked`` naming every missing mark, whoever made the object and of whatever class it is.

    A report, a Key Object note and an encapsulated document have marks of their own in place of an image's.
    """
    marks = _MARKS | _marks_of(ds)
    missing = [mark for mark, present in marks.items() if not present(ds)]
    missing += [keyword for keyword in (*_NOT_EMPTY, *_not_empty_in(ds)) if not ds.get(keyword)]
    missing += [keyword for keyword in _PRESENT if keyword not in ds]
    if missing:
        raise NotMarked(
            f"result of class {ds.get('SOPClassUID', 'unknown')} is not sent; missing or wrong: {', '.join(missing)}"
        )


def _marks_of(ds: Dataset) -> dict[str, Callable[[Dataset], bool]]:
    return _MARKS_OF_DOCUMENTS.get(ds.get("SOPClassUID", ""), _MARKS_OF_IMAGES)


def _not_empty_in(ds: Dataset) -> tuple[str, ...]:
    """Return the further attributes that must not be empty; a page of a report has no place in the patient."""
    if ds.get("SOPClassUID") in _MARKS_OF_DOCUMENTS:
        return ()
    return ("ImageComments",) if _is_page(ds) else _NOT_EMPTY_IN_IMAGES


def _is_page(ds: Dataset) -> bool:
    """Return whether the object is a page of a report as pixels: its Image Type says so, and it claims no place."""
    placed = any(keyword in ds for keyword in ("ImagePositionPatient", "SharedFunctionalGroupsSequence"))
    single = ds.get("SOPClassUID") == SecondaryCaptureImageStorage
    return single and not placed and "PAGE" in list(ds.get("ImageType") or [])


def _has_image_type(ds: Dataset) -> bool:
    """Return whether Image Type is DERIVED with the right value 2: PRIMARY in segmentations, maps and PET (PS3.3
    C.8.20.2, C.8.32.2, C.8.9.4.1.1), SECONDARY in Secondary Capture, either in others."""
    kind, sop_class = list(ds.get("ImageType") or [])[:2], ds.get("SOPClassUID")
    either = ["PRIMARY"] if sop_class in _PRIMARY else ["SECONDARY"]
    if sop_class not in (*_PRIMARY, *_SECONDARY):
        either = ["PRIMARY", "SECONDARY"]
    return len(kind) == 2 and kind[0] == "DERIVED" and kind[1] in either


def _has_burned_in(ds: Dataset) -> bool:
    """Return whether Burned In Annotation tells if the label is in the pixels; maps and segmentations need none."""
    if ds.get("SOPClassUID") in _WITHOUT_LETTERS:
        return True
    said = ds.get("BurnedInAnnotation")
    if ds.get("SOPClassUID") not in _SECONDARY:
        return said in ("YES", "NO")
    labelled = {"LABELLED", "PAGE"} & set(ds.get("ImageType") or [])
    return bool(said == ("YES" if labelled else "NO"))


def _has_measured_source(ds: Dataset) -> bool:
    """Return whether an object of a scanner's class was made from images of such a class, not of another modality."""
    own = next((classes for classes in _MEASURED if ds.get("SOPClassUID") in classes), ())
    items = [*(ds.get("SourceImageSequence") or []), *(ds.get("SourceInstanceSequence") or [])]
    return not own or any(item.get("ReferencedSOPClassUID") in own for item in items)


def _has_synthesizer(ds: Dataset) -> bool:
    needed = ("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "ContributionDateTime")
    return any(
        _purpose(item) == SYNTHESIZING_EQUIPMENT[:2] and all(item.get(keyword) for keyword in needed)
        for item in ds.get("ContributingEquipmentSequence") or []
    )


def _has_sources(ds: Dataset) -> bool:
    """Return whether sources are named, each with its class, its instance and its part in the derivation."""
    items: Sequence[Dataset] = [*(ds.get("SourceImageSequence") or []), *(ds.get("SourceInstanceSequence") or [])]
    return bool(items) and all(
        item.get("ReferencedSOPClassUID") and item.get("ReferencedSOPInstanceUID") and _purpose(item) for item in items
    )


def _has_label_text(ds: Dataset) -> bool:
    """Return whether the label stands at the top of the tree, where a viewer shows it first."""
    words = [str(item.get("TextValue", "")) for item in ds.get("ContentSequence") or []]
    return any(line.startswith(label.TEXT) for line in words)


def _has_label_title(ds: Dataset) -> bool:
    """Return whether the label stands in the header and in the title of the file, which a viewer of documents shows."""
    content = bytes(ds.get("EncapsulatedDocument") or b"")
    return str(ds.get("DocumentTitle", "")).startswith(label.TEXT) and label.TEXT.encode() in content


def _has_instances(ds: Dataset) -> bool:
    items = ds.get("SourceInstanceSequence") or []
    return bool(items) and all(item.get("ReferencedSOPInstanceUID") for item in items)


def _has_evidence(ds: Dataset) -> bool:
    """Return whether the evidence names at least one input."""
    studies = ds.get("CurrentRequestedProcedureEvidenceSequence") or []
    series = [each for study in studies for each in study.get("ReferencedSeriesSequence") or []]
    return any(each.get("ReferencedSOPSequence") for each in series)


def _has_derivation(ds: Dataset) -> bool:
    items = ds.get("DerivationCodeSequence") or []
    return bool(items) and all(item.get("CodeValue") and item.get("CodeMeaning") for item in items)


def _has_provenance(ds: Dataset) -> bool:
    try:
        content: dict[str, Any] = read_record(ds)
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
    "ContributingEquipmentSequence": _has_synthesizer,
    "SeriesDescription": lambda ds: str(ds.get("SeriesDescription", "")).startswith("SYN "),
    "provenance block": _has_provenance,
}
_MARKS_OF_IMAGES: dict[str, Callable[[Dataset], bool]] = {
    "ImageType": _has_image_type,
    "BurnedInAnnotation": _has_burned_in,
    "DerivationDescription": lambda ds: "SYNTHETIC" in str(ds.get("DerivationDescription", "")),
    "DerivationCodeSequence": _has_derivation,
    "SourceImageSequence or SourceInstanceSequence": _has_sources,
    "a source of its modality": _has_measured_source,
}
_MARKS_OF_DOCUMENTS: dict[str, dict[str, Callable[[Dataset], bool]]] = {
    Comprehensive3DSRStorage: {
        "words in ContentSequence": _has_label_text,
        "CurrentRequestedProcedureEvidenceSequence": _has_evidence,
        "VerificationFlag": lambda ds: ds.get("VerificationFlag") == "UNVERIFIED",
        "PreliminaryFlag": lambda ds: ds.get("PreliminaryFlag") == "PRELIMINARY",
    },
    KeyObjectSelectionDocumentStorage: {
        "words in ContentSequence": _has_label_text,
        "CurrentRequestedProcedureEvidenceSequence": _has_evidence,
    },
    EncapsulatedPDFStorage: {
        "words in DocumentTitle and document": _has_label_title,
        "SourceInstanceSequence": _has_instances,
        "VerificationFlag": lambda ds: ds.get("VerificationFlag") == "UNVERIFIED",
        "BurnedInAnnotation": lambda ds: ds.get("BurnedInAnnotation") == "YES",
    },
}
