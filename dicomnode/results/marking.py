"""Between the writer and the wire: nothing leaves that does not say that it is synthetic, and from what it was made."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import MultiFrameGrayscaleWordSecondaryCaptureImageStorage, SecondaryCaptureImageStorage

from dicomnode.errors import NotMarked
from dicomnode.results.header import SYNTHESIZING_EQUIPMENT
from dicomnode.results.provenance import recorded

__all__ = ["check"]

_SECONDARY = (MultiFrameGrayscaleWordSecondaryCaptureImageStorage, SecondaryCaptureImageStorage)
_NOT_EMPTY = (
    "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "SeriesNumber", "Manufacturer",
    "ManufacturerModelName", "SoftwareVersions", "DeviceSerialNumber", "ImageComments",
)  # fmt: skip
_PRESENT = ("PatientName", "PatientID", "AccessionNumber")  # may be empty, as in the source
_PROVENANCE = ("model", "pipeline", "parameters", "seed", "device", "node", "measurements")
_MODEL = ("name", "version", "sha256", "trained_on")


def check(ds: Dataset) -> None:
    """Raises ``NotMarked`` naming every mark that is missing."""
    missing = [mark for mark, present in _MARKS.items() if not present(ds)]
    missing += [keyword for keyword in _NOT_EMPTY if not ds.get(keyword)]
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
    "ImageType": _image_type,
    "BurnedInAnnotation": _burned_in,
    "ContributingEquipmentSequence": _synthesizer,
    "DerivationDescription": lambda ds: "SYNTHETIC" in str(ds.get("DerivationDescription", "")),
    "DerivationCodeSequence": _derivation,
    "SourceImageSequence or SourceInstanceSequence": _sources,
    "SeriesDescription": lambda ds: str(ds.get("SeriesDescription", "")).startswith("SYN "),
    "provenance block": _provenance,
}
