"""Segmentation objects on a series of files, as other programs write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.sr.codedict import codes

from dicomnode import uids

__all__ = ["write_segmentation"]


def write_segmentation(
    path: Path,
    sources: Sequence[Path],
    labels: NDArray[np.generic],
    segments: Mapping[int, tuple[str, str]],
    *,
    kind: str = "BINARY",
    key: str = "organs",
) -> Path:
    """Write a Segmentation of ``kind`` on the source slices, in the order of ``labels`` (k, j, i), or with a last axis.

    ``segments``: label and SNOMED CT code by number. A fourth axis of ``labels`` has one mask per segment, which may
    overlap.
    """
    images = [dcmread(each) for each in sources]
    images.sort(key=lambda ds: -int(ds.InstanceNumber))  # tests.series numbers slices backwards
    made_by = hd.AlgorithmIdentificationSequence("Organs", codes.cid7162.ArtificialIntelligence, "1.0")
    descriptions = [
        hd.seg.SegmentDescription(
            number, label, codes.SCT.Organ, hd.sr.CodedConcept(code, "SCT", label),
            hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC, made_by,
        )
        for number, (label, code) in segments.items()
    ]  # fmt: skip
    ds = hd.seg.Segmentation(
        images, labels, hd.seg.SegmentationTypeValues(kind), descriptions, uids.derive(key), 900, uids.derive(key, "1"),
        1, "Other", "Segmenter", "1.0", "0", omit_empty_frames=True,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path
