"""Elements whose bytes cannot be decoded: refused by their tag, or left out where only their maker reads them."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException

from dicomnode.errors import InputRefused

__all__ = ["decode"]

_DECODING = (ValueError, TypeError, NotImplementedError, EOFError, BytesLengthException)


def decode(ds: Dataset) -> None:
    """Decode every element of a data set that was read from a file. Raises InputRefused.

    A private element that cannot be decoded is taken out: what it says is not known, and not needed.
    """
    for tag in list(ds.keys()):
        try:
            element = ds[tag]
        except _DECODING:
            if not tag.is_private:
                raise InputRefused(f"an instance cannot be read: its element {tag} cannot be decoded") from None
            del ds[tag]
            continue
        for item in element.value if element.VR == "SQ" else ():
            decode(item)
