"""The few attributes that rows and routes need, read from a file without its pixels."""

from __future__ import annotations

import math
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from pydicom.valuerep import TEXT_VR_DELIMS
from pydicom.values import convert_SQ

from db.studies import InstanceFacts
from dicomnode.datasets.encoded import OpenFile, Source, dictionary_vr, open_source, read_file_meta, walk
from dicomnode.errors import CannotUnderstand

__all__ = ["decoded", "encodings_of", "facts", "read"]

_LONGEST_VALUE = 1024
_CHARACTER_SET = 0x00080005
_PIXELS = 0x7FE00000
_REQUESTS = 0x00400275
_OF_REQUESTS = ("ScheduledProcedureStepID", "RequestedProcedureID")
_LONGEST_SEQUENCE = 1 << 16
_BROKEN = (AttributeError, EOFError, KeyError, NotImplementedError, OSError, TypeError, ValueError, struct.error)
_TEXT = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_ASCII = frozenset({"AE", "AS", "CS", "DA", "DT", "TM", "UI", "UR"})
_DECIMAL: dict[str, Callable[[str], float]] = {"DS": float, "IS": lambda text: int(float(text))}
_BINARY = {"FD": "d", "FL": "f", "SL": "l", "SS": "h", "SV": "q", "UL": "L", "US": "H", "UV": "Q"}
_SHORT = _TEXT | _ASCII | _DECIMAL.keys() | _BINARY.keys()
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")  # a component with a leading zero is not allowed, and is common

Value = str | float | list[str] | list[float] | list[dict[str, str]]


def read(path: Path) -> InstanceFacts:
    """The facts of a DICOM Part 10 file.

    Raises CannotUnderstand when it is not one, or its data set is broken.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        content = OpenFile(file.fileno())
        transfer_syntax_uid, start = read_file_meta(content, size)
        return facts(open_source(content, start, size, transfer_syntax_uid), transfer_syntax_uid)


def facts(source: Source, transfer_syntax_uid: str) -> InstanceFacts:
    """The facts of an encoded data set; every element's length is checked to the end, also the pixels'.

    Raises CannotUnderstand when the data set is broken or lacks one of the UIDs that place it.
    """
    values = _Attributes(source, transfer_syntax_uid)
    return InstanceFacts(
        study_uid=_required_uid(values, "StudyInstanceUID"),
        series_uid=_required_uid(values, "SeriesInstanceUID"),
        sop_instance_uid=_required_uid(values, "SOPInstanceUID"),
        sop_class_uid=_required_uid(values, "SOPClassUID"),
        transfer_syntax_uid=transfer_syntax_uid,
        modality=_text(values, "Modality"),
        attributes=values,
        patient_id=_text(values, "PatientID"),
        patient_name=_text(values, "PatientName"),
        accession_number=_text(values, "AccessionNumber"),
        study_date=_text(values, "StudyDate"),
        study_description=_text(values, "StudyDescription"),
    )


class _Attributes(Mapping[str, Value]):
    """Keyword to value of the standard elements that are short text or numbers; decoded when they are looked at.

    Of sequences only the Request Attributes: what of each item searches match (PS3.18 table 10.6.1-5).
    """

    def __init__(self, source: Source, transfer_syntax_uid: str) -> None:
        self._order = ">" if transfer_syntax_uid == ExplicitVRBigEndian else "<"
        self._raw: dict[int, tuple[str, bytes]] = {}
        self._implicit = transfer_syntax_uid == ImplicitVRLittleEndian
        for tag, vr, at, length in walk(source, transfer_syntax_uid):
            if vr == "UN":  # a sender that did not know the element; we may (PS3.5 6.2.2)
                vr = dictionary_vr(tag)
            is_short = vr in _SHORT and length <= _LONGEST_VALUE and tag < _PIXELS
            if is_short or (tag == _REQUESTS and vr == "SQ" and length <= _LONGEST_SEQUENCE):
                self._raw[tag] = vr, source.read(at, length)
        character_set = self._raw.get(_CHARACTER_SET, ("", b""))[1]
        self._encodings = encodings_of(character_set.decode("ascii", "replace"))

    def __getitem__(self, keyword: str) -> Value:
        tag = tag_for_keyword(keyword)
        value = self._value(tag) if tag in self._raw else None
        if value is None:
            raise KeyError(keyword)
        return value

    def __iter__(self) -> Iterator[str]:
        for tag in self._raw:
            keyword = keyword_for_tag(tag)
            if keyword and self._value(tag) is not None:
                yield keyword

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _value(self, tag: int) -> Value | None:
        vr, raw = self._raw[tag]
        if vr == "SQ":
            return _requests(raw, self._implicit, self._order == "<", self._encodings) or None
        return _value(vr, raw, self._order, self._encodings)


def _requests(raw: bytes, implicit: bool, little_endian: bool, encodings: tuple[str, ...]) -> list[dict[str, str]]:
    """What the items say of the request; nothing where they cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values
        try:
            items = convert_SQ(raw, implicit, little_endian, list(encodings))
            stated = [{name: str(item.get(name) or "").strip() for name in _OF_REQUESTS} for item in items]
        except _BROKEN:
            return []
    return [kept for item in stated if (kept := {name: text for name, text in item.items() if text})]


