"""Checks for faces in images of heads, for profiles with ``deface``; ``defacing`` removes them and needs torch."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicomnode.config.deidentify import DeidentifyConfig
from dicomnode.errors import InputRefused

__all__ = ["check_face", "mark_face_removed", "may_show_face"]

HEAD_PARTS = ("HEAD", "BRAIN", "SKULL", "CEREB", "CRANI", "NEURO", "FACE", "ORBIT", "NECK", "JAW", "WHOLEBODY")


def check_face(ds: Dataset, profile: DeidentifyConfig) -> None:
    """Raise InputRefused for an image that may show a face, where the profile demands defacing."""
    if profile.deface and may_show_face(ds):
        kind = UID(str(ds.get("SOPClassUID") or "")).name
        raise InputRefused(f"not de-identified: {kind} may show a face, and none was removed")


def may_show_face(ds: Dataset) -> bool:
    """Return whether an image is of a head or of an unknown body part, and does not exclude recognisable features."""
    if ds.get("RecognizableVisualFeatures") == "NO" or ds.get("Modality") == "SEG":
        return False
    if "Rows" not in ds:
        return False
    part = "".join(str(ds.get("BodyPartExamined") or "").upper().split())
    return not part or any(name in part for name in HEAD_PARTS)


def mark_face_removed(ds: Dataset) -> None:
    """Set RecognizableVisualFeatures of an image to NO (PS3.3 C.7.6.1)."""
    if "Rows" in ds:
        ds.RecognizableVisualFeatures = "NO"
