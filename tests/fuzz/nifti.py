"""NIfTI files of the page Try: a DICOM series is made of them by the process that decodes, or they are refused."""

from __future__ import annotations

import gzip
import struct
from functools import cache

import nibabel
import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from dicomnode import decoding
from dicomnode.errors import InputRefused
from dicomnode.nifti import uploads
from tests.fuzz.changes import change
from tests.fuzz.instances import temporary_file
from tests.fuzz.oracle import recorded_errors

__all__ = ["REFUSALS", "examples", "target"]

REFUSALS = (InputRefused,)
_PLACES = (0, 40, 42, 44, 46, 48, 70, 72, 76, 80, 84, 88, 92, 108, 112, 116, 252, 254, 280, 284, 288, 296, 312, 344)
"""Offsets of the fields of the header: sizes, type, spacing, offset of the voxels, scale, codes, matrix, magic."""
_ODD = (
    *(struct.pack("<h", number) for number in (0, 1, -1, 2, 255, 32767, -32768)),
    *(struct.pack("<f", number) for number in (0.0, -1.0, 1e30, float("nan"), float("inf"))),
)


def target(data: bytes) -> None:
    """``data``: the file, compressed or not."""
    suffix = ".nii.gz" if data[:2] == b"\x1f\x8b" else ".nii"
    with temporary_file(data, suffix) as path, recorded_errors() as errors:
        (path.parent / "out").mkdir()
        try:
            decoding.run(uploads.convert, path, "MR", path.parent / "out")
        finally:
            assert not errors, errors


def examples() -> SearchStrategy[bytes]:
    """Files with odd numbers in their headers, plain and compressed, and with changed bytes."""
    plain = st.one_of(_edited(), change(_file()))
    return st.one_of(plain, plain.map(gzip.compress), change(gzip.compress(_file())))


@cache
def _file() -> bytes:
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    return bytes(image.to_bytes())


@st.composite
def _edited(draw: DrawFn) -> bytes:
    content = bytearray(_file())
    for at in draw(st.lists(st.sampled_from(_PLACES), min_size=1, max_size=3)):
        value = draw(st.sampled_from(_ODD))
        content[at : at + len(value)] = value
    return bytes(content)
