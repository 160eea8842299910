"""Search for values that identify a patient in the bytes of a copy; profiles for the tests."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicomnode.config import Config
from dicomnode.config.deidentify import DeidentifyConfig
from dicomnode.deidentify.copying import Deidentifier
from dicomnode.deidentify.secret import Secret

__all__ = ["find_identifiers_left", "load_config", "make_deidentifier", "write_profile"]

_BULK = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "SpectroscopyData")
_IDENTIFIERS = frozenset({
    "PatientID", "AccessionNumber", "StudyID", "InstitutionName", "InstitutionAddress", "StationName",
    "DeviceSerialNumber", "OtherPatientIDs", "PerformedProcedureStepID", "RequestedProcedureID",
})  # fmt: skip
_UNCHANGED_ELEMENTS = frozenset(
    {"CodingSchemeUID", "Manufacturer", "ManufacturerModelName", "SoftwareVersions", "SeriesNumber"}
)
"""Elements that no profile changes: code systems, equipment and numbers; a value in one of them identifies nobody."""
_CODE_WORDS = frozenset({"patient", "test"})
"""Parts of names of the kit's files that are words of codes and descriptions, too."""


def make_deidentifier(
    key: bytes = b"sixteen bytes or more", map_file: Path | None = None, **options: Any
) -> Deidentifier:
    """Return a deidentifier with a profile named "research" and these options."""
    profile = DeidentifyConfig(name="research", key_file=Path("research.key"), **options)
    return Deidentifier(profile, Secret(key), map_file)


def write_profile(folder: Path, **options: Any) -> DeidentifyConfig:
    """Write the key of a profile named "research" into the folder and return the profile."""
    key = folder / "research.key"
    key.touch(0o600)
    key.write_bytes(b"sixteen bytes or more")
    return DeidentifyConfig(name="research", key_file=key, **options)


def find_identifiers_left(original: Dataset, copy: Dataset) -> set[str]:
    """Return names, identifiers, dates and UIDs of the original that the encoded copy contains, pixels excluded."""
    content = _without_bulk(copy)
    unchanged = [str(element.value) for element in copy.iterall() if element.keyword in _UNCHANGED_ELEMENTS]
    found = {value for value in _collect_identifying(original) if _encode_value(value) & _substrings(content, value)}
    return {value for value in found if not any(value in each for each in unchanged)}


def _substrings(content: bytes, value: str) -> set[bytes]:
    return {each for each in _encode_value(value) if each in content}


def _encode_value(value: str) -> set[bytes]:
    return {value.encode(each, "replace") for each in ("utf-8", "latin-1", "iso2022_jp", "euc_kr") if value}


def _without_bulk(ds: Dataset) -> bytes:
    header = Dataset()
    header.update({tag: ds[tag] for tag in ds.keys() if ds[tag].keyword not in _BULK})  # noqa: SIM118
    buffer = io.BytesIO()
    header.save_as(buffer, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


def _collect_identifying(ds: Dataset) -> set[str]:
    return {value for value in _values(ds) if "?" not in value}


def _values(ds: Dataset) -> Iterator[str]:
    for element in ds.iterall():
        if element.is_empty or element.VR in ("SQ", "UN"):
            continue
        for value in element.value if isinstance(element.value, MultiValue) else [element.value]:
            text = str(value)
            if element.VR == "PN":
                yield from (
                    part
                    for part in text.replace("=", "^").split("^")
                    if len(part) >= 3 and part.casefold() not in _CODE_WORDS
                )
            elif element.VR == "UI" and not text.startswith("1.2.840.10008."):
                yield text
            elif element.VR in ("DA", "DT") and len(text) >= 8:
                yield text[:8]
            elif element.keyword in _IDENTIFIERS and len(text) >= 4:
                yield text


def load_config(folder: Path, **options: Any) -> Config:
    """Return a node's configuration in ``folder`` with the profile."""
    profile = write_profile(folder, **options)
    return Config(path=folder / "node.toml", deidentify=(profile,)).with_absolute_paths(folder)
