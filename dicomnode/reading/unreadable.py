"""Elements whose bytes cannot be decoded at all: refused by their tag."""

from __future__ import annotations

from pydicom.dataset import Dataset

from dicomnode.errors import InputRefused

__all__ = ["decode"]

_DECODING = (ValueError, TypeError, NotImplementedError, EOFError)


def decode(ds: Dataset) -> None:
    """Decode every element of a data set that was read from a file. Raises InputRefused."""
    for tag in list(ds.keys()):
        try:
            element = ds[tag]
            for item in element.value if element.VR == "SQ" else ():
                for _ in item.iterall():
                    pass
        except _DECODING:
            raise InputRefused(f"an instance cannot be read: its element {tag} cannot be decoded") from None
