"""Attributes that rows and routes need, read from a file without its pixels."""

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
from dicomnode.datasets.encoding import (
    OpenFile,
    Readable,
    Source,
    find_vr,
    format_tag,
    open_source,
    read_file_meta,
    walk,
)
from dicomnode.datasets.vrs import BINARY_FORMATS, CHARACTER_SET_TEXT, TEXT
from dicomnode.errors import CannotUnderstand

__all__ = ["list_unindexed", "read", "read_between", "read_facts"]

_LONGEST_VALUE = 1024  # bytes, encoded and in UTF-8: an index row of PostgreSQL takes 2704
_NOTHING = b"\0 \\^="
_CHARACTER_SET = "SpecificCharacterSet"
_PIXELS = 0x7FE00000
_REQUESTS = 0x00400275
_REQUEST_ATTRIBUTES = ("ScheduledProcedureStepID", "RequestedProcedureID")
_LONGEST_SEQUENCE = 1 << 16
_BROKEN = (AttributeError, EOFError, KeyError, NotImplementedError, OSError, TypeError, ValueError, struct.error)
_DECIMAL = frozenset({"DS", "IS"})
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LARGEST_INTEGER = 2**53  # that a JSON number holds exactly
_INDEXED_VRS = TEXT | BINARY_FORMATS.keys()
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")  # a component with a leading zero is not allowed, and is common

Value = str | float | list[str] | list[float] | list[dict[str, str]]


def read(path: Path) -> InstanceFacts:
    """Return the facts of a DICOM Part 10 file.

    Raises CannotUnderstand for another file, or a broken data set.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        content = OpenFile(file.fileno())
        transfer_syntax_uid, start = read_file_meta(content, size)
        return read_between(content, start, size, transfer_syntax_uid)


def read_between(content: Readable, start: int, stop: int, transfer_syntax_uid: str) -> InstanceFacts:
    """Return the facts of the data set between two offsets. Raises CannotUnderstand as ``read_facts`` does."""
    with inflating.take_turn(transfer_syntax_uid):
        return read_facts(open_source(content, start, stop, transfer_syntax_uid), transfer_syntax_uid)


def read_facts(source: Source, transfer_syntax_uid: str) -> InstanceFacts:
    """Return the facts of an encoded data set; every element's length is checked, that of the pixels too.

    Raises CannotUnderstand when the data set is broken or lacks one of the UIDs that place it.
    """
    values = _Attributes(source, transfer_syntax_uid)
    return InstanceFacts(
        study_uid=_require_uid(values, "StudyInstanceUID"),
        series_uid=_require_uid(values, "SeriesInstanceUID"),
        sop_instance_uid=_require_uid(values, "SOPInstanceUID"),
        sop_class_uid=_require_uid(values, "SOPClassUID"),
        transfer_syntax_uid=transfer_syntax_uid,
        modality=_get_text(values, "Modality"),
        attributes=values,
        patient_id=_get_text(values, "PatientID"),
        patient_name=_get_text(values, "PatientName"),
        accession_number=_get_text(values, "AccessionNumber"),
        study_date=_get_text(values, "StudyDate"),
        study_description=_get_text(values, "StudyDescription"),
    )


def list_unindexed(facts: InstanceFacts) -> list[str]:
    """Return the tags of indexed attributes that are left out: too long, present twice, or without a usable value."""
    attributes = facts.attributes
    return [format_tag(tag) for tag in sorted(attributes.left_out)] if isinstance(attributes, _Attributes) else []


@lru_cache(maxsize=8192)
def _find_keyword(tag: int) -> str:
    """Return the keyword of a standard element; empty for private, unknown and repeating ones.

    The elements of a repeating group (60xx, 50xx, 7Fxx, 0020,31xx) share one keyword, so it identifies none of them.
    """
    keyword = keyword_for_tag(tag)
    return keyword if keyword and tag_for_keyword(keyword) == tag else ""


class _Attributes(Mapping[str, Value]):
    """Values of the standard elements that are short text or numbers, by keyword; decoded on access.

    ``left_out``: tags of the elements without a usable value. The only sequence is Request Attributes, with the
    attributes of each item that searches match (PS3.18 table 10.6.1-5).
    """

    def __init__(self, source: Source, transfer_syntax_uid: str) -> None:
        self._order = ">" if transfer_syntax_uid == ExplicitVRBigEndian else "<"
        self._raw: dict[str, tuple[str, bytes]] = {}
        self._implicit = transfer_syntax_uid == ImplicitVRLittleEndian
        self.left_out: set[int] = set()
        for tag, vr, at, length in walk(source, transfer_syntax_uid):
            if vr == "UN":  # a sender that did not know the element (PS3.5 6.2.2)
                vr = find_vr(tag)
            if vr in _INDEXED_VRS and tag < _PIXELS and (keyword := _find_keyword(tag)):
                self._add(tag, keyword, (vr, source.read(at, length) if length <= _LONGEST_VALUE else None))
            elif tag == _REQUESTS and vr == "SQ":
                content = source.read(at, length) if length <= _LONGEST_SEQUENCE else None
                self._add(tag, "RequestAttributesSequence", (vr, content))
        character_set = self._raw.get(_CHARACTER_SET, ("", b""))[1]
        self._encodings = find_encodings(character_set.decode("ascii", "replace"))

    def __getitem__(self, keyword: str) -> Value:
        vr, raw = self._raw[keyword]
        value = self._value(vr, raw)
        if value is None or len(_encode_text(value)) > _LONGEST_VALUE:
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
            return _decode_requests(raw, self._implicit, self._order == "<", self._encodings) or None
        return _decode_value(vr, raw, self._order, self._encodings)

    def _add(self, tag: int, keyword: str, element: tuple[str, bytes | None]) -> None:
        """Add the VR and bytes of an element, unless it is too long or stands twice with different values."""
        vr, raw = element
        if raw is None or (tag in self.left_out) or self._raw.setdefault(keyword, (vr, raw)) != element:
            self._raw.pop(keyword, None)
            self.left_out.add(tag)


def _encode_text(value: Value) -> bytes:
    parts = value if isinstance(value, list) else [value]
    return b"\\".join(part.encode() for part in parts if isinstance(part, str))


def _decode_requests(
    raw: bytes, implicit: bool, little_endian: bool, encodings: tuple[str, ...]
) -> list[dict[str, str]]:
    """Return the request attributes of each item; an empty list where they cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values
        try:
            items = convert_SQ(raw, implicit, little_endian, list(encodings))
            texts = [{name: str(item.get(name) or "").strip() for name in _REQUEST_ATTRIBUTES} for item in items]
        except _BROKEN:
            return []
    return [present for item in texts if (present := {name: text for name, text in item.items() if text})]


