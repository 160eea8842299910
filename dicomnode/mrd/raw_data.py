"""MRD files in DICOM Raw Data Storage, so that k-space travels by C-STORE like any other object."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import datetime
from typing import BinaryIO

from pydicom.dataset import Dataset

from dicomnode.datasets.raw_payload import PayloadFormat
from dicomnode.mrd.acquisitions import read_header
from dicomnode.mrd.facts import read_identity

__all__ = ["FORMAT", "is_mrd", "unwrap", "wrap"]

FORMAT = PayloadFormat("DICOMNODE MRD 1", "k-space", "MRD", "MR")


def wrap(source: bytes | BinaryIO, *, now: datetime, facts: Mapping[str, str] | None = None) -> Dataset:
    """Return a Raw Data object around an MRD file, ready to save.

    Patient, study and scanner come from the MRD header; ``facts`` (DICOM keyword -> text) overrides it. A study that
    neither names gets a UID derived from the content, so wrapping the same file again makes the same object. A stream
    is read when the data set is written and stays the caller's to close. Raises ``Refused``.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    stream.seek(0)
    return FORMAT.wrap(source, read_identity(read_header(stream)) | dict(facts or {}), now)


def is_mrd(ds: Dataset) -> bool:
    """Return whether a data set, or its header without private elements, carries an MRD file in this format."""
    return FORMAT.is_in(ds)


def unwrap(ds: Dataset) -> bytes:
    """Return the MRD file, byte for byte as it was wrapped. Raises ``Refused`` for a missing or altered file."""
    return FORMAT.unwrap(ds)
