"""Identifiers of C-FIND, C-MOVE and C-GET requests, and of their responses (PS3.4 C.4)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, get_args

from pydicom import config as pydicom_config
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import dsutils

from db import catalogue
from db.catalogue import Level
from db.keywords import IN_SEQUENCES
from dicomnode.datasets.character_sets import decode_text, find_encodings
from dicomnode.datasets.encoding import find_vr
from dicomnode.datasets.vrs import BINARY_FORMATS, CHARACTER_SET_TEXT, TEXT
from dicomnode.errors import CannotUnderstand, IdentifierRefused
from dicomnode.query import bounds

__all__ = [
    "PATIENT_ROOT",
    "STUDY_ROOT",
    "Identifier",
    "decode",
    "encode",
    "make_answer",
    "require_patient",
    "require_uids",
]

_INTEGER_FORMATS = {vr: BINARY_FORMATS[vr] for vr in ("SL", "SS", "UL", "US")}
_RESPONSE_KEYS = frozenset({"RetrieveAETitle", "InstanceAvailability", "SpecificCharacterSet", "QueryRetrieveLevel"})
_REQUESTS = "RequestAttributesSequence"
_UTF_8 = "ISO_IR 192"
_UNIQUE = {
    "PATIENT": "PatientID", "STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID",
}  # fmt: skip

PATIENT_ROOT: tuple[Level, ...] = get_args(Level)
"""Levels of the information models (PS3.4 C.6.1, C.6.2)."""
STUDY_ROOT = PATIENT_ROOT[1:]


@dataclass(frozen=True)
class Identifier:
    """Query/Retrieve level, and keywords with the value to match as text, empty for any value.

    ``levels`` are those of the information model.
    """

    level: Level
    keys: Mapping[str, str] = field(repr=False)
    character_set: str = ""
    has_unknown_keys: bool = False
    levels: tuple[Level, ...] = STUDY_ROOT


def decode(content: BytesIO | None, syntax: UID, levels: tuple[Level, ...] = STUDY_ROOT) -> Identifier:
    """Decode the identifier of a request. Raises IdentifierRefused or CannotUnderstand."""
    plain = BytesIO(bounds.check_identifier(content.getvalue() if content else b"", syntax))
    try:
        ds = dsutils.decode(plain, syntax.is_implicit_VR, syntax.is_little_endian, False)
        raw = {int(tag): ds.get_item(tag) for tag in ds.keys()}  # noqa: SIM118 a data set's iterator decodes values
    except Exception as exc:  # whatever broken bytes make the decoder raise
        raise CannotUnderstand("the identifier cannot be decoded") from exc
    character_set = _decode_ascii(raw.get(0x00080005))
    level = _check_level(_decode_ascii(raw.get(0x00080052)), levels)
    known, encodings = catalogue.supported_keywords(level), find_encodings(character_set)
    texts = {
        keyword_for_tag(tag) or str(tag): _decode_value(tag, element, syntax, encodings)
        for tag, element in raw.items()
        if tag & 0xFFFF  # group lengths are no keys
    }
    texts |= _request_keys(ds)
    keys = {keyword: text for keyword, text in texts.items() if keyword in known and text is not None}
    unknown = texts.keys() - keys.keys() - _RESPONSE_KEYS | set(catalogue.find_unmatched(keys))
    return Identifier(level, keys, character_set, has_unknown_keys=bool(unknown), levels=levels)


def _request_keys(ds: Dataset) -> dict[str, str]:
    """Return the keys inside the Request Attributes Sequence, which has one item in an identifier (PS3.4 C.2.2.2.6)."""
    if _REQUESTS not in ds:
        return {}
    try:
        items = list(ds[_REQUESTS].value or ())
        keys = {element.keyword or str(element.tag): str(element.value or "") for item in items for element in item}
    except Exception as exc:  # whatever broken bytes make the decoder raise
        raise CannotUnderstand("the identifier cannot be decoded") from exc
    if len(items) > 1:
        raise IdentifierRefused(f"{_REQUESTS} has more than one item")
    return {_REQUESTS: ""} | {f"{_REQUESTS}{IN_SEQUENCES}{name}": text.strip() for name, text in keys.items()}


def require_uids(identifier: Identifier, level: Level, *, several: bool = False) -> tuple[str, ...]:
    """Return the UIDs of the identifier at a level.

    Raises IdentifierRefused for no UID, for a value that is none, and, unless ``several``, for more than one.
    """
    keyword = _UNIQUE[level]
    uids = tuple(part.strip() for part in identifier.keys.get(keyword, "").split("\\") if part.strip())
    if not uids or (len(uids) > 1 and not several) or any(not set(uid) <= set("0123456789.") for uid in uids):
        raise IdentifierRefused(f"{keyword} is not {'one or more UIDs' if several else 'one UID'}")
    return uids


def require_patient(identifier: Identifier) -> dict[str, str]:
    """Return the keys that identify one patient. Raises IdentifierRefused where they are missing, or a pattern.

    IssuerOfPatientID is no unique key of the standard, but with it a Patient ID identifies one patient.
    """
    keys = {keyword: identifier.keys.get(keyword, "") for keyword in ("PatientID", "IssuerOfPatientID")}
    if not keys["PatientID"] or any(set(value) & set("*?\\") for value in keys.values()):
        raise IdentifierRefused("PatientID is not one value, or IssuerOfPatientID is a pattern")
    return {keyword: value for keyword, value in keys.items() if value}


def make_answer(identifier: Identifier, match: Mapping[str, Any], ae_title: str) -> Dataset:
    """Return the response identifier of a match: the requested keys as far as known, the unique keys, and
    ``ae_title``, from which the match can be retrieved."""
    unique_keys = [_UNIQUE[level] for level in identifier.levels[: identifier.levels.index(identifier.level) + 1]]
    if identifier.levels is PATIENT_ROOT and match.get("IssuerOfPatientID"):
        unique_keys.append("IssuerOfPatientID")
    requested = [keyword for keyword in identifier.keys if IN_SEQUENCES not in keyword]
    values = {keyword: match.get(keyword, "") for keyword in [*requested, *unique_keys]}
    location = {"QueryRetrieveLevel": identifier.level, "RetrieveAETitle": ae_title, "InstanceAvailability": "ONLINE"}
    ds = Dataset()
    if character_set := _choose_character_set(values, identifier.character_set):
        ds.SpecificCharacterSet = character_set
    for keyword, value in (values | location).items():
        ds.add(_make_element(keyword, value))
    return ds


def encode(ds: Dataset, syntax: UID) -> BytesIO:
    """Encode the identifier of a response. Raises CannotUnderstand where it cannot be encoded."""
    content = dsutils.encode(ds, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
    if not content:
        raise CannotUnderstand("an answer cannot be encoded")
    return BytesIO(content)


def _check_level(level: str, levels: tuple[Level, ...]) -> Level:
    if level not in levels:
        raise IdentifierRefused(f"QueryRetrieveLevel is none of {', '.join(levels[:-1])} and {levels[-1]}")
    return level


def _decode_ascii(element: Any) -> str:
    raw = element.value if isinstance(element, RawDataElement) else b""
    return (raw or b"").decode("ascii", "replace").strip("\0 ")


def _decode_value(tag: int, element: Any, syntax: UID, encodings: tuple[str, ...]) -> str | None:
    """Return the value as text, several values separated by backslashes; None for a VR without such a value."""
    if element.VR == "SQ":
        return None
    vr = element.VR if element.VR not in (None, "UN") else find_vr(tag)
    raw = element.value or b""  # the decoder leaves some empty elements without bytes
    if vr in CHARACTER_SET_TEXT:
        return decode_text(raw, encodings).strip("\0 ")
    if vr in TEXT:
        return raw.decode("ascii", "replace").strip("\0 ")
    if vr in _INTEGER_FORMATS:
        form = ("<" if syntax.is_little_endian else ">") + _INTEGER_FORMATS[vr]
        if len(raw) % struct.calcsize(form) == 0:
            return "\\".join(str(number) for (number,) in struct.iter_unpack(form, raw))
    return None


def _make_element(keyword: str, value: Any) -> DataElement:
    """Return an element with the value as its sender wrote it, valid or not."""
    tag = tag_for_keyword(keyword)
    assert tag is not None  # keywords come from this module or the catalogue
    vr = dictionary_VR(tag)
    if vr == "SQ":
        return DataElement(tag, vr, [_make_item(each) for each in value or ()])
    if vr in ("DS", "IS"):
        value = [str(each) for each in value] if isinstance(value, list) else str(value)
    if vr in _INTEGER_FORMATS and value == "":
        value = None
    return DataElement(tag, vr, value, validation_mode=pydicom_config.IGNORE)


def _make_item(values: Mapping[str, str]) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        ds.add(_make_element(keyword, value))
    return ds


def _choose_character_set(values: Mapping[str, Any], requested: str) -> str:
    """Return no character set for ASCII, else that of the request if it has all characters, else UTF-8."""
    texts = [str(each) for value in values.values() for each in (value if isinstance(value, list) else [value])]
    if all(text.isascii() for text in texts):
        return ""
    try:
        (encoding,) = find_encodings(requested) if requested else ("ascii",)
        for text in texts:
            text.encode(encoding)
    except (LookupError, ValueError):
        return _UTF_8
    return requested
