"""Projections in DICOM Raw Data Storage, so that they travel by C-STORE like any other object."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from pydicom.dataset import Dataset

from dicomnode.datasets.raw_payload import PayloadFormat
from dicomnode.sinogram.arrays import read

__all__ = ["FORMAT", "is_sinogram", "unwrap", "wrap"]

FORMAT = PayloadFormat("DICOMNODE SINOGRAM 1", "sinogram", "sinogram", "CT")


def wrap(source: bytes, *, now: datetime, facts: Mapping[str, str] | None = None) -> Dataset:
    """Return a Raw Data object around a packed file (:func:`dicomnode.sinogram.pack`), ready to save.

    Patient and study come from ``facts`` (DICOM keyword -> text). A study that they do not name gets a UID derived from
    the content, so wrapping the same file again makes the same object. Raises ``Refused``.
    """
    read(source)
    return FORMAT.wrap(source, dict(facts or {}), now)


def is_sinogram(ds: Dataset) -> bool:
    """Return whether a data set, or its header without private elements, carries projections in this format."""
    return FORMAT.is_in(ds)


def unwrap(ds: Dataset) -> bytes:
    """Return the packed file, byte for byte as it was wrapped. Raises ``Refused`` for a missing or altered file."""
    return FORMAT.unwrap(ds)
