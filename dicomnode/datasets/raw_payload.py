"""A file in DICOM Raw Data Storage (PS3.3 A.37), so that what no image object holds travels by C-STORE like any other.

The file lies in a private block after everything else, with its true length and its SHA-256 beside it:

    (7FE1,xx01) OB  the file, padded with one zero when its length is odd (PS3.5 6.2)
    (7FE1,xx02) LO  its length in bytes
    (7FE1,xx03) LO  its SHA-256, hexadecimal

Creator-Version UID (0008,9123) names the format too, so that a header read without the file tells what it is.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import BinaryIO

from pydicom import config
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID, RawDataStorage

from dicomnode import uids
from dicomnode.datasets import laterality, part10
from dicomnode.datasets.validity import find_fault
from dicomnode.datasets.zone import convert_to_zone_of
from pipelines.contract import Refused

__all__ = ["IDENTITY_KEYWORDS", "PayloadFormat"]

_GROUP = 0x7FE1
_PAYLOAD, _LENGTH, _DIGEST = 0x01, 0x02, 0x03
_LARGEST = 0xFFFFFFFE  # PS3.5 7.1.2: 32-bit length, FFFFFFFF means undefined
_CHUNK = 1 << 20

_TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "Laterality",
    "Manufacturer",
    "PositionReferenceIndicator",
)
_OTHERS = (
    "PatientWeight",
    "PatientSize",
    "StudyDescription",
    "StudyInstanceUID",
    "BodyPartExamined",
    "SeriesDate",
    "SeriesTime",
    "TimezoneOffsetFromUTC",
    "PatientPosition",
    "SeriesNumber",
    "ProtocolName",
    "SeriesDescription",
    "FrameOfReferenceUID",
    "ManufacturerModelName",
    "InstitutionName",
    "StationName",
    "DeviceSerialNumber",
)
IDENTITY_KEYWORDS = frozenset(_TYPE_2 + _OTHERS)
"""Keywords that ``attributes`` of :meth:`PayloadFormat.wrap` may have."""


@dataclass(frozen=True)
class PayloadFormat:
    """A kind of file in Raw Data: ``creator`` of the private block, ``subject`` and ``file`` in words, ``modality``."""

    creator: str
    subject: str
    file: str
    modality: str

    @cached_property
    def version_uid(self) -> UID:
        """Creator-Version UID (0008,9123) of objects in this format."""
        return uids.derive("dicomnode", self.creator)

    def wrap(self, source: bytes | BinaryIO, attributes: Mapping[str, str], now: datetime) -> Dataset:
        """Return a Raw Data object around a file, ready to save; ``attributes``: text by DICOM keyword.

        A study that they do not name gets a UID derived from the content, so that wrapping the same file again makes
        the same object. A stream is read when the data set is written and stays the caller's to close. Raises
        ``Refused``.
        """
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        length, digest = _measure(stream)
        if length > _LARGEST:
            raise Refused(f"{self.subject}: {length} bytes do not fit into one DICOM element ({_LARGEST} at most)")
        if unknown := sorted(set(attributes) - IDENTITY_KEYWORDS):
            raise Refused(f"{self.subject}: {', '.join(unknown)} cannot be stated about raw data")
        if length % 2:
            source = stream.read() + b"\0"  # pydicom pads no stream; HDF5 writes even lengths, so this is rare
        ds = self._make_object(attributes, digest, now)
        block = ds.private_block(_GROUP, self.creator, create=True)
        block.add_new(_PAYLOAD, "OB", source)
        block.add_new(_LENGTH, "LO", str(length))
        block.add_new(_DIGEST, "LO", digest)
        return ds

    def is_in(self, ds: Dataset) -> bool:
        """Return whether a data set, or its header without private elements, carries a file in this format."""
        if ds.get("SOPClassUID") != RawDataStorage:
            return False
        return ds.get("CreatorVersionUID") == self.version_uid or self.creator in ds.private_creators(_GROUP)

    def unwrap(self, ds: Dataset) -> bytes:
        """Return the file, byte for byte as it was wrapped. Raises ``Refused`` for a missing or altered file."""
        if ds.get("SOPClassUID") != RawDataStorage:
            raise Refused("raw data: not a Raw Data Storage object")
        try:
            block = ds.private_block(_GROUP, self.creator)
            payload, length, digest = block[_PAYLOAD].value, int(block[_LENGTH].value), str(block[_DIGEST].value)
        except (KeyError, ValueError) as error:
            raise Refused(f"raw data: no {self.file} file in it (private block missing or damaged)") from error
        if not isinstance(payload, bytes):
            payload.seek(0)
            payload = payload.read()
        if not 0 <= len(payload) - length <= 1:
            raise Refused(f"raw data: {length} bytes of {self.file} announced, {len(payload)} are there")
        content = bytes(payload[:length])
        if hashlib.sha256(content).hexdigest() != digest:
            raise Refused(f"raw data: the {self.file} file differs from its SHA-256; it was altered on the way")
        return content

    def _make_object(self, attributes: Mapping[str, str], digest: str, now: datetime) -> Dataset:
        ds = Dataset()
        ds.SpecificCharacterSet = "ISO_IR 192"
        for keyword in _TYPE_2:
            setattr(ds, keyword, "")
        study_uid = attributes.get("StudyInstanceUID") or uids.derive("study of raw data", digest)
        key = (study_uid, attributes.get("PatientID", ""), digest)
        for keyword, value in attributes.items():
            _set_attribute(ds, keyword, value)
        ds.StudyInstanceUID = study_uid
        ds.SeriesInstanceUID = uids.derive("series of raw data", *key)
        ds.FrameOfReferenceUID = attributes.get("FrameOfReferenceUID") or uids.derive(
            "frame of reference of raw data", *key
        )
        ds.SOPClassUID = RawDataStorage
        laterality.set_laterality(ds)
        ds.SOPInstanceUID = uids.derive("raw data", *key, *(f"{k}={v}" for k, v in sorted(attributes.items())))
        ds.Modality = self.modality
        ds.InstanceNumber = "1"
        ds.SeriesNumber = attributes.get("SeriesNumber", "1")
        local = convert_to_zone_of(ds, now)
        ds.ContentDate, ds.ContentTime = local.strftime("%Y%m%d"), local.strftime("%H%M%S")
        ds.AcquisitionContextSequence = []
        ds.CreatorVersionUID = self.version_uid
        part10.add_file_meta(ds)
        return ds


def _measure(stream: BinaryIO) -> tuple[int, str]:
    stream.seek(0)
    digest, length = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        length += len(chunk)
    stream.seek(0)
    return length, digest.hexdigest()


def _set_attribute(ds: Dataset, keyword: str, value: str) -> None:
    try:
        element = DataElement(keyword, dictionary_VR(keyword), value, validation_mode=config.RAISE)
    except (ValueError, TypeError) as error:
        raise Refused(f"raw data: what was given as {keyword} is not valid there (PS3.5 6.2)") from error
    if why := find_fault(element):
        raise Refused(f"raw data: what was given as {keyword} {why}")
    ds.add(element)
