"""Elements whose bytes cannot be decoded: refused by their tag, or left out where only their maker reads them."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

from dicomnode.errors import InputRefused

__all__ = ["UNDECODABLE", "decode"]

UNDECODABLE = (
    ValueError, TypeError, AttributeError, OverflowError, NotImplementedError, EOFError, BytesLengthException, OSError,
    InvalidDicomError,
)  # fmt: skip
"""What pydicom raises for bytes that it cannot decode."""


def decode(ds: Dataset) -> None:
    """Decode every element of a data set that was read from a file. Raises InputRefused.

    A private element that cannot be decoded is taken out: what it says is not known, and not needed.
    """
    for tag in list(ds.keys()):
        try:
            element = ds[tag]
        except UNDECODABLE:
            if not tag.is_private:
                raise InputRefused(f"an instance cannot be read: its element {tag} cannot be decoded") from None
            del ds[tag]
            continue
        for item in element.value if element.VR == "SQ" else ():
            decode(item)
