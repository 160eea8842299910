"""Small valid files of several kinds and encodings, the seeds of what is changed."""

from __future__ import annotations

import itertools
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from dicomnode.datasets import headers
from dicomnode.datasets.encoding import read_file_meta
from dicomnode.errors import CannotUnderstand
from dicomnode.ingest.scp import TRANSFER_SYNTAXES
from tests import covariate_reports
from tests.fuzz.changes import change, lengths
from tests.peers.files import write_instance

__all__ = [
    "SYNTAXES",
    "MemoryFile",
    "accept",
    "changed_files",
    "data_sets",
    "files",
    "split",
    "temporary_file",
    "write",
]

SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless)
_RLE = struct.pack("<LL", 1, 64) + bytes(56) + bytes((241, 7))
"""A frame of 4 x 4 pixels of 8 bits: a header of 64 bytes, and one run."""
_BYTES: dict[str, Any] = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
_names = itertools.count()


class MemoryFile:
    """Bytes in memory, read as those of a file."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, at: int, count: int) -> bytes:
        return self._content[at : at + count]


@cache
def files() -> tuple[bytes, ...]:
    """Return Part 10 files: images of several encodings, with a palette, an overlay, several frames; a report."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    place: dict[str, Any] = {
        "ImagePositionPatient": [0, 0, 1],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1, 1],
    }
    return (
        write(ImplicitVRLittleEndian, ReferencedImageSequence=[item]),
        write(ExplicitVRLittleEndian, ReferencedImageSequence=[item, item], WindowCenter=[5, 6], WindowWidth=[9, 8]),
        write(ExplicitVRLittleEndian, RescaleSlope=2, RescaleIntercept=-1, PixelPaddingValue=3, **place),
        write(DeflatedExplicitVRLittleEndian),
        write(RLELossless, PixelData=encapsulate([_RLE]), **_BYTES),
        write(ExplicitVRLittleEndian, **_palette()),
        write(ExplicitVRLittleEndian, sop_class_uid=EnhancedMRImageStorage, NumberOfFrames=2, PixelData=bytes(64)),
        _write_overlay(),
        _write_report(),
    )


def write(syntax: UID, *, sop_class_uid: UID = SecondaryCaptureImageStorage, **attributes: Any) -> bytes:
    """Return a file of 4 x 4 pixels with the attributes."""
    uids = {"SOPInstanceUID": "1.2.3.4.5", "study_uid": "1.2.3", "series_uid": "1.2.4"}
    with temporary_file(b"") as path:
        write_instance(path, rows=4, sop_class_uid=sop_class_uid, transfer_syntax_uid=syntax, **uids | attributes)
        return path.read_bytes()


def split(content: bytes) -> tuple[str, bytes]:
    """Return the transfer syntax and the encoded data set of a file."""
    syntax, start = read_file_meta(MemoryFile(content), len(content))
    return syntax, content[start:]


