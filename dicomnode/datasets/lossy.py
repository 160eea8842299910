"""Lossy compression of an instance's pixels, present or former (PS3.3 C.7.6.1.1.5)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000, UID, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

__all__ = ["compression_method", "find_transfer_syntax", "is_lossy"]

_METHODS: Mapping[str, str] = MappingProxyType({
    JPEGBaseline8Bit: "ISO_10918_1", JPEGExtended12Bit: "ISO_10918_1", JPEGLSNearLossless: "ISO_14495_1",
    JPEG2000: "ISO_15444_1",
})  # fmt: skip
"""Lossy transfer syntaxes, with their Lossy Image Compression Method (PS3.3 C.7.6.1.1.5.1)."""


def is_lossy(header: Dataset) -> bool:
    """Return whether the pixels are lossy by the header or by the transfer syntax.

    JPEG 2000 of the lossy transfer syntax counts as lossless where Lossy Image Compression is 00.
    """
    value, syntax = header.get("LossyImageCompression"), find_transfer_syntax(header)
    return value == "01" or (syntax in _METHODS and not (syntax == JPEG2000 and value == "00"))


def compression_method(header: Dataset) -> str:
    """Return the Lossy Image Compression Method of the transfer syntax, or ""."""
    return _METHODS.get(find_transfer_syntax(header), "")


def find_transfer_syntax(header: Dataset) -> UID:
    """Return the transfer syntax of the file that the header was read from; empty for a header without a file."""
    meta = getattr(header, "file_meta", None) or Dataset()
    return UID(meta.get("TransferSyntaxUID") or "")
