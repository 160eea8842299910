"""Elements whose bytes cannot be decoded ("4mm" as a Decimal String): emptied where no pixel and no position depends on
them and noted, refused by name elsewhere."""

from __future__ import annotations

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from dicomnode.errors import InputRefused

__all__ = ["decode", "emptied"]

_HARMLESS_GROUPS = frozenset({0x0008, 0x0010, 0x0012, 0x0032, 0x0038, 0x4008})
"""Identification, patient, trial, order and visit."""
_SLICE_THICKNESS, _INSTANCE_NUMBER = 0x00180050, 0x00200013
_HARMLESS = frozenset({_SLICE_THICKNESS, _INSTANCE_NUMBER, 0x00200011, 0x00200012})
_DECODING = (ValueError, TypeError, NotImplementedError, EOFError)


def decode(ds: Dataset) -> None:
    """Decode every element of a data set that was read from a file. Raises InputRefused."""
    found: list[BaseTag] = []
    for tag in list(ds.keys()):
        if tag.is_private:
            continue
        try:
            element = ds[tag]
            for item in element.value if element.VR == "SQ" else ():
                for _ in item.iterall():
                    pass
        except _DECODING:
            if tag.group not in _HARMLESS_GROUPS and tag not in _HARMLESS:
                raise InputRefused(f"an instance cannot be read: its element {tag} holds no valid value") from None
            found.append(tag)
            ds[tag] = DataElement(tag, ds.get_item(tag).VR or "UN", None)
    ds._emptied_elements = tuple(found)


def emptied(ds: Dataset) -> tuple[BaseTag, ...]:
    """Return the tags of the elements that ``decode`` emptied."""
    found: tuple[BaseTag, ...] = getattr(ds, "_emptied_elements", ())
    return found
