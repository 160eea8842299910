"""Instances with pixels encoded as senders encode them, for tests of reading pixels and positions."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, CTImageStorage, ExplicitVRBigEndian, JPEG2000Lossless, JPEGLosslessSV1

from dicomnode.errors import InputRefused
from dicomnode.reading import volumes
from pipelines.contract import Grid
from tests.peers.process import require_program
from tests.scanner import make_grid
from tests.series import write_slices

__all__ = [
    "SHAPE",
    "check_refused",
    "compress",
    "make_axial_grid",
    "make_item",
    "make_values",
    "reencode",
    "set_attributes",
    "set_private",
    "turn_into_ct",
    "write_as",
    "write_series",
]

SHAPE = (4, 8, 6)
Edit = Callable[[int, Dataset], None]


def make_axial_grid(shape: tuple[int, int, int] = SHAPE) -> Grid:
    """Return the grid of an axial stack."""
    return make_grid("axial", shape, (3.5, 1.25, 0.9), (-31.25, 17.125, 55.5))


def make_values(dtype: type[np.integer[Any]] = np.uint16, most: int = 3000) -> NDArray[np.integer[Any]]:
    """Return random values from 0 to ``most``, or from -``most`` where they are signed."""
    low = -most if np.issubdtype(dtype, np.signedinteger) else 0
    return np.random.default_rng(7).integers(low, most, SHAPE).astype(dtype)


def write_series(folder: Path, data: NDArray[np.generic], edit: Edit = lambda k, ds: None) -> list[Path]:
    """Write single slices with the given stored values; slice k of the volume is data[k]."""
    return write_slices(folder, make_axial_grid(data.shape), data, edit=edit)


def set_attributes(**values: object) -> Edit:
    """Return an edit that sets attributes of every slice; None removes one."""

    def edit(_: int, ds: Dataset) -> None:
        for keyword, value in values.items():
            if value is None:
                ds.pop(keyword, None)
            else:
                setattr(ds, keyword, value)

    return edit


def make_item(**values: object) -> Dataset:
    """Return an item of a sequence."""
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def set_private(group: int, creator: str, element: int, vr: str, value: Any) -> Edit:
    """Return an edit that sets a private element of every slice."""

    def edit(_: int, ds: Dataset) -> None:
        ds.private_block(group, creator, create=True).add_new(element, vr, value)

    return edit


def check_refused(paths: list[Path], reason: str) -> None:
    """Check that the files are refused with the reason, and that the message holds no data of the patient."""
    with pytest.raises(InputRefused, match=reason) as refused:
        volumes.read(paths)
    assert all(secret not in str(refused.value) for secret in ("Müller", "4711", "1970"))


def turn_into_ct(_: int, ds: Dataset) -> None:
    """Make the slice one of a CT, in Hounsfield units."""
    ds.SOPClassUID, ds.Modality, ds.KVP = CTImageStorage, "CT", "120"
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "1", "-1024", "HU"
    for keyword in ("RepetitionTime", "EchoTime", "MagneticFieldStrength"):
        ds.pop(keyword, None)


def reencode(path: Path, syntax: UID) -> None:
    """Write a file again in another uncompressed or deflated transfer syntax, as pydicom writes it."""
    ds = dcmread(path)
    cells = np.frombuffer(ds.PixelData, f"<u{ds.BitsAllocated // 8}")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    ds.PixelData = cells.astype(f"{order}u{ds.BitsAllocated // 8}").tobytes()
    ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
    write_as(ds, path, syntax)


def write_as(ds: Dataset, path: Path, syntax: UID) -> None:
    """Write a data set in an uncompressed transfer syntax, whatever it was read from; its pixels stay unchanged."""
    fresh = Dataset({element.tag: element for element in ds})
    fresh.file_meta = ds.file_meta
    fresh.file_meta.TransferSyntaxUID = syntax
    implicit = syntax.is_private or syntax.is_implicit_VR
    fresh.save_as(path, implicit_vr=implicit, little_endian=syntax != ExplicitVRBigEndian, enforce_file_format=True)


def compress(path: Path, syntax: UID, **header: object) -> None:
    """Compress a file, then state other attributes than the encoder wrote."""
    if syntax == JPEGLosslessSV1:
        _compress_by_dcmtk(path)
    ds = dcmread(path)
    if syntax == JPEG2000Lossless:
        _compress_by_openjpeg(ds)
    elif syntax != JPEGLosslessSV1:
        ds.compress(syntax, generate_instance_uid=False)
    for keyword, value in header.items():
        setattr(ds, keyword, value)
    ds.save_as(path, enforce_file_format=True)


def _compress_by_dcmtk(path: Path) -> None:
    subprocess.run([require_program("/usr/bin/dcmcjpeg", "dcmtk"), "+e1", path, path], check=True, capture_output=True)


def _compress_by_openjpeg(ds: Dataset) -> None:
    """Compress by Pillow, which writes unsigned samples of as many bits as the cells have."""
    frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns).view(np.uint16)
    found = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG2000", no_jp2=True)
        found.append(file.getvalue())
    ds.PixelData = encapsulate(found)
    ds["PixelData"].is_undefined_length, ds["PixelData"].VR = True, "OB"
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
