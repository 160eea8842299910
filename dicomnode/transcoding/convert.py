"""A stored file in Explicit VR Little Endian, for clients that take nothing else, frame by frame."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from dicomnode import decoding
from dicomnode.datasets import inflating
from dicomnode.errors import InputRefused
from dicomnode.transcoding import pixels
from dicomnode.transcoding.pixels import Pixels

__all__ = ["explicit_little_endian"]

_BROKEN = (
    AttributeError, EOFError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
_TOGETHER = 8 << 20
"""Bytes of frames that are decoded at once, where a frame has less."""
_LONGEST = 2**32 - 2
_VRS = {0x7FE00008: b"OF", 0x7FE00009: b"OD"}
_OFFSET_TABLES = (0x7FE00001, 0x7FE00002, 0x7FE00003)
_DESCRIBED = (
    "PhotometricInterpretation", "SamplesPerPixel", "PlanarConfiguration", "NumberOfFrames",
)  # fmt: skip


def explicit_little_endian(path: Path) -> Iterator[bytes]:
    """The whole file in pieces, decompressed where it was compressed; the same instance. Raises InputRefused and
    NodeBusy, where they can be known before the first piece."""
    place = pixels.layout(path)
    if place is None or inflating.is_deflated(place.transfer_syntax_uid):
        yield from decoding.sent(decoding.pieces(_rewritten, path))
        return
    decode = place.is_encapsulated or place.transfer_syntax_uid == ExplicitVRBigEndian
    length = place.frames * place.frame_bits // 8 if decode else place.length
    if length > _LONGEST or (decode and place.frame_bits % 8):
        raise InputRefused("an instance of this size cannot be written uncompressed")
    yield from decoding.sent(decoding.pieces(_head, place, decode))
    yield _element_header(place, length)
    yield from _decoded(place) if decode else pixels.whole(place)
    yield b"\0" * (length % 2)
    yield from decoding.sent(decoding.pieces(_tail, place))


def _decoded(place: Pixels) -> Iterator[bytes]:
    count = max(1, _TOGETHER // max(place.frame_bits // 8, 1))
    for first in range(0, place.frames, count):
        several = range(first, min(first + count, place.frames))
        yield from decoding.sent(decoding.pieces(_frames, place, several))


def _frames(place: Pixels, indices: range) -> bytes:
    found = b"".join(pixels.decoded(place, index) for index in indices)
    if len(found) * 8 != len(indices) * place.frame_bits:
        raise InputRefused("the decoded frames are of another size than the header announces")
    return found


def _element_header(place: Pixels, length: int) -> bytes:
    vr = _VRS.get(place.tag, b"OW" if place.bits > 8 else b"OB")
    return struct.pack("<HH2sHL", place.tag >> 16, place.tag & 0xFFFF, vr, 0, length + length % 2)


def _head(place: Pixels, decode: bool) -> bytes:
    """Everything before the pixels. What is said of them is what the decoder made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values
        try:
            ds = dcmread(place.path, stop_before_pixels=True)
            if decode:
                pixels.array(place, 0)  # checks its size before it makes room for it
                said = Dataset()
                pixel_array(place.path, ds_out=said, index=0)
                for name in _DESCRIBED:
                    if name in ds or name == "PlanarConfiguration":
                        _say(ds, said, name)
            for tag in _OFFSET_TABLES:
                ds.pop(tag, None)
            return _written(ds)
        except _BROKEN as error:
            raise _cannot(error) from None


def _say(ds: Dataset, said: Dataset, name: str) -> None:
    if name in said and (name != "PlanarConfiguration" or said.SamplesPerPixel > 1):
        setattr(ds, name, said[name].value)


def _tail(place: Pixels) -> bytes:
    """Everything after the pixels: a signature, padding."""
    syntax = UID(place.transfer_syntax_uid)
    try:
        with place.path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file.seek(place.at + place.length)
            ds = read_dataset(file, syntax.is_implicit_VR, syntax.is_little_endian)
            for _ in ds.iterall():
                pass
            out = DicomBytesIO()
            out.is_implicit_VR, out.is_little_endian = False, True
            write_dataset(out, ds)
            return out.getvalue()
    except _BROKEN as error:
        raise _cannot(error) from None


def _rewritten(path: Path) -> bytes:
    """The whole file at once, where it has no pixels or cannot be read in parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _written(dcmread(path))
        except _BROKEN as error:
            raise _cannot(error) from None


def _written(ds: Dataset) -> bytes:
    for _ in ds.iterall():  # numbers of another byte order are decoded
        pass
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = io.BytesIO()
    dcmwrite(file, ds, enforce_file_format=True)
    return file.getvalue()


def _cannot(error: Exception) -> InputRefused:
    return InputRefused(f"an instance cannot be written uncompressed ({type(error).__name__})")
