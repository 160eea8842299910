"""A stored file in Explicit VR Little Endian, for clients that take nothing else."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from dicomnode.errors import InputRefused

__all__ = ["explicit_little_endian"]

_BROKEN = (
    AttributeError, EOFError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def explicit_little_endian(path: Path) -> bytes:
    """The whole file, decompressed where it was compressed; the same instance. Raises InputRefused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values
        try:
            ds = dcmread(path)
            syntax = ds.file_meta.TransferSyntaxUID
            if syntax.is_compressed and syntax.is_encapsulated:
                ds.decompress(generate_instance_uid=False)
            if syntax == ExplicitVRBigEndian:
                _turn(ds)
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            file = io.BytesIO()
            dcmwrite(file, ds, enforce_file_format=True)
        except _BROKEN as error:
            raise InputRefused(f"an instance cannot be written uncompressed ({type(error).__name__})") from None
    return file.getvalue()


def _turn(ds: Dataset) -> None:
    """Decode what big endian numbers there are; pydicom leaves the words of OW as they are."""
    for _ in ds.iterall():
        pass
    if "PixelData" in ds and ds.BitsAllocated == 16:
        ds.PixelData = np.frombuffer(ds.PixelData, ">u2").astype("<u2").tobytes()
