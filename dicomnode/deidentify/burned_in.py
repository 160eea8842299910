"""What no cleaning of a header can make safe: text in pixels, payloads and documents. It is refused, with the reason.

The node's own label names nobody; its report page states the study's date and is refused like any page of text.
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicomnode.config.deidentify import DeidentifyConfig
from dicomnode.errors import InputRefused

__all__ = ["check"]

_RAW_DATA = "1.2.840.10008.5.1.4.1.1.66"
_ENCAPSULATED = "1.2.840.10008.5.1.4.1.1.104."
_DIRECTORY = "1.2.840.10008.1.3.10"
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_AUDIO = ("1.2.840.10008.5.1.4.1.1.9.4.1", "1.2.840.10008.5.1.4.1.1.9.4.2")
_LETTERED = frozenset({
    "US", "IVUS", "ES", "GM", "SM", "XC", "OP", "OT", "DOC", "SD", "CR", "DX", "MG", "XA", "RF", "IO", "PX", "BI",
    "OPV", "DG", "LS", "TG", "ECG",
})  # fmt: skip
"""Modalities whose devices or operators write into pixels."""


def check(ds: Dataset, profile: DeidentifyConfig, *, ours: bool) -> None:
    """Raises InputRefused."""
    kind = str(ds.get("SOPClassUID") or "")
    called = UID(kind).name if kind else "an object without SOP class"
    if kind == _DIRECTORY or not kind:
        raise InputRefused(f"not de-identified: {called} is no instance of a patient's")
    if kind == _RAW_DATA:
        raise InputRefused(f"not de-identified: {called} has a payload that may name the patient")
    if kind.startswith(_ENCAPSULATED) or "EncapsulatedDocument" in ds:
        raise InputRefused(
            f"not de-identified: {called} holds a document that may name the patient or the study's date"
        )
    if kind in _AUDIO:
        raise InputRefused(f"not de-identified: {called} may hold speech")
    if ours and "PAGE" in list(ds.get("ImageType") or []):
        raise InputRefused("not de-identified: the report page states the study's date in its pixels")
    if profile.burned_in == "refuse" and not ours and (why := _suspect(ds, kind)):
        raise InputRefused(f"not de-identified: {called} {why}; burned_in = 'send' sends such images as they are")


def _suspect(ds: Dataset, kind: str) -> str:
    """Why its pixels may hold text; empty where it is none of an image, or says or lets know that there is none."""
    stated = str(ds.get("BurnedInAnnotation") or "")
    if stated == "YES":
        return "says that text is burned into its pixels"
    if stated == "NO" or "PixelData" not in ds:
        return ""
    if str(ds.get("Modality") or "") in _LETTERED or kind == _CAPTURE or kind.startswith(f"{_CAPTURE}."):
        return "does not say whether text is burned into its pixels"
    if not any(each in ds for each in ("ImagePositionPatient", "SharedFunctionalGroupsSequence", "NumberOfSlices")):
        return "has no place in the patient, so it may be a capture of a screen, and does not say that it has no text"
    return ""
