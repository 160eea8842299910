"""Identifiers of C-FIND, C-MOVE and C-GET (PS3.4 C.4): what a peer asks by, and what it is answered."""

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
from pynetdicom.dsutils import decode, encode

from db import catalogue
from db.catalogue import Level
from db.keywords import IN_SEQUENCES
from dicomnode.datasets.character_sets import decoded, encodings_of
from dicomnode.errors import CannotUnderstand, IdentifierRefused
from dicomnode.query import bounds

__all__ = ["PATIENT_ROOT", "STUDY_ROOT", "Asked", "answer", "encoded", "patient", "read", "unique"]

_TEXT = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_PLAIN = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"})
_BINARY = {"SL": "l", "SS": "h", "UL": "L", "US": "H"}
_OURS = frozenset({"RetrieveAETitle", "InstanceAvailability", "SpecificCharacterSet", "QueryRetrieveLevel"})
_REQUESTS = "RequestAttributesSequence"
_UTF_8 = "ISO_IR 192"
_UNIQUE = {
    "PATIENT": "PatientID", "STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID",
}  # fmt: skip

PATIENT_ROOT: tuple[Level, ...] = get_args(Level)
"""Levels of the information models (PS3.4 C.6.1, C.6.2)."""
STUDY_ROOT = PATIENT_ROOT[1:]


@dataclass(frozen=True)
class Asked:
    """A level and keywords with the value to match as text, empty for any; ``further``: keys that we do not know;
    ``levels``: those of the information model."""

    level: Level
    keys: Mapping[str, str] = field(repr=False)
    character_set: str = ""
    further: bool = False
    levels: tuple[Level, ...] = STUDY_ROOT


def read(content: BytesIO | None, syntax: UID, levels: tuple[Level, ...] = STUDY_ROOT) -> Asked:
    """Decodes an identifier. Raises IdentifierRefused or CannotUnderstand."""
    plain = BytesIO(bounds.checked(content.getvalue() if content else b"", syntax))
    try:
        ds = decode(plain, syntax.is_implicit_VR, syntax.is_little_endian, False)
        raw = {int(tag): ds.get_item(tag) for tag in ds.keys()}  # noqa: SIM118 a data set's iterator decodes values
    except Exception as exc:  # whatever broken bytes make the decoder raise
        raise CannotUnderstand("the identifier cannot be decoded") from exc
    character_set = _plain(raw.get(0x00080005))
    level = _level(_plain(raw.get(0x00080052)), levels)
    known, encodings = catalogue.supported_keywords(level), encodings_of(character_set)
    texts = {
        keyword_for_tag(tag) or str(tag): _text(tag, element, syntax, encodings)
        for tag, element in raw.items()
        if tag & 0xFFFF  # group lengths ask for nothing
    }
    texts |= _of_requests(ds)
    keys = {keyword: text for keyword, text in texts.items() if keyword in known and text is not None}
    return Asked(level, keys, character_set, further=bool(texts.keys() - keys.keys() - _OURS), levels=levels)


def _of_requests(ds: Dataset) -> dict[str, str]:
    """The keys inside the Request Attributes Sequence, which has one item in an identifier (PS3.4 C.2.2.2.6)."""
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


def unique(asked: Asked, level: Level, *, several: bool = False) -> tuple[str, ...]:
    """The UIDs that the identifier names at a level. Raises IdentifierRefused where there is none, or more than one."""
    keyword = _UNIQUE[level]
    uids = tuple(part.strip() for part in asked.keys.get(keyword, "").split("\\") if part.strip())
    if not uids or (len(uids) > 1 and not several) or any(not set(uid) <= set("0123456789.") for uid in uids):
        raise IdentifierRefused(f"{keyword} is not {'one or more UIDs' if several else 'one UID'}")
    return uids


def patient(asked: Asked) -> dict[str, str]:
    """The keys of the one patient that the identifier names. Raises IdentifierRefused for none, or a pattern.

    IssuerOfPatientID is no unique key of the standard's, but with it a Patient ID is one patient's.
    """
    keys = {keyword: asked.keys.get(keyword, "") for keyword in ("PatientID", "IssuerOfPatientID")}
    if not keys["PatientID"] or any(set(value) & set("*?\\") for value in keys.values()):
        raise IdentifierRefused("PatientID is not one value, or IssuerOfPatientID is a pattern")
    return {keyword: value for keyword, value in keys.items() if value}