def _decode_value(vr: str, raw: bytes, order: str, encodings: tuple[str, ...]) -> Value | None:
    if code := BINARY_FORMATS.get(vr):
        return _unwrap_single(_unpack_finite(raw, order + code))
    text = decode_text(raw, encodings if vr in CHARACTER_SET_TEXT else ("ascii",)).replace("\0", "")
    if vr in ("LT", "ST", "UT", "UR"):  # PS3.5 6.2: never several values
        return text.rstrip() or None
    if vr == "PN":
        return _unwrap_single([part.rstrip(" =") for part in text.split("\\")])  # trailing component groups are empty
    parts = [part.strip() for part in text.split("\\")]
    return _unwrap_single((_parse_numbers(parts, vr) or parts) if vr in _DECIMAL else parts)


def _unpack_finite(raw: bytes, form: str) -> list[float]:
    """Return the numbers, or an empty list where one is not finite or incomplete: no other may take its place."""
    size = struct.calcsize(form)
    numbers = [number for (number,) in struct.iter_unpack(form, raw[: len(raw) // size * size])]
    return numbers if len(raw) % size == 0 and all(map(math.isfinite, numbers)) else []


def _parse_numbers(parts: list[str], vr: str) -> list[float]:
    """Return the numbers, or an empty list where one cannot be a JSON number."""
    if not all(_NUMBER.fullmatch(part) for part in parts):
        return []
    numbers = [float(part) for part in parts]
    if not all(map(math.isfinite, numbers)):
        return []
    if vr == "DS":
        return numbers
    are_integers = all(number.is_integer() and abs(number) < _LARGEST_INTEGER for number in numbers)
    return [int(number) for number in numbers] if are_integers else []


def _unwrap_single(values: list[Any]) -> Value | None:
    if len(values) > 1:
        return values if any(value != "" for value in values) else None
    return values[0] if values and values[0] != "" else None


def _require_uid(values: Mapping[str, Value], keyword: str) -> str:
    value = values.get(keyword)
    if value is None:
        raise CannotUnderstand(f"the data set has no {keyword}")
    if not isinstance(value, str) or len(value) > 64 or not _UID.fullmatch(value):
        raise CannotUnderstand(f"the data set's {keyword} is not a UID")
    return value


def _get_text(values: Mapping[str, Value], keyword: str) -> str:
    value = values.get(keyword, "")
    return "\\".join(map(str, value)) if isinstance(value, list) else str(value)