def _value(vr: str, raw: bytes, order: str, encodings: tuple[str, ...]) -> Value | None:
    code = _BINARY.get(vr)
    if code:
        count = len(raw) // struct.calcsize(order + code)
        numbers = struct.unpack_from(f"{order}{count}{code}", raw)
        return _single([number for number in numbers if math.isfinite(number)])
    text = decoded(raw, encodings if vr in _TEXT else ("ascii",)).replace("\0", "")
    if vr in ("LT", "ST", "UT", "UR"):  # PS3.5 6.2: never several values
        return text.rstrip() or None
    if vr == "PN":
        return _single([part.rstrip(" =") for part in text.split("\\")])  # trailing component groups are empty
    parts = [part.strip() for part in text.split("\\")]
    number = _DECIMAL.get(vr)
    return _single(_numbers(parts, number) or parts) if number else _single(parts)


def _numbers(parts: list[str], number: Callable[[str], float]) -> list[float]:
    """The numbers, or nothing when one of them is not finite or not a number."""
    try:
        numbers = [number(part) for part in parts]
    except (ValueError, OverflowError):
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def _single(values: list[Any]) -> Value | None:
    if len(values) > 1:
        return values
    return values[0] if values and values[0] != "" else None


def decoded(raw: bytes, encodings: tuple[str, ...]) -> str:
    """Text in the encodings of a data set; what they cannot say becomes a replacement character."""
    if raw.isascii() and b"\x1b" not in raw:
        return raw.decode("ascii")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a wrong character set must not cost us the instance
        try:
            return decode_bytes(raw, list(encodings), set(TEXT_VR_DELIMS))
        except (LookupError, ValueError):
            return raw.decode("ascii", "replace")


@lru_cache(maxsize=64)
def encodings_of(character_set: str) -> tuple[str, ...]:
    """Python's names for a Specific Character Set (0008,0005), its terms separated by backslashes."""
    terms = [term.strip(" \0") for term in character_set.split("\\")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return tuple(convert_encodings(terms))
        except (LookupError, ValueError):
            return ("iso8859",)


def _required_uid(values: Mapping[str, Value], keyword: str) -> str:
    value = values.get(keyword)
    if value is None:
        raise CannotUnderstand(f"the data set has no {keyword}")
    if not isinstance(value, str) or len(value) > 64 or not _UID.fullmatch(value):
        raise CannotUnderstand(f"the data set's {keyword} is not a UID")
    return value


def _text(values: Mapping[str, Value], keyword: str) -> str:
    value = values.get(keyword, "")
    return "\\".join(map(str, value)) if isinstance(value, list) else str(value)
