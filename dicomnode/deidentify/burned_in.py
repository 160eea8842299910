"""Refusal of instances that no cleaning of a header makes safe: text in pixels, payloads, documents.

The node's own label names nobody; its report page states the study's date and is refused like any page of text.
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicomnode.config.deidentify import DeidentifyConfig
from dicomnode.errors import InputRefused

__all__ = ["check_burned_in"]

_RAW_DATA = "1.2.840.10008.5.1.4.1.1.66"
_ENCAPSULATED = "1.2.840.10008.5.1.4.1.1.104."
_DIRECTORY = "1.2.840.10008.1.3.10"
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_AUDIO = ("1.2.840.10008.5.1.4.1.1.9.4.1", "1.2.840.10008.5.1.4.1.1.9.4.2")
_MODALITIES_WITH_TEXT = frozenset({
    "US", "IVUS", "ES", "GM", "SM", "XC", "OP", "OT", "DOC", "SD", "CR", "DX", "MG", "XA", "RF", "IO", "PX", "BI",
    "OPV", "DG", "LS", "TG", "ECG",
})  # fmt: skip
"""Modalities whose devices or operators write text into the pixels."""


def check_burned_in(ds: Dataset, profile: DeidentifyConfig, *, is_own: bool) -> None:
    """Raise InputRefused where an instance may name the patient outside of its header."""
    kind = str(ds.get("SOPClassUID") or "")
    class_name = UID(kind).name if kind else "an object without SOP class"
    if kind == _DIRECTORY or not kind:
        raise InputRefused(f"not de-identified: {class_name} is no instance of a patient's")
    if kind == _RAW_DATA:
        raise InputRefused(f"not de-identified: {class_name} has a payload that may name the patient")
    if kind.startswith(_ENCAPSULATED) or "EncapsulatedDocument" in ds:
        raise InputRefused(
            f"not de-identified: {class_name} holds a document that may name the patient or the study's date"
        )
    if kind in _AUDIO:
        raise InputRefused(f"not de-identified: {class_name} may hold speech")
    if is_own and "PAGE" in list(ds.get("ImageType") or []):
        raise InputRefused("not de-identified: the report page states the study's date in its pixels")
    if profile.burned_in == "refuse" and not is_own and (reason := _reason_for_suspicion(ds, kind)):
        raise InputRefused(
            f"not de-identified: {class_name} {reason}; burned_in = 'send' sends such images as they are"
        )


def _reason_for_suspicion(ds: Dataset, kind: str) -> str:
    """Return why the pixels may hold text; empty for no image, and where the header shows that they hold none."""
    annotation = str(ds.get("BurnedInAnnotation") or "")
    if annotation == "YES":
        return "says that text is burned into its pixels"
    if annotation == "NO" or "PixelData" not in ds:
        return ""
    if str(ds.get("Modality") or "") in _MODALITIES_WITH_TEXT or kind == _CAPTURE or kind.startswith(f"{_CAPTURE}."):
        return "does not say whether text is burned into its pixels"
    if not any(each in ds for each in ("ImagePositionPatient", "SharedFunctionalGroupsSequence", "NumberOfSlices")):
        return "has no place in the patient, so it may be a capture of a screen, and does not say that it has no text"
    return ""
