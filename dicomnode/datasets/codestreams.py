"""Image size in a compressed frame's own header: decoders allocate it without checking the data set."""

from __future__ import annotations

import struct

from dicomnode.errors import InputRefused

__all__ = ["check_size", "read_size"]

_JPEG, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"
_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
"""Second bytes of the markers that begin a frame of JPEG, and of JPEG-LS (F7)."""
_MARKERS_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_BOXES = 4096
"""Bytes at the beginning of a JP2 file in which its codestream has to begin."""


def read_size(codestream: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns and samples of a JPEG, JPEG-LS or JPEG 2000 codestream; None for any other."""
    try:
        if codestream[:2] == _JPEG:
            return _read_jpeg_size(codestream)
        at = codestream[:_BOXES].find(_JPEG_2000)
        return None if at < 0 else _read_jpeg_2000_size(codestream, at)
    except (struct.error, IndexError):
        return None


def check_size(codestream: bytes, rows: int, columns: int, samples: int) -> None:
    """Raise InputRefused where the codestream has another size than the data set announces."""
    size = read_size(codestream)
    if size not in (None, (rows, columns, samples)):
        shape = " x ".join(map(str, size or ()))
        raise InputRefused(f"the compressed frame is {shape}, its header announces {rows} x {columns} x {samples}")


def _read_jpeg_size(codestream: bytes) -> tuple[int, int, int] | None:
    """Return the size by ISO 10918-1 B.1 and B.2.2; ISO 14495-1 C.2.2 has the same syntax."""
    at = 2
    while codestream[at] == 0xFF:
        marker = codestream[at + 1]
        if marker == 0xFF:  # fill bytes
            at += 1
        elif marker in _MARKERS_WITHOUT_LENGTH:
            at += 2
        elif marker in _FRAME_MARKERS:
            rows, columns, samples = struct.unpack_from(">HHB", codestream, at + 5)
            return rows, columns, samples
        else:
            at += 2 + struct.unpack_from(">H", codestream, at + 2)[0]
    return None


def _read_jpeg_2000_size(codestream: bytes, at: int) -> tuple[int, int, int]:
    """Return the size by ISO 15444-1 A.5.1."""
    right, bottom, left, top = struct.unpack_from(">4L", codestream, at + 8)
    (samples,) = struct.unpack_from(">H", codestream, at + 40)
    return bottom - top, right - left, samples
