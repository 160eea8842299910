"""Faces in images of heads, for profiles with ``deface``: looked for here, taken away where torch is at hand."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicomnode.config.deidentify import DeidentifyConfig
from dicomnode.errors import InputRefused

__all__ = ["check", "may_show_a_face", "say"]

HEAD_WORDS = ("HEAD", "BRAIN", "SKULL", "CEREB", "CRANI", "NEURO", "FACE", "ORBIT", "NECK", "JAW", "WHOLEBODY")


def check(ds: Dataset, profile: DeidentifyConfig) -> None:
    """Raises InputRefused for an image that may show a face, where the profile wants none."""
    if profile.deface and may_show_a_face(ds):
        kind = UID(str(ds.get("SOPClassUID") or "")).name
        raise InputRefused(f"not de-identified: {kind} may show a face, and none was taken away")


def may_show_a_face(ds: Dataset) -> bool:
    """An image of a head, or of nobody knows what, that does not say that nobody is recognised by it."""
    if ds.get("RecognizableVisualFeatures") == "NO" or ds.get("Modality") == "SEG":
        return False
    if "Rows" not in ds:
        return False
    part = "".join(str(ds.get("BodyPartExamined") or "").upper().split())
    return not part or any(word in part for word in HEAD_WORDS)


def say(ds: Dataset) -> None:
    """That nobody is recognised by an image (PS3.3 C.7.6.1)."""
    if "Rows" in ds:
        ds.RecognizableVisualFeatures = "NO"
