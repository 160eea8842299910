"""An array of projections with its geometry as one file (.npz without compression), and as input of a pipeline."""

from __future__ import annotations

import io
import zipfile
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomnode.sinogram.checking import check_projections
from dicomnode.sinogram.geometry_file import ScanGeometry
from dicomnode.sinogram.opposite_rays import check_direction
from model_zoo.ct_geometry import WATER_PER_MM
from pipelines.contract import Projections, Refused

__all__ = ["pack", "read", "read_array"]

_ARRAY, _GEOMETRY = "projections.npy", "geometry.json"
_MOMENT = (1980, 1, 1, 0, 0, 0)  # the same file again has the same bytes
_NO_HEADER = (SyntaxError, TypeError, RecursionError, TokenError)  # of a header that is no literal of Python
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def pack(array: bytes, geometry: str) -> bytes:
    """Return a .npz file of an .npy file and the text of its geometry. Raises Refused for what :func:`read` refuses."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(_ARRAY, _MOMENT), array)
        archive.writestr(zipfile.ZipInfo(_GEOMETRY, _MOMENT), geometry)
    content = file.getvalue()
    read(content)
    return content


def read(content: bytes) -> tuple[Projections, dict[str, Any]]:
    """Return the projections of a packed file and their facts. Raises Refused that names what is wrong."""
    members = _read_members(content)
    geometry = ScanGeometry.read(members[_GEOMETRY])
    values = read_array(members[_ARRAY])
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[1:] != (geometry.views, geometry.bins):
        raise Refused(
            f"sinogram: the array has the shape {values.shape}; its geometry says (slice, {geometry.views} views, "
            f"{geometry.bins} bins)"
        )
    values = values if geometry.arc_deg > 0 else values[:, ::-1]
    line_integrals, counts = _convert(values, geometry)
    projections = Projections(
        line_integrals, counts, geometry.make_beam(), geometry.make_grid(len(values)),
        geometry.slice_thickness_mm or geometry.slice_mm, geometry.water_per_mm or WATER_PER_MM, geometry.assumptions,
    )  # fmt: skip
    check_projections(projections)
    if geometry.beam == "fan":
        check_direction(projections.beam, line_integrals, counts)
    return projections, {"modality": "CT"}


def read_array(content: bytes) -> NDArray[np.float32]:
    """Return the real numbers of an .npy file as float32. Raises Refused; nothing is unpickled."""
    stream = io.BytesIO(content)
    try:
        shape, is_fortran, dtype = _READERS[np.lib.format.read_magic(stream)](stream)
    except (*_NO_HEADER, KeyError, ValueError) as error:
        raise Refused("sinogram: the array is no .npy file") from error
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise Refused(f"sinogram: the array has the shape {shape}; (view, bin) or (slice, view, bin) is expected")
    if dtype.kind not in "iuf":
        raise Refused(f"sinogram: the array holds {dtype}, not real numbers")
    body = content[stream.tell() :]
    if len(body) != int(np.prod(shape, dtype=object)) * dtype.itemsize or not body:
        raise Refused(f"sinogram: {len(body)} bytes are no array of {dtype} of the shape {shape}")
    values = np.frombuffer(body, dtype).reshape(shape, order="F" if is_fortran else "C")
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _read_members(content: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if set(entries) != {_ARRAY, _GEOMETRY} or any(
                e.compress_type != zipfile.ZIP_STORED for e in entries.values()
            ):
                raise Refused(f"sinogram: the file is not {_ARRAY} and {_GEOMETRY}, uncompressed")
            return {name: archive.read(entry) for name, entry in entries.items()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, RuntimeError) as error:
        raise Refused("sinogram: the file is no .npz file") from error


def _convert(values: NDArray[np.float32], geometry: ScanGeometry) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return line integrals and counts; a ray without a photon has the line integral of half a photon."""
    if not np.isfinite(values).all():
        raise Refused("sinogram: some values are not finite numbers")
    photons = np.broadcast_to(np.asarray(geometry.photons, np.float32), values.shape[-1:])
    if geometry.values == "line integrals":
        return values, (photons * np.exp(-np.clip(values, -50.0, 80.0))).astype(np.float32)
    if (values < 0).any():
        raise Refused("sinogram: some counts are negative")
    if (values > 1.1 * photons + 10 * np.sqrt(photons)).any():
        raise Refused("sinogram: some rays have more counts than photons, which is what a ray without an object has")
    return np.log(photons / np.where(values > 0, values, 0.5)).astype(np.float32), values
