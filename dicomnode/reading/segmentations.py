"""Label maps from Segmentation Storage: BINARY without overlap (PS3.3 C.8.20.2) and LABELMAP (C.8.20.4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from pydicom import Dataset, dcmread
from pydicom.sr.coding import snomed_mapping  # type: ignore[attr-defined]  # not in its __all__
from pydicom.uid import UID, SegmentationStorage

from dicomnode.errors import InputRefused
from dicomnode.reading import unreadable
from dicomnode.reading.frames import cite
from pipelines.contract import Code, Grid, Labels, Segment

__all__ = ["read"]

_CLASSES = (SegmentationStorage, UID("1.2.840.10008.5.1.4.1.1.66.7"))  # the second: Label Map Segmentation Storage
_BULK = ("PixelData", "PerFrameFunctionalGroupsSequence")


def read(paths: Sequence[Path]) -> tuple[Labels, dict[str, Any], Dataset]:
    """Return the labels of one Segmentation, facts on it, and its header without frames. Raises InputRefused.

    Planes without a frame hold no segment. Segments that overlap, fractions and frames without a place in the patient
    are refused.
    """
    if len(paths) != 1:
        raise InputRefused(f"one segmentation is one object; {len(paths)} instances were given")
    ds = dcmread(paths[0])
    unreadable.decode(ds)
    if ds.get("SOPClassUID") not in _CLASSES:
        raise InputRefused(f"{cite(ds)} is no Segmentation Storage")
    if ds.get("SegmentationType") == "FRACTIONAL":
        raise InputRefused(f"{cite(ds)}: Segmentation Type (0062,0001) is FRACTIONAL; needed is BINARY or LABELMAP")
    segments = tuple(_read_segment(item) for item in ds.get("SegmentSequence", ()) if item.get("SegmentNumber"))
    data, affine_mm = _read_frames(ds)
    if unknown := sorted(set(np.unique(data).tolist()) - {0} - {each.number for each in segments}):
        raise InputRefused(f"{cite(ds)}: frames hold segments {unknown}, which Segment Sequence (0062,0002) lacks")
    k, j, i = data.shape
    facts = {"modality": "SEG", "algorithms": _list_algorithms(ds), "slices": k}
    return Labels(data, Grid((k, j, i), affine_mm), segments), facts, _without_frames(ds)


def _read_frames(ds: Dataset) -> tuple[np.ndarray[Any, np.dtype[np.uint16]], np.ndarray[Any, np.dtype[np.float64]]]:
    """Return the segment's number in each voxel (k, j, i), and the affine of indices (i, j, k, 1)."""
    try:
        volume = hd.seg.Segmentation.from_dataset(ds, copy=False).get_volume(
            combine_segments=True, rescale_fractional=False, allow_missing_positions=True
        )
    except (RuntimeError, ValueError, AttributeError, KeyError) as error:
        raise InputRefused(f"{cite(ds)}: no label map can be made of it ({' '.join(str(error).split())})") from error
    if volume.coordinate_system is not hd.CoordinateSystemNames.PATIENT:
        raise InputRefused(f"{cite(ds)}: its frames lie on a slide, not in a patient")
    affine = np.array(volume.affine, float)[:, [2, 1, 0, 3]]
    return np.ascontiguousarray(volume.array, np.uint16), affine


def _read_segment(item: Dataset) -> Segment:
    category, kind = (_read_code(item, f"SegmentedProperty{part}CodeSequence") for part in ("Category", "Type"))
    return Segment(int(item.SegmentNumber), str(item.get("SegmentLabel") or ""), category, kind)


def _read_code(item: Dataset, keyword: str) -> Code:
    sequence = item.get(keyword) or ()
    if not sequence:
        return Code("", "", "")
    code = sequence[0]
    value = str(code.get("CodeValue") or code.get("LongCodeValue") or code.get("URNCodeValue") or "")
    scheme, meaning = str(code.get("CodingSchemeDesignator") or ""), str(code.get("CodeMeaning") or "")
    if scheme == "SRT" and value in snomed_mapping["SRT"]:  # codes of earlier editions
        return Code(snomed_mapping["SRT"][value], "SCT", meaning)
    return Code(value, scheme, meaning)


def _list_algorithms(ds: Dataset) -> tuple[str, ...]:
    """Return how the segments were made, as "AUTOMATIC TotalSegmentator", each once."""
    names = (
        f"{item.get('SegmentAlgorithmType', '')} {item.get('SegmentAlgorithmName') or ''}".strip()
        for item in ds.get("SegmentSequence", ())
    )
    return tuple(dict.fromkeys(name for name in names if name))


def _without_frames(ds: Dataset) -> Dataset:
    for keyword in _BULK:
        if keyword in ds:
            delattr(ds, keyword)
    return ds
