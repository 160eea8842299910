"""The few attributes that rows and routes need, read from a file without its pixels."""

from __future__ import annotations

import math
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from pydicom.values import convert_SQ

from db.studies import InstanceFacts
from dicomnode.datasets import inflating
from dicomnode.datasets.character_sets import decode_text, find_encodings
from dicomnode.datasets.encoded import (
    OpenFile,
    Readable,
    Source,
    dictionary_vr,
    open_source,
    read_file_meta,
    tag_name,
    walk,
)
from dicomnode.errors import CannotUnderstand

__all__ = ["facts", "not_indexed", "read", "read_between"]

_LONGEST_VALUE = 1024  # bytes, encoded and in UTF-8: an index row of PostgreSQL takes 2704
_NOTHING = b"\0 \\^="
_CHARACTER_SET = "SpecificCharacterSet"
_PIXELS = 0x7FE00000
_REQUESTS = 0x00400275
_OF_REQUESTS = ("ScheduledProcedureStepID", "RequestedProcedureID")
_LONGEST_SEQUENCE = 1 << 16
_BROKEN = (AttributeError, EOFError, KeyError, NotImplementedError, OSError, TypeError, ValueError, struct.error)
_TEXT = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_ASCII = frozenset({"AE", "AS", "CS", "DA", "DT", "TM", "UI", "UR"})
_DECIMAL = frozenset({"DS", "IS"})
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LARGEST_WHOLE = 2**53  # what a JSON number says exactly
_BINARY = {"FD": "d", "FL": "f", "SL": "l", "SS": "h", "SV": "q", "UL": "L", "US": "H", "UV": "Q"}
_SHORT = _TEXT | _ASCII | _DECIMAL | _BINARY.keys()
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
        return read_between(content, start, size, transfer_syntax_uid)


def read_between(content: Readable, start: int, stop: int, transfer_syntax_uid: str) -> InstanceFacts:
    """The facts of the data set that lies between two offsets. Raises CannotUnderstand as ``facts`` does."""
    with inflating.take_turn(transfer_syntax_uid):
        return facts(open_source(content, start, stop, transfer_syntax_uid), transfer_syntax_uid)


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


def not_indexed(facts: InstanceFacts) -> list[str]:
    """The tags of attributes that rows were to have, and cannot: too long, twice, or without a usable value."""
    attributes = facts.attributes
    return [tag_name(tag) for tag in sorted(attributes.left_out)] if isinstance(attributes, _Attributes) else []


@lru_cache(maxsize=8192)
def _indexed_as(tag: int) -> str:
    """The keyword of a standard element; empty for private, unknown and repeating ones.

    The elements of a repeating group (60xx, 50xx, 7Fxx, 0020,31xx) share one keyword, so none can be found by it.
    """
    keyword = keyword_for_tag(tag)
    return keyword if keyword and tag_for_keyword(keyword) == tag else ""


class _Attributes(Mapping[str, Value]):
    """Keyword to value of the standard elements that are short text or numbers; decoded when they are looked at.

    ``left_out``: the tags of those that turned out to be of no use. Of sequences only the Request Attributes: what of
    each item searches match (PS3.18 table 10.6.1-5).
    """

    def __init__(self, source: Source, transfer_syntax_uid: str) -> None:
        self._order = ">" if transfer_syntax_uid == ExplicitVRBigEndian else "<"
        self._raw: dict[str, tuple[str, bytes]] = {}
        self._implicit = transfer_syntax_uid == ImplicitVRLittleEndian
        self.left_out: set[int] = set()
        for tag, vr, at, length in walk(source, transfer_syntax_uid):
            if vr == "UN":  # a sender that did not know the element; we may (PS3.5 6.2.2)
                vr = dictionary_vr(tag)
            if vr in _SHORT and tag < _PIXELS and (keyword := _indexed_as(tag)):
                self._keep(tag, keyword, (vr, source.read(at, length) if length <= _LONGEST_VALUE else None))
            elif tag == _REQUESTS and vr == "SQ":
                content = source.read(at, length) if length <= _LONGEST_SEQUENCE else None
                self._keep(tag, "RequestAttributesSequence", (vr, content))
        character_set = self._raw.get(_CHARACTER_SET, ("", b""))[1]
        self._encodings = find_encodings(character_set.decode("ascii", "replace"))

    def __getitem__(self, keyword: str) -> Value:
        vr, raw = self._raw[keyword]
        value = self._value(vr, raw)
        if value is None or len(_stated(value)) > _LONGEST_VALUE:
            if raw.strip(_NOTHING):
                self.left_out.add(tag_for_keyword(keyword) or 0)
            raise KeyError(keyword)
        return value

    def __iter__(self) -> Iterator[str]:
        return (keyword for keyword in self._raw if self.get(keyword) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _value(self, vr: str, raw: bytes) -> Value | None:
        if vr == "SQ":
            return _requests(raw, self._implicit, self._order == "<", self._encodings) or None
        return _value(vr, raw, self._order, self._encodings)

    def _keep(self, tag: int, keyword: str, found: tuple[str, bytes | None]) -> None:
        """One element's VR and bytes, unless it is too long or stands twice: neither value is the right one then."""
        vr, raw = found
        if raw is None or (tag in self.left_out) or self._raw.setdefault(keyword, (vr, raw)) != found:
            self._raw.pop(keyword, None)
            self.left_out.add(tag)


def _stated(value: Value) -> bytes:
    parts = value if isinstance(value, list) else [value]
    return b"\\".join(part.encode() for part in parts if isinstance(part, str))


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
    if code := _BINARY.get(vr):
        return _single(_finite(raw, order + code))
    text = decode_text(raw, encodings if vr in _TEXT else ("ascii",)).replace("\0", "")
    if vr in ("LT", "ST", "UT", "UR"):  # PS3.5 6.2: never several values
        return text.rstrip() or None
    if vr == "PN":
        return _single([part.rstrip(" =") for part in text.split("\\")])  # trailing component groups are empty
    parts = [part.strip() for part in text.split("\\")]
    return _single((_numbers(parts, vr) or parts) if vr in _DECIMAL else parts)


def _finite(raw: bytes, form: str) -> list[float]:
    """The numbers, or nothing when one of them is not finite or incomplete: no other may take its place."""
    size = struct.calcsize(form)
    numbers = [number for (number,) in struct.iter_unpack(form, raw[: len(raw) // size * size])]
    return numbers if len(raw) % size == 0 and all(map(math.isfinite, numbers)) else []


def _numbers(parts: list[str], vr: str) -> list[float]:
    """The numbers, or nothing when one of them is none that a JSON number can say."""
    if not all(_NUMBER.fullmatch(part) for part in parts):
        return []
    numbers = [float(part) for part in parts]
    if not all(map(math.isfinite, numbers)):
        return []
    if vr == "DS":
        return numbers
    whole = all(number.is_integer() and abs(number) < _LARGEST_WHOLE for number in numbers)
    return [int(number) for number in numbers] if whole else []


def _single(values: list[Any]) -> Value | None:
    if len(values) > 1:
        return values if any(value != "" for value in values) else None
    return values[0] if values and values[0] != "" else None


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
