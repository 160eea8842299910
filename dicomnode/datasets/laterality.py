"""Laterality (0020,0060): which of a pair of body parts a result shows."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

__all__ = ["set_laterality"]

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
"""Body parts of PS3.16 Annex L that are not paired; any other term may mean one of a pair."""


def set_laterality(ds: Dataset) -> None:
    """Leave Laterality out for an unpaired body part, and make it empty where a pair cannot be ruled out.

    PS3.3 C.7.3.1 requires it for paired parts without Image Laterality (0020,0062), type 2C. A segmentation has none:
    the side of a segment follows from its position.
    """
    if str(ds.get("BodyPartExamined") or "") in _UNPAIRED or ds.SOPClassUID in _SEGMENTATIONS:
        ds.pop("Laterality", None)
    elif not ds.get("Laterality"):
        ds.Laterality = ""
        if ds.get("ImageLaterality"):
            del ds.Laterality
