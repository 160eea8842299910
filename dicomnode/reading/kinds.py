"""Images that make no volume though they have pixels and places: tiles, projections, colours, animals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from dicomnode.errors import InputRefused
from dicomnode.reading.frames import Frame, cite

__all__ = ["check", "check_frame", "class_name", "words_of"]

_TILES = ("MOSAIC", "VFRAME")
_PROJECTIONS = ("PROJECTION IMAGE", "MIP", "MINIP", "MNIP")
_VOLUMETRIC = ("NONE", "MPR", "MIXED")
_CSA = 0x0029, "SIEMENS CSA HEADER", 0x10
_IMAGES_IN_TILES = ((0x0019, "SIEMENS MR HEADER", 0x0A), (0x0065, "Image Private Header", 0x50))
_TILED_BY = ("SIEMENS", "UIH")
_MOST_INTERPOLATED = 2.5
"""Largest ratio of image to Acquisition Matrix, both ways, that the scanners of ``_TILED_BY`` interpolate to."""
_SMALLEST_TILED_MM = 330.0
"""Less than three tiles of a head, both ways; an image that is no larger may be one head, interpolated as strongly."""
_LARGEST_FIELD_MM = 700.0
"""No magnet's bore is wider: an image that is larger both ways shows its field of view several times."""


def check(ds: Dataset) -> None:
    """Raise InputRefused for an instance of which no frame is a plane of a volume."""
    if not ds.get("Rows") or not ds.get("Columns"):
        raise InputRefused(f"{cite(ds)} is no image ({class_name(ds)})")
    photometric = str(ds.get("PhotometricInterpretation") or "")
    if not photometric:
        raise InputRefused(f"{cite(ds)} ({class_name(ds)}) has no Photometric Interpretation (0028,0004): no image")
    if ds.get("SamplesPerPixel", 1) != 1 or not photometric.startswith("MONOCHROME"):
        raise InputRefused(f"{cite(ds)} is a colour image ({photometric}); no quantity")
    if ds.get("Modality") == "MR" and (photometric == "MONOCHROME1" or ds.get("PresentationLUTShape") == "INVERSE"):
        raise InputRefused(
            f"{cite(ds)}: Photometric Interpretation (0028,0004) or Presentation LUT Shape (2050,0020) shows large "
            "values dark; it is not known whether they are inverted signals"
        )
    if str(ds.get("AnatomicalOrientationType") or "BIPED") != "BIPED":
        raise InputRefused(f"{cite(ds)}: Anatomical Orientation Type (0010,2210) is an animal's, with other directions")
    _check_tiles(ds)
    _check_aspect(ds)


def check_frame(frame: Frame) -> None:
    """Raise InputRefused for a frame that shows what lies along lines of sight, or on a curved surface."""
    kinds = words_of(frame.get("FrameType"), frame.get("ImageType"))
    if "LOCALIZER" in kinds:
        raise InputRefused(f"{cite(frame.header)} is a localiser; no volume")
    technique = str(frame.get("VolumeBasedCalculationTechnique") or "NONE")
    if technique not in _VOLUMETRIC or frame.get("VolumetricProperties") == "SAMPLED" or kinds & set(_PROJECTIONS):
        raise InputRefused(
            f"{cite(frame.header)} is a projection or rendering ({technique}) of a volume, no slice of it"
        )


def class_name(ds: Dataset) -> str:
    """Return the name of the SOP class of an instance, for messages."""
    uid = ds.get("SOPClassUID")
    return str(uid.name) if uid else "unknown SOP class"


def words_of(*values: Any) -> set[str]:
    """Return the words of Image Type and the like, in capitals."""
    return {str(term).upper() for value in values for term in np.atleast_1d(value or [])}


def _check_tiles(ds: Dataset) -> None:
    """Raise InputRefused for a mosaic; a frame with a place of its own is none, whatever Image Type says."""
    if ds.get("PerFrameFunctionalGroupsSequence"):
        return
    reasons = (
        ("Image Type (0008,0008) says so", bool(words_of(ds.get("ImageType")) & set(_TILES))),
        ("a private element counts the images in it", any(_private_number(ds, *each) > 1 for each in _IMAGES_IN_TILES)),
        ("the private CSA header counts the images in it", _counted_by_csa(ds)),
        ("it is several times as large as Acquisition Matrix (0018,1310) both ways", _is_beyond_matrix(ds)),
        (f"its Pixel Spacing (0028,0030) makes it larger than {_LARGEST_FIELD_MM:g} mm both ways", _is_too_large(ds)),
    )
    for reason, holds in reasons:
        if holds:
            raise InputRefused(
                f"{cite(ds)} is a mosaic ({reason}): a whole volume tiled into one image, whose geometry stands in "
                "private elements only; send the series as single slices or enhanced multi-frame"
            )


def _private_number(ds: Dataset, group: int, creator: str, element: int) -> float:
    try:
        return float(ds.private_block(group, creator)[element].value)
    except (KeyError, TypeError, ValueError):
        return 0.0


def _counted_by_csa(ds: Dataset) -> bool:
    """Return whether the CSA image header has a value for NumberOfImagesInMosaic; its tag stands in every image."""
    group, creator, element = _CSA
    try:
        content = ds.private_block(group, creator)[element].value
    except KeyError:
        return False
    at = content.find(b"NumberOfImagesInMosaic\0") if isinstance(content, bytes) else -1
    if at < 0:
        return False
    items = content[at + 84 : at + 84 + 16 + 8]  # name (64), VM, VR, type, items, 77; then four lengths and the value
    return any(48 < byte < 58 for byte in items[16:])


def _is_beyond_matrix(ds: Dataset) -> bool:
    matrix = [int(each) for each in _numbers(ds.get("AcquisitionMatrix")) if each > 0]
    maker = str(ds.get("Manufacturer") or "").upper()
    if len(matrix) != 2 or not any(each in maker for each in _TILED_BY):
        return False
    beyond = min(int(ds.Rows), int(ds.Columns)) >= _MOST_INTERPOLATED * max(matrix)
    return beyond and _field_mm(ds) >= _SMALLEST_TILED_MM


def _is_too_large(ds: Dataset) -> bool:
    return ds.get("Modality") == "MR" and _field_mm(ds) > _LARGEST_FIELD_MM


def _field_mm(ds: Dataset) -> float:
    """Return the lesser side of the image; zero where its Pixel Spacing says nothing."""
    spacing = _numbers(ds.get("PixelSpacing"))
    return min(int(ds.Rows) * spacing[0], int(ds.Columns) * spacing[1]) if len(spacing) == 2 else 0.0


def _check_aspect(ds: Dataset) -> None:
    """Raise InputRefused for a Pixel Aspect Ratio that contradicts Pixel Spacing (C.7.6.3.1.7)."""
    spacing, aspect = _numbers(ds.get("PixelSpacing")), _numbers(ds.get("PixelAspectRatio"))
    if len(spacing) != 2 or len(aspect) != 2 or min(*spacing, *aspect) <= 0:
        return
    if abs(spacing[0] / spacing[1] / (aspect[0] / aspect[1]) - 1) > 0.01:
        raise InputRefused(
            f"{cite(ds)}: Pixel Aspect Ratio (0028,0034) and Pixel Spacing (0028,0030) contradict each other"
        )


def _numbers(value: Any) -> list[float]:
    try:
        return [float(each) for each in value] if isinstance(value, Iterable) and not isinstance(value, str) else []
    except (TypeError, ValueError):
        return []