@contextmanager
def temporary_file(content: bytes, suffix: str = ".dcm") -> Iterator[Path]:
    """Yield a file with the content under a name that no file had before."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{next(_names)}{suffix}"
        path.write_bytes(content)
        yield path


def accept(path: Path) -> None:
    """Raise CannotUnderstand unless the receiver takes such a file: only one that it takes is ever opened."""
    if headers.read(path).transfer_syntax_uid not in TRANSFER_SYNTAXES:
        raise CannotUnderstand("the transfer syntax is not known")


def changed_files() -> SearchStrategy[bytes]:
    """Files whose attributes, or bytes, were changed."""
    return st.one_of(_described_anew(), st.sampled_from(files())).flatmap(lambda content: change(content, files()))


def _palette() -> dict[str, Any]:
    found: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR", "PixelData": bytes(range(16)), **_BYTES}
    for colour in ("Red", "Green", "Blue"):
        found[f"{colour}PaletteColorLookupTableDescriptor"] = [16, 0, 16]
        found[f"{colour}PaletteColorLookupTableData"] = np.arange(16, dtype="<u2").tobytes()
    return found


def _write_overlay() -> bytes:
    with temporary_file(write(ExplicitVRLittleEndian, BitsStored=12, HighBit=11)) as path:
        ds = dcmread(path)
        for element, vr, value in ((0x10, "US", 4), (0x11, "US", 4), (0x100, "US", 1), (0x102, "US", 0)):
            ds.add_new((0x6000, element), vr, value)
        ds.add_new((0x6000, 0x3000), "OW", bytes(2))
        ds.save_as(path)
        return path.read_bytes()


def _write_report() -> bytes:
    with temporary_file(write(ExplicitVRLittleEndian)) as path:
        item = covariate_reports.number(covariate_reports.MMSE, 25, "1")
        covariate_reports.save(covariate_reports.report(dcmread(path), item), path)
        return path.read_bytes()


_ODD: dict[str, tuple[Any, ...]] = {
    "Rows": (0, 1, 3, 5, 65535), "Columns": (0, 1, 3, 5, 65535), "NumberOfFrames": (0, -1, 2, 2**31, 2_000_000_000),
    "SamplesPerPixel": (0, 2, 3, 4, 65535), "BitsAllocated": (0, 1, 7, 12, 32, 64, 65535), "HighBit": (0, 7, 31, 65535),
    "BitsStored": (0, 1, 8, 15, 17, 65535), "PixelRepresentation": (1, 2, 65535), "PlanarConfiguration": (1, 2),
    "PhotometricInterpretation": ("RGB", "YBR_FULL", "YBR_FULL_422", "PALETTE COLOR", "MONOCHROME1", "X", ""),
    "RescaleSlope": (0, "1e300", "1e-300", -1), "RescaleIntercept": ("1e308", -5), "PixelPaddingValue": (0, 65535),
    "WindowCenter": ("1e300", 0, [1, 2]), "WindowWidth": (0, -1, "1e-300", [1]), "PixelSpacing": ([0, 0], [1], [-1, 1]),
    "ImagePositionPatient": ([1, 2], [0, 0, "1e300"]), "ImageOrientationPatient": ([0] * 6, [1, 0, 0, 1, 0, 0], [1]),
    "RedPaletteColorLookupTableDescriptor": ([0, 0, 16], [65535, 65535, 8], [1, 0, 99], [16, 60000, 16], [4]),
    "RedPaletteColorLookupTableData": (b"", b"\1", bytes(70000)), "PixelData": (b"", b"\0" * 7, bytes(5000)),
}  # fmt: skip


@st.composite
def _described_anew(draw: DrawFn) -> bytes:
    """Return a file with other values of the attributes that describe its pixels."""
    with temporary_file(draw(st.sampled_from(files()))) as path:
        ds = dcmread(path)
        for keyword in draw(st.lists(st.sampled_from(sorted(_ODD)), max_size=3)):
            if draw(st.integers(0, 4)):
                setattr(ds, keyword, draw(st.sampled_from(_ODD[keyword])))
            elif keyword in ds:
                delattr(ds, keyword)
        with suppress(Exception):  # values that pydicom does not encode leave the file as it was
            ds.save_as(path)
        return path.read_bytes()


_TAGS = (
    0x00080005, 0x00080016, 0x00080018, 0x00080060, 0x00081140, 0x00100010, 0x00100020, 0x0020000D, 0x0020000E,
    0x00280008, 0x00280010, 0x00400275, 0x60003000, 0x7FE00010, 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0x00090010,
)  # fmt: skip
_VRS = (
    b"UI",
    b"LO",
    b"PN",
    b"CS",
    b"US",
    b"SQ",
    b"UN",
    b"OB",
    b"OW",
    b"UT",
    b"DS",
    b"IS",
    b"FD",
    b"AT",
    b"ZZ",
    b"\0\0",
)
_VALUES = (b"", b"1.2.3\0", b"MR", b"A^B", b"\xff" * 9, b"1e400", b"\x1b$B", b"ISO_IR 192", b"\\" * 50, b"9" * 2000)
_UNDEFINED = 0xFFFFFFFF


@st.composite
def data_sets(draw: DrawFn, depth: int = 0) -> bytes:
    """Return elements in explicit or implicit VR, nested, with right and wrong lengths and delimiters."""
    content = b""
    for _ in range(draw(st.integers(0, 5 if depth == 0 else 2))):
        tag, vr = draw(st.sampled_from(_TAGS)), draw(st.sampled_from(_VRS))
        value = draw(_items(depth)) if vr in (b"SQ", b"UN") and depth < 3 else draw(st.sampled_from(_VALUES))
        stated = draw(st.one_of(lengths(len(value)), st.just(_UNDEFINED)))
        head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        if draw(st.booleans()):
            content += head + struct.pack("<L", stated) + value
        elif vr in (b"SQ", b"UN", b"OB", b"OW", b"UT"):
            content += head + vr + struct.pack("<HL", 0, stated) + value
        else:
            content += head + vr + struct.pack("<H", stated % 65536) + value
    return content


@st.composite
def _items(draw: DrawFn, depth: int) -> bytes:
    content = b""
    for _ in range(draw(st.integers(0, 2))):
        item = draw(data_sets(depth + 1))
        end = draw(st.sampled_from((b"", b"\xfe\xff\x0d\xe0\0\0\0\0")))
        content += struct.pack("<HHL", 0xFFFE, 0xE000, _UNDEFINED if end else draw(lengths(len(item)))) + item + end
    return content + draw(st.sampled_from((b"", b"\xfe\xff\xdd\xe0\0\0\0\0")))
