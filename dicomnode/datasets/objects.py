"""Result objects: their kind for listings, and their bytes."""

from __future__ import annotations

import io

from pydicom import Dataset

__all__ = ["KEY_OBJECT", "REFUSAL_NOTE", "encode", "kind_of"]

REFUSAL_NOTE = "refusal note"
"""Kind of the report on a refused job."""
KEY_OBJECT = "key object note"
_BY_MODALITY = {"SEG": "segmentation", "KO": KEY_OBJECT, "DOC": "report page (PDF)"}


def kind_of(ds: Dataset) -> str:
    """Return the kind of a result, as listings show it."""
    if ds.Modality in _BY_MODALITY:
        return _BY_MODALITY[ds.Modality]
    if "PAGE" in list(ds.get("ImageType") or []):
        return "report page"
    if "FloatPixelData" in ds or "DoubleFloatPixelData" in ds:
        return "parametric map"
    if "PixelData" not in ds:
        return "report"
    return "labelled image" if ds.get("BurnedInAnnotation") == "YES" else "image"


def encode(ds: Dataset) -> bytes:
    """Return the result as a DICOM file; the same result gives the same bytes."""
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
