"""Conversion of a stored file to Explicit VR Little Endian, frame by frame, for clients that read nothing else."""

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
from dicomnode.transcoding.pixels import PixelLayout

__all__ = ["convert_to_explicit_little_endian"]

_BROKEN = (
    AttributeError, EOFError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
_BATCH_BYTES = 8 << 20
"""Bytes of frames that are decoded together, where a frame has fewer."""
_LONGEST = 2**32 - 2
_VRS = {0x7FE00008: b"OF", 0x7FE00009: b"OD"}
_OFFSET_TABLES = (0x7FE00001, 0x7FE00002, 0x7FE00003)
_PIXEL_ATTRIBUTES = (
    "PhotometricInterpretation", "SamplesPerPixel", "PlanarConfiguration", "NumberOfFrames",
)  # fmt: skip


def convert_to_explicit_little_endian(path: Path) -> Iterator[bytes]:
    """Yield the file in pieces, as the same instance, decompressed.

    Raises InputRefused and NodeBusy, as far as possible before the first piece.
    """
    layout = pixels.read_layout(path)
    if layout is None or inflating.is_deflated(layout.transfer_syntax_uid):
        yield from decoding.stream(decoding.run_in_pieces(_rewrite, path))
        return
    decode = layout.is_encapsulated or layout.transfer_syntax_uid == ExplicitVRBigEndian
    length = layout.frames * layout.frame_bits // 8 if decode else layout.length
    if length > _LONGEST or (decode and layout.frame_bits % 8):
        raise InputRefused("an instance of this size cannot be written uncompressed")
    yield from decoding.stream(decoding.run_in_pieces(_encode_head, layout, decode))
    yield _encode_element_header(layout, length)
    yield from _stream_decoded(layout) if decode else pixels.read_native(layout)
    yield b"\0" * (length % 2)
    yield from decoding.stream(decoding.run_in_pieces(_encode_tail, layout))


def _stream_decoded(layout: PixelLayout) -> Iterator[bytes]:
    count = max(1, _BATCH_BYTES // max(layout.frame_bits // 8, 1))
    for first in range(0, layout.frames, count):
        indices = range(first, min(first + count, layout.frames))
        yield from decoding.stream(decoding.run_in_pieces(_decode_frames, layout, indices))


def _decode_frames(layout: PixelLayout, indices: range) -> bytes:
    content = b"".join(pixels.decode_frame(layout, index) for index in indices)
    if len(content) * 8 != len(indices) * layout.frame_bits:
        raise InputRefused("the decoded frames are of another size than the header announces")
    return content


def _encode_element_header(layout: PixelLayout, length: int) -> bytes:
    vr = _VRS.get(layout.tag, b"OW" if layout.bits > 8 else b"OB")
    return struct.pack("<HH2sHL", layout.tag >> 16, layout.tag & 0xFFFF, vr, 0, length + length % 2)


def _encode_head(layout: PixelLayout, decode: bool) -> bytes:
    """Return everything before the pixels; their description is that of the decoded pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings quote values
        try:
            ds = dcmread(layout.path, stop_before_pixels=True)
            if decode:
                pixels.decode_array(layout, 0)  # checks its size before it makes room for it
                decoded = Dataset()
                pixel_array(layout.path, ds_out=decoded, index=0)
                for name in _PIXEL_ATTRIBUTES:
                    if name in ds or name == "PlanarConfiguration":
                        _copy_description(ds, decoded, name)
            for tag in _OFFSET_TABLES:
                ds.pop(tag, None)
            return _write(ds)
        except _BROKEN as error:
            raise _make_refusal(error) from None


def _copy_description(ds: Dataset, decoded: Dataset, name: str) -> None:
    if name in decoded and (name != "PlanarConfiguration" or decoded.SamplesPerPixel > 1):
        setattr(ds, name, decoded[name].value)


def _encode_tail(layout: PixelLayout) -> bytes:
    """Return everything after the pixels: a signature, padding."""
    syntax = UID(layout.transfer_syntax_uid)
    try:
        with layout.path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file.seek(layout.at + layout.length)
            ds = read_dataset(file, syntax.is_implicit_VR, syntax.is_little_endian)
            for _ in ds.iterall():
                pass
            out = DicomBytesIO()
            out.is_implicit_VR, out.is_little_endian = False, True
            write_dataset(out, ds)
            return out.getvalue()
    except _BROKEN as error:
        raise _make_refusal(error) from None


def _rewrite(path: Path) -> bytes:
    """Return the file as a whole, where it has no pixels or cannot be read in parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _write(dcmread(path))
        except _BROKEN as error:
            raise _make_refusal(error) from None


def _write(ds: Dataset) -> bytes:
    for _ in ds.iterall():  # numbers of another byte order are decoded
        pass
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = io.BytesIO()
    dcmwrite(file, ds, enforce_file_format=True)
    return file.getvalue()


def _make_refusal(error: Exception) -> InputRefused:
    return InputRefused(f"an instance cannot be written uncompressed ({type(error).__name__})")
