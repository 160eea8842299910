"""The content of an ISMRMRD/MRD file: its XML header, and per acquisition the fixed header and the samples."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import ismrmrd
import numpy as np
from ismrmrd.hdf5 import acquisition_dtype, acquisition_header_dtype
from numpy.lib.recfunctions import require_fields
from numpy.typing import NDArray

from dicomnode.mrd.header_values import check_types
from pipelines.contract import Refused

__all__ = ["HEAD", "MRD", "has_flag", "read", "read_header", "write"]

HEAD: np.dtype[np.void] = acquisition_header_dtype
_DECLARED_ASCII = re.compile(rb"^(<\?xml[^>]*encoding=[\"'])(?:us-)?ascii", re.IGNORECASE)
_VERSION = 1
_GROUP = "dataset"  # what ismrmrd's own tools write; a file may name it otherwise


@dataclass(frozen=True)
class MRD:
    """``heads``: one record of type ``HEAD`` per acquisition; ``samples``: complex64 (coil, sample) of each."""

    header: ismrmrd.xsd.ismrmrdHeader
    heads: NDArray[np.void]
    samples: Sequence[NDArray[np.complex64]]


def has_flag(heads: NDArray[np.void], *flags: int) -> NDArray[np.bool_]:
    """Return which acquisitions carry any of the flags (ACQ_…, numbered from 1), as a mask."""
    bits = sum(1 << (flag - 1) for flag in set(flags))
    found: NDArray[np.bool_] = (heads["flags"] & np.uint64(bits)) != 0
    return found


def read(source: Path | bytes | BinaryIO) -> MRD:
    """Return the content of an MRD file (HDF5). Raises ``Refused`` for any other file."""
    with _open_group(source) as group:
        xml, records = _xml(group), _local_table(group, "data")[:]
    header = _header(xml)
    if records.dtype.names is None or set(records.dtype.names) != {"head", "traj", "data"}:
        raise Refused("k-space: the table 'data' does not hold ISMRMRD acquisitions (head, traj, data)")
    heads = _heads(records["head"])
    _check_trajectories(heads, records["traj"])
    pairs = zip(heads, records["data"], strict=True)
    return MRD(header, heads, [_samples(number, head, data) for number, (head, data) in enumerate(pairs)])


def read_header(source: Path | bytes | BinaryIO) -> ismrmrd.xsd.ismrmrdHeader:
    """Return the XML header only."""
    with _open_group(source) as group:
        xml = _xml(group)
    return _header(xml)


def _heads(found: NDArray[np.void]) -> NDArray[np.void]:
    """Return the fixed headers, field by field by name: a file may hold them in another order."""
    counters = found["idx"].dtype if "idx" in (found.dtype.names or ()) else np.dtype([])
    if set(HEAD.names or ()) - set(found.dtype.names or ()) or set(HEAD["idx"].names or ()) - set(counters.names or ()):
        raise Refused("k-space: the acquisition headers lack fields of the ISMRMRD format")
    heads: NDArray[np.void] = require_fields(found, HEAD)
    if heads["version"].max() > _VERSION:
        raise Refused(f"k-space: acquisition headers of version {heads['version'].max()}; version {_VERSION} is read")
    return heads


def _check_trajectories(heads: NDArray[np.void], trajectories: Any) -> None:
    for number, (head, trajectory) in enumerate(zip(heads, trajectories, strict=True)):
        announced = int(head["trajectory_dimensions"]) * int(head["number_of_samples"])
        if np.size(trajectory) != announced:
            raise Refused(
                f"k-space: acquisition {number} holds {np.size(trajectory)} numbers of a trajectory, its header says "
                f"{announced}"
            )


def _xml(group: h5py.Group) -> Any:
    table = _local_table(group, "xml")
    if table.shape != (1,):
        raise Refused(f"k-space: {table.size} XML headers in the file, exactly one is needed")
    return table[0]


@contextmanager
def _open_group(source: Path | bytes | BinaryIO) -> Iterator[h5py.Group]:
    """Yield the group to read from; what h5py raises for damaged files comes out as ``Refused``."""
    try:
        with h5py.File(io.BytesIO(source) if isinstance(source, bytes) else source, "r") as file:
            yield _dataset(file)
    except Refused:
        raise
    except (KeyError, MemoryError, OSError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise Refused("k-space: not a readable HDF5 file") from error


def write(mrd: MRD, path: Path) -> None:
    """Write the file; an existing one is replaced."""
    table = np.empty(len(mrd.heads), dtype=acquisition_dtype)
    table["head"] = mrd.heads
    for record, samples in zip(table, mrd.samples, strict=True):
        record["traj"] = np.zeros(0, np.float32)
        record["data"] = np.ascontiguousarray(samples, np.complex64).view(np.float32).ravel()
    with h5py.File(path, "w") as file:
        group = file.create_group(_GROUP)
        xml = group.create_dataset("xml", shape=(1,), dtype=h5py.special_dtype(vlen=bytes))
        xml[0] = ismrmrd.xsd.ToXML(mrd.header, encoding="utf-8").encode()
        group.create_dataset("data", data=table, maxshape=(None,), chunks=True)


def _dataset(file: h5py.File) -> h5py.Group:
    groups = [
        name
        for name in file
        if file.get(name, getlink=True, getclass=True) is h5py.HardLink
        and isinstance(file[name], h5py.Group)
        and {"xml", "data"} <= set(file[name])
    ]
    if len(groups) != 1:
        raise Refused(f"k-space: {len(groups)} groups with 'xml' and 'data' in the file, exactly one is needed")
    return file[groups[0]]


def _local_table(group: h5py.Group, name: str) -> h5py.Dataset:
    """Return a table that lies in this file: a link or external storage would read other files of this machine."""
    if group.get(name, getlink=True, getclass=True) is not h5py.HardLink:
        raise Refused(f"k-space: '{name}' is a link to elsewhere")
    table = group[name]
    if not isinstance(table, h5py.Dataset) or table.external or table.is_virtual or not table.shape:
        raise Refused(f"k-space: '{name}' is not a table stored in this file")
    if table.shape[0] == 0:
        raise Refused(f"k-space: the table '{name}' is empty")
    return table


def _header(xml: Any) -> ismrmrd.xsd.ismrmrdHeader:
    if not isinstance(xml, bytes | str):
        raise Refused("k-space: the XML header is not text")
    # ismrmrd's own writer declares ASCII and then writes what the names need; ASCII is UTF-8 too.
    text = _DECLARED_ASCII.sub(rb"\1utf-8", xml.encode() if isinstance(xml, str) else xml)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values that are not of their type
            header: ismrmrd.xsd.ismrmrdHeader = ismrmrd.xsd.CreateFromDocument(text)
    except Exception as error:  # a door: the parser raises many kinds, and its messages quote the header
        raise Refused(f"k-space: the XML header does not follow the ISMRMRD schema ({type(error).__name__})") from None
    check_types(header)
    return header


def _samples(number: int, head: np.void, data: NDArray[np.float32]) -> NDArray[np.complex64]:
    coils, length = int(head["active_channels"]), int(head["number_of_samples"])
    if data.size != 2 * coils * length:
        raise Refused(
            f"k-space: acquisition {number} holds {data.size // 2} complex samples, its header says "
            f"{coils} coils x {length}"
        )
    return np.ascontiguousarray(data, np.float32).view(np.complex64).reshape(coils, length)
