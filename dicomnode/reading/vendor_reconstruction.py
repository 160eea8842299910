"""Reconstruction by deep learning at the scanner, from the headers of MR of GE, Siemens and Philips.

The standard has no attribute for it. The vendors' elements:

- GE AIR Recon DL: (0043,xxCA) of GEMS_PARM_01, strength and level, as ``0.75\\High``;
- Siemens Deep Resolve: words DRB (Boost), DRG (Gain) and DRS (Sharp) in Image Type of classic objects, and in
  (0021,xx75) of SIEMENS MR SDI 02, in the functional groups of enhanced ones;
- Philips SmartSpeed AI: (2005,xx10) of Philips MR Imaging DD 008, as ``CS_SENSE_AI``, or ``NONE``.

Those elements are private but for Image Type, so de-identification may remove them. Then the answer is "unknown".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from dicomnode.reading.frames import Frame

__all__ = ["OFF", "ON", "UNKNOWN", "facts"]

ON, OFF, UNKNOWN = "on", "off", "unknown"

_GE = (0x0043, "GEMS_PARM_01", 0xCA)
_GE_LEAST_ELEMENTS = 10
"""A scanner's block has dozens of elements, those that PS3.15 lists as safe to keep are two."""
_GE_LEVEL = re.compile(r"\d*\.?\d+")
_SIEMENS = (0x0021, "SIEMENS MR SDI 02", 0x75)
_SIEMENS_GROUP = (0x0021, "SIEMENS MR SDI 02", 0xFE)
_DEEP_RESOLVE = MappingProxyType({
    "DRB": "Deep Resolve Boost", "DRG": "Deep Resolve Gain", "DRS": "Deep Resolve Sharp",
})  # fmt: skip
_SIEMENS_DISTORTION = frozenset({"ND", "DIS2D", "DIS3D"})
"""Siemens' lists of processing steps have one of these words; an Image Type without them is not such a list."""
_PHILIPS = (0x2005, "Philips MR Imaging DD 008", 0x10)
_PHILIPS_WITHOUT_AI = frozenset({"NONE", "SENSE", "CS_SENSE", "COMPRESSED_SENSE"})


def facts(frames: Sequence[Frame]) -> dict[str, str]:
    """Return ``deep_learning_reconstruction``: "on" if any frame says so, "off" if all say so, otherwise "unknown".

    Where it is on, ``deep_learning_details`` names the vendor's method. Empty for other modalities than MR.
    """
    if not any(frame.get("Modality") == "MR" for frame in frames):
        return {}
    found = [_read_frame(frame) for frame in frames]
    details = next((details for state, details in found if state == ON), "")
    if details:
        return {"deep_learning_reconstruction": ON, "deep_learning_details": details}
    return {"deep_learning_reconstruction": OFF if all(state == OFF for state, _ in found) else UNKNOWN}


def _read_frame(frame: Frame) -> tuple[str, str]:
    """Return the state and, where it is on, the vendor's method."""
    manufacturer = str(frame.get("Manufacturer") or "").upper()
    for name, read in (("GE", _read_ge), ("SIEMENS", _read_siemens), ("PHILIPS", _read_philips)):
        if manufacturer.startswith(name):
            return read(frame)
    return UNKNOWN, ""


def _read_ge(frame: Frame) -> tuple[str, str]:
    """GE writes no element where AIR Recon DL is off: "off" needs a block that nobody has thinned out."""
    for place in _places(frame):
        words = _words(place, *_GE)
        if words:
            return _read_ge_words(words)
    group, creator, _ = _GE
    is_deidentified = frame.get("PatientIdentityRemoved") == "YES" or frame.get("DeidentificationMethod") is not None
    count = max(_count_elements(place, group, creator) for place in _places(frame))
    return (OFF if count >= _GE_LEAST_ELEMENTS and not is_deidentified else UNKNOWN), ""


def _read_ge_words(words: Sequence[str]) -> tuple[str, str]:
    """Return what strength and level say; "unknown" for other values."""
    strength = next((float(term) for term in words if _GE_LEVEL.fullmatch(term)), None)
    level = next((term for term in words if term in ("LOW", "MEDIUM", "HIGH")), "")
    if strength == 0 or set(words) <= {"OFF", "NONE"}:
        return OFF, ""
    if strength is None and not level:
        return UNKNOWN, ""
    number = "" if strength is None else f"{strength:g} "
    return ON, f"AIR Recon DL {number}{level.lower()}".rstrip()


def _read_siemens(frame: Frame) -> tuple[str, str]:
    words = {str(term) for keyword in ("ImageType", "FrameType") for term in np.atleast_1d(frame.get(keyword) or ())}
    words |= {term for place in _places(frame) for term in _words(place, *_SIEMENS)}
    details = [meaning for term, meaning in _DEEP_RESOLVE.items() if term in words]
    if details:
        return ON, ", ".join(details)
    return (OFF if words & _SIEMENS_DISTORTION else UNKNOWN), ""


def _read_philips(frame: Frame) -> tuple[str, str]:
    for place in _places(frame):
        words = _words(place, *_PHILIPS)
        if words:
            if any("AI" in re.split(r"[^A-Z]", term) for term in words):
                return ON, "SmartSpeed AI"
            return (OFF if set(words) <= _PHILIPS_WITHOUT_AI else UNKNOWN), ""
    return UNKNOWN, ""


def _places(frame: Frame) -> Iterator[Dataset]:
    """Yield the data sets in which a vendor's element may stand."""
    for place in (frame.header, *frame.groups, *frame.unassigned()):
        yield place
        element = _find_private(place, *_SIEMENS_GROUP)
        yield from (each for each in element if isinstance(each, Dataset)) if isinstance(element, Sequence) else ()


def _find_private(ds: Dataset, group: int, creator: str, element: int) -> Any:
    try:
        return ds.private_block(group, creator)[element].value
    except KeyError:
        return None


def _words(ds: Dataset, group: int, creator: str, element: int) -> list[str]:
    """Return the values of a private element in upper case; its VR is unknown in Implicit VR."""
    value = _find_private(ds, group, creator, element)
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace").split("\\")
    texts = [str(each).strip("\0 ").upper() for each in np.atleast_1d(() if value is None else value)]
    return [text for text in texts if text]


def _count_elements(ds: Dataset, group: int, creator: str) -> int:
    try:
        start = (group << 16) + ds.private_block(group, creator).block_start
    except KeyError:
        return 0
    return len(ds[start : start + 0x100])
