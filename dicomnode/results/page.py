"""One RGB Secondary Capture (PS3.3 A.8.1) and one Encapsulated PDF (A.45.1) of a report page, a series each.

The page has no place in the patient: no frame of reference and no plane, so that no viewer stacks it with a volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage, SecondaryCaptureImageStorage

from dicomnode.results import label
from dicomnode.results.header import Context, Series, add_common_modules, code_item, reference_sources

__all__ = ["Page", "write"]

_TITLE = ("121144", "DCM", "Document Title")
_REPORT = ("18748-4", "LN", "Diagnostic imaging study")  # of CID 7020, the broadest
_DERIVATION = ("REPORTPAGE", "99DICOMNODE", "Page of pictures and numbers")


@dataclass(frozen=True)
class Page:
    """One page, drawn: ``pixels`` uint8 (row, column, RGB), ``pdf`` the same as a PDF file."""

    pixels: NDArray[np.uint8]
    pdf: bytes


def write(page: Page, context: Context, number: int) -> list[Dataset]:
    """Return the page in each configured kind, in that order, with series numbers from ``number`` on."""
    writers = {"sc": _secondary_capture, "pdf": _encapsulated}
    kinds = dict.fromkeys(context.config.report_page)
    return [writers[kind](page, context, number + at) for at, kind in enumerate(kinds)]


def _secondary_capture(page: Page, context: Context, number: int) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.Modality, ds.ConversionType = "OT", "WSD"
    ds.ImageType = ["DERIVED", "SECONDARY", "SYNTHETIC", "PAGE"]
    ds.BurnedInAnnotation = "YES"
    ds.PatientOrientation, ds.LossyImageCompression = "", "00"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = page.pixels.shape
    ds.PhotometricInterpretation, ds.PlanarConfiguration = "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    content = page.pixels.tobytes()
    ds.PixelData = content + b"\0" * (len(content) % 2)
    ds["PixelData"].VR = "OB"
    words = "Report page of pictures and numbers"
    add_common_modules(ds, context, Series("page", number, words, f"{words}.", _DERIVATION))
    return ds


def _encapsulated(page: Page, context: Context, number: int) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID = EncapsulatedPDFStorage
    ds.Modality, ds.ConversionType = "DOC", "WSD"
    ds.BurnedInAnnotation = "YES"
    ds.AcquisitionDateTime = ""
    ds.DocumentTitle = f"{label.TEXT}. Report of {context.provenance.pipeline}"
    ds.ConceptNameCodeSequence = [code_item(*_REPORT)]
    ds.VerificationFlag = "UNVERIFIED"
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    ds.EncapsulatedDocument = page.pdf + b"\0" * (len(page.pdf) % 2)
    ds.EncapsulatedDocumentLength = len(page.pdf)
    words = "Report page of pictures and numbers (PDF)"
    add_common_modules(ds, context, Series("page pdf", number, words, f"{words}."))
    reference_sources(ds, context.inputs)
    _only_instances(ds)
    return ds


def _only_instances(ds: Dataset) -> None:
    """Move all sources into one sequence, as PS3.3 C.24.2 has it for a document."""
    items = [*ds.get("SourceImageSequence", ()), *ds.get("SourceInstanceSequence", ())]
    ds.pop("SourceImageSequence", None)
    for item in items:
        item.pop("PurposeOfReferenceCodeSequence", None)
    ds.SourceInstanceSequence = items
