"""Laterality (0020,0060): which of a pair of body parts a result shows."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

__all__ = ["say"]

_SEGMENTATIONS = (SegmentationStorage, "1.2.840.10008.5.1.4.1.1.66.7")
_UNPAIRED = frozenset({
    "ABDOMEN", "ABDOMENPELVIS", "AORTA", "BACK", "BLADDER", "BRAIN", "CEREBELLUM", "CERVIX", "CHEST", "CHESTABDOMEN",
    "CHESTABDPELVIS", "CIRCLEOFWILLIS", "COCCYX", "COLON", "CORONARYARTERY", "CSPINE", "CTSPINE", "DUODENUM",
    "ESOPHAGUS", "FACE", "GALLBLADDER", "HEAD", "HEADNECK", "HEART", "ILEUM", "JAW", "JEJUNUM", "LARYNX", "LIVER",
    "LSPINE", "LSSPINE", "MAXILLA", "MEDIASTINUM", "MOUTH", "NECK", "NECKCHEST", "NECKCHESTABDOMEN",
    "NECKCHESTABDPELV", "NOSE", "PANCREAS", "PELVIS", "PENIS", "PHARYNX", "PROSTATE", "RECTUM", "SCALP", "SKULL",
    "SPINE", "SPLEEN", "SSPINE", "STERNUM", "STOMACH", "THYMUS", "THYROID", "TLSPINE", "TONGUE", "TRACHEA", "TSPINE",
    "URETHRA", "UTERUS", "VAGINA", "VULVA", "WHOLEBODY",
})  # fmt: skip
"""Of PS3.16 Annex L what a body has one of: any other word may mean one of a pair."""


def say(ds: Dataset) -> None:
    """Leave Laterality out where the body has one such part, and make it empty where a pair cannot be ruled out.

    PS3.3 C.7.3.1 has it as type 2C: for paired parts, unless Image Laterality (0020,0062) says it. A segmentation has
    none: which side a segment is on follows from where it lies.
    """
    if str(ds.get("BodyPartExamined") or "") in _UNPAIRED or ds.SOPClassUID in _SEGMENTATIONS:
        ds.pop("Laterality", None)
    elif not ds.get("Laterality"):
        ds.Laterality = ""
        if ds.get("ImageLaterality"):
            del ds.Laterality
