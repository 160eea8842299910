"""Whether the pixels of an instance have lost something to a compression, now or before (PS3.3 C.7.6.1.1.5)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000, UID, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

__all__ = ["is_lossy", "method", "transfer_syntax"]

_METHODS: Mapping[str, str] = MappingProxyType({
    JPEGBaseline8Bit: "ISO_10918_1", JPEGExtended12Bit: "ISO_10918_1", JPEGLSNearLossless: "ISO_14495_1",
    JPEG2000: "ISO_15444_1",
})  # fmt: skip
"""Transfer syntaxes that lose, and their Lossy Image Compression Method (PS3.3 C.7.6.1.1.5.1)."""


def is_lossy(header: Dataset) -> bool:
    """Return whether the header says so, or the transfer syntax.

    JPEG 2000 of the lossy transfer syntax may be lossless; that is believed where Lossy Image Compression is 00.
    """
    stated, syntax = header.get("LossyImageCompression"), transfer_syntax(header)
    return stated == "01" or (syntax in _METHODS and not (syntax == JPEG2000 and stated == "00"))


def method(header: Dataset) -> str:
    """Return the Lossy Image Compression Method of the transfer syntax, or ""."""
    return _METHODS.get(transfer_syntax(header), "")


def transfer_syntax(header: Dataset) -> UID:
    """Return that of the file that the header was read from; empty where it was not read from one."""
    meta = getattr(header, "file_meta", None) or Dataset()
    return UID(meta.get("TransferSyntaxUID") or "")
