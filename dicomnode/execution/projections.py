"""Projections of computed tomography from files: one Raw Data object of this node, or a DICOM-CT-PD series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import RawDataStorage

from dicomnode import sinogram
from dicomnode.errors import InputRefused
from dicomnode.reading import unreadable
from pipelines.contract import Projections

__all__ = ["describe_projections", "load_projections"]


def load_projections(paths: Sequence[Path]) -> tuple[Projections, dict[str, Any], list[Dataset]]:
    """Return projections, their facts, and the headers for the writer. Raises InputRefused or Refused."""
    if not paths:
        raise InputRefused("there is no DICOM file with projections")
    first = _read(paths[0])
    if first.get("SOPClassUID") == RawDataStorage:
        if len(paths) != 1:
            raise InputRefused(f"one scan is one Raw Data object; {len(paths)} instances were given")
        if not sinogram.is_sinogram(first):
            raise InputRefused(
                "the instance holds no projections in Raw Data Storage; 'dicomnode sinogram wrap' makes one"
            )
        projections, facts = sinogram.read(sinogram.unwrap(first))
        headers = [first]
    else:
        headers = [first, *(_read(path) for path in paths[1:])]
        if other := next((ds for ds in headers if not sinogram.is_ct_pd(ds)), None):
            kind = other.get("Modality") or "unknown modality"
            raise InputRefused(f"an instance ({kind}) is no view in DICOM-CT-PD: it has no element (7029,1010)")
        projections, facts = sinogram.read_ct_pd(headers)
    body_part = str(first.get("BodyPartExamined") or "")
    is_placed = not any(each.startswith(("orientation", "place")) for each in projections.assumptions)
    for ds in headers:
        if not is_placed:
            ds.pop("FrameOfReferenceUID", None)  # results get their own: nothing says that they lie in the scanner's
        ds.remove_private_tags()  # no result repeats them, and arrays are large
        ds.pop("PixelData", None)
    return projections, facts | ({"body_part": body_part} if body_part else {}), headers


def describe_projections(projections: Projections) -> dict[str, Any]:
    """Return the geometry in words and numbers, without patient data."""
    beam, counts = projections.beam, projections.counts
    return {
        "slices": len(counts),
        "views": beam.views,
        "bins": beam.bins,
        "bin_mm": round(beam.bin_mm, 4),
        "beam": "parallel" if beam.source_mm is None else "fan",
        "source_mm": beam.source_mm,
        "arc_deg": round(beam.arc_deg, 3),
        "missing_deg": round(beam.missing_deg, 3),
        "pixels": list(beam.shape),
        "pixel_mm": round(beam.pixel_mm, 4),
        "slice_mm": round(projections.grid.spacing_mm[0], 4),
        "largest_line_integral": round(float(projections.line_integrals.max()), 3),
        "fewest_photons": round(float(counts.min()), 1),
        "median_photons": round(float(np.median(counts)), 1),
        "assumed": list(projections.assumptions),
    }


def _read(path: Path) -> Dataset:
    ds = dcmread(path)
    unreadable.decode(ds)
    return ds