def answer(asked: Asked, found: Mapping[str, Any], ae_title: str) -> Dataset:
    """A match as it is told: what was asked for as far as it is known, the unique keys, and who has it."""
    unique_keys = [_UNIQUE[level] for level in asked.levels[: asked.levels.index(asked.level) + 1]]
    if asked.levels is PATIENT_ROOT and found.get("IssuerOfPatientID"):
        unique_keys.append("IssuerOfPatientID")
    asked_for = [keyword for keyword in asked.keys if IN_SEQUENCES not in keyword]
    values = {keyword: found.get(keyword, "") for keyword in [*asked_for, *unique_keys]}
    told = {"QueryRetrieveLevel": asked.level, "RetrieveAETitle": ae_title, "InstanceAvailability": "ONLINE"}
    ds = Dataset()
    if character_set := _character_set(values, asked.character_set):
        ds.SpecificCharacterSet = character_set
    for keyword, value in (values | told).items():
        ds.add(_element(keyword, value))
    return ds


def encoded(ds: Dataset, syntax: UID) -> BytesIO:
    """An identifier to send. Raises CannotUnderstand where it cannot be said in the transfer syntax."""
    content = encode(ds, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
    if not content:
        raise CannotUnderstand("an answer cannot be encoded")
    return BytesIO(content)


def _level(stated: str, levels: tuple[Level, ...]) -> Level:
    if stated not in levels:
        raise IdentifierRefused(f"QueryRetrieveLevel is none of {', '.join(levels[:-1])} and {levels[-1]}")
    return stated


def _plain(element: Any) -> str:
    raw = element.value if isinstance(element, RawDataElement) else b""
    return (raw or b"").decode("ascii", "replace").strip("\0 ")


def _text(tag: int, element: Any, syntax: UID, encodings: tuple[str, ...]) -> str | None:
    """The value as text, several separated by backslashes; None for what has no such value."""
    if element.VR == "SQ":
        return None
    vr = element.VR if element.VR not in (None, "UN") else _dictionary_vr(tag)
    raw = element.value or b""  # the decoder leaves some empty elements without bytes
    if vr in _TEXT:
        return decoded(raw, encodings).strip("\0 ")
    if vr in _PLAIN:
        return raw.decode("ascii", "replace").strip("\0 ")
    if vr in _BINARY:
        form = ("<" if syntax.is_little_endian else ">") + _BINARY[vr]
        return "\\".join(str(number) for (number,) in struct.iter_unpack(form, raw)) if _whole(raw, form) else None
    return None


def _whole(raw: bytes, form: str) -> bool:
    return len(raw) % struct.calcsize(form) == 0


def _dictionary_vr(tag: int) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


def _element(keyword: str, value: Any) -> DataElement:
    """What senders wrote is answered as they wrote it, also where the standard would not have it so."""
    tag = tag_for_keyword(keyword)
    assert tag is not None  # keywords are ours or the catalogue's
    vr = dictionary_VR(tag)
    if vr == "SQ":
        return DataElement(tag, vr, [_item(each) for each in value or ()])
    if vr in ("DS", "IS"):
        value = [str(each) for each in value] if isinstance(value, list) else str(value)
    if vr in _BINARY and value == "":
        value = None
    return DataElement(tag, vr, value, validation_mode=pydicom_config.IGNORE)


def _item(values: Mapping[str, str]) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        ds.add(_element(keyword, value))
    return ds


def _character_set(values: Mapping[str, Any], asked: str) -> str:
    """None is needed for ASCII; else the one in which it was asked if it has the characters, and Unicode if not."""
    words = [str(each) for value in values.values() for each in (value if isinstance(value, list) else [value])]
    if all(word.isascii() for word in words):
        return ""
    try:
        (encoding,) = encodings_of(asked) if asked else ("ascii",)
        for word in words:
            word.encode(encoding)
    except (LookupError, ValueError):
        return _UTF_8
    return asked
