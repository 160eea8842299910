"""The size that a compressed frame says of itself, read from its first bytes: decoders make room for it unasked."""

from __future__ import annotations

import struct

from dicomnode.errors import InputRefused

__all__ = ["check", "size_of"]

_JPEG, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"
_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
"""Second bytes of the markers that begin a frame of JPEG, and of JPEG-LS (F7)."""
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_BOXES = 4096
"""Bytes of a JP2 file in which its codestream has to begin."""


def size_of(codestream: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and samples of a JPEG, JPEG-LS or JPEG 2000 codestream; None for what is none of these."""
    try:
        if codestream[:2] == _JPEG:
            return _jpeg(codestream)
        at = codestream[:_BOXES].find(_JPEG_2000)
        return None if at < 0 else _jpeg_2000(codestream, at)
    except (struct.error, IndexError):
        return None


def check(codestream: bytes, rows: int, columns: int, samples: int) -> None:
    """Raises InputRefused when the codestream is of another size than its header announces."""
    found = size_of(codestream)
    if found not in (None, (rows, columns, samples)):
        said = " x ".join(map(str, found or ()))
        raise InputRefused(f"the compressed frame is {said}, its header announces {rows} x {columns} x {samples}")


def _jpeg(codestream: bytes) -> tuple[int, int, int] | None:
    """ISO 10918-1 B.1 and B.2.2; ISO 14495-1 C.2.2 is alike."""
    at = 2
    while codestream[at] == 0xFF:
        marker = codestream[at + 1]
        if marker == 0xFF:  # fill bytes
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in _FRAMES:
            rows, columns, samples = struct.unpack_from(">HHB", codestream, at + 5)
            return rows, columns, samples
        else:
            at += 2 + struct.unpack_from(">H", codestream, at + 2)[0]
    return None


def _jpeg_2000(codestream: bytes, at: int) -> tuple[int, int, int]:
    """ISO 15444-1 A.5.1."""
    right, bottom, left, top = struct.unpack_from(">4L", codestream, at + 8)
    (samples,) = struct.unpack_from(">H", codestream, at + 40)
    return bottom - top, right - left, samples
