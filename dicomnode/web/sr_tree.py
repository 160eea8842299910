"""A structured report of any sender as a tree of plain text, for a page to show (PS3.3 C.17.3).

A report is input from outside: its depth, its number of content items and its length are bounded, and one beyond a
bound is refused rather than shown in part.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from dicomnode.errors import InputRefused

__all__ = ["Coded", "Item", "Report", "is_report", "read"]

_CLASSES = "1.2.840.10008.5.1.4.1.1.88."
DEEPEST = 50
MOST_ITEMS = 20_000
MOST_CHARACTERS = 4_000_000
MOST_NUMBERS = 30
"""Coordinates of one item that are shown; a contour may have thousands."""
_BREAKS = frozenset("\n\t")
_HIDDEN = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""What turns the direction of writing: text after it would not stand where it is read."""
_UNREADABLE = (InvalidDicomError, ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError,
               EOFError, OSError, RecursionError, OverflowError)  # fmt: skip


@dataclass(frozen=True)
class Coded:
    """A concept as it is shown: ``code`` is its scheme and value."""

    meaning: str = ""
    code: str = ""


@dataclass(frozen=True)
class Item:
    """A content item; ``number``: its position in the tree ("1.3.2"); ``refers_to``: that of the item it stands for."""

    number: str
    relation: str
    kind: str
    name: Coded
    value: str = ""
    concept: Coded = Coded()
    unit: Coded = Coded()
    children: tuple[Item, ...] = ()
    refers_to: str = ""


@dataclass(frozen=True)
class Report:
    """``about``: names and values of patient, study, document; ``root``: the tree; ``is_synthetic``: by its header."""

    title: str
    about: tuple[tuple[str, str], ...]
    root: Item
    is_synthetic: bool


def is_report(sop_class_uid: str) -> bool:
    """Whether instances of the class are structured reports."""
    return sop_class_uid.startswith(_CLASSES)


def read(path: Path) -> Report:
    """Read the report in a file. Raises InputRefused for what is no report or is beyond a bound."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom quotes values, which may be a patient's
        try:
            return _report(dcmread(path, stop_before_pixels=True))
        except _UNREADABLE as error:
            raise InputRefused(f"this is no structured report that can be shown ({type(error).__name__})") from None


def _report(ds: Dataset) -> Report:
    reader = _Reader()
    root = reader.item(ds, "1", 0)
    about = [(title, plain(_stated(ds, keyword))) for title, keyword in _ABOUT.items()]
    told = tuple((title, value) for title, value in about if value)
    return Report(root.name.meaning or "Structured report", told, root, ds.get("SyntheticData") == "YES")


_ABOUT = MappingProxyType({
    "Patient": "PatientName", "Patient ID": "PatientID", "Issuer": "IssuerOfPatientID",
    "Birth date": "PatientBirthDate", "Sex": "PatientSex", "Study date": "StudyDate", "Study": "StudyDescription",
    "Accession number": "AccessionNumber", "Series": "SeriesDescription", "Content date": "ContentDate",
    "Content time": "ContentTime", "Manufacturer": "Manufacturer", "Completion": "CompletionFlag",
    "Preliminary or final": "PreliminaryFlag", "Verification": "VerificationFlag",
})  # fmt: skip


def plain(text: str) -> str:
    """Without the characters that a reader cannot see: controls, and what turns the direction of writing."""
    return "".join(c if c in _BREAKS or (unicodedata.category(c) != "Cc" and c not in _HIDDEN) else " " for c in text)


class _Reader:
    """Counts what it has read."""

    def __init__(self) -> None:
        self._items = 0
        self._characters = 0

    def item(self, ds: Dataset, number: str, depth: int) -> Item:
        """The tree below a content item. Raises InputRefused beyond a bound."""
        self._items += 1
        if depth > DEEPEST or self._items > MOST_ITEMS:
            limit = f"{DEEPEST} levels" if depth > DEEPEST else f"{MOST_ITEMS} content items"
            raise InputRefused(f"this report has more than {limit}; retrieve the instance itself")
        kind = self._plain(_stated(ds, "ValueType"))
        value, concept, unit = _VALUES.get(kind, _unknown)(ds)
        children = enumerate(ds.get("ContentSequence") or [], start=1)
        return Item(
            number,
            self._plain(_stated(ds, "RelationshipType")).lower(),
            kind,
            self._coded(ds, "ConceptNameCodeSequence"),
            self._plain(value),
            self._coded(ds, concept),
            self._coded(unit, "MeasurementUnitsCodeSequence"),
            tuple(self.item(child, f"{number}.{n}", depth + 1) for n, child in children),
            ".".join(map(str, _several(ds, "ReferencedContentItemIdentifier"))),
        )

    def _coded(self, ds: Dataset, keyword: str) -> Coded:
        items = ds.get(keyword) if keyword else None
        if not items:
            return Coded()
        stated = [_stated(items[0], each) for each in ("CodeValue", "LongCodeValue", "URNCodeValue")]
        code = next(filter(None, stated), "")
        scheme = _stated(items[0], "CodingSchemeDesignator")
        return Coded(self._plain(_stated(items[0], "CodeMeaning")), self._plain(f"{scheme} {code}".strip()))

    def _plain(self, text: str) -> str:
        self._characters += len(text)
        if self._characters > MOST_CHARACTERS:
            raise InputRefused(f"this report has more than {MOST_CHARACTERS} characters; retrieve the instance itself")
        return plain(text)


_Value = tuple[str, str, Dataset]
"""Words, the keyword of a coded value, and the item that has the unit."""


def _stated(ds: Dataset, keyword: str) -> str:
    return " \\ ".join(map(str, _several(ds, keyword)))


def _several(ds: Dataset, keyword: str) -> Sequence[object]:
    value = ds.get(keyword)
    if value is None or value == "":
        return ()
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,)


def _words(keyword: str) -> Callable[[Dataset], _Value]:
    return lambda ds: (_stated(ds, keyword), "", Dataset())


def _code(ds: Dataset) -> _Value:
    return "", "ConceptCodeSequence", Dataset()


def _number(ds: Dataset) -> _Value:
    """PS3.3 C.18.1: no measured value, and the reason why, is a value too."""
    measured = ds.get("MeasuredValueSequence")
    if not measured:
        return "no value", "NumericValueQualifierCodeSequence", Dataset()
    return _stated(measured[0], "NumericValue"), "NumericValueQualifierCodeSequence", measured[0]


def _reference(ds: Dataset) -> _Value:
    return "; ".join(_instances(ds)), "", Dataset()


def _instances(ds: Dataset) -> Iterator[str]:
    for item in ds.get("ReferencedSOPSequence") or []:
        parts = [UID(_stated(item, "ReferencedSOPClassUID")).name, _stated(item, "ReferencedSOPInstanceUID")]
        for word, keyword in (("frame", "ReferencedFrameNumber"), ("segment", "ReferencedSegmentNumber")):
            if stated := _stated(item, keyword):
                parts.append(f"{word} {stated}")
        yield ", ".join(part for part in parts if part)


def _coordinates(ds: Dataset) -> _Value:
    numbers = _several(ds, "GraphicData")
    told = ", ".join(f"{float(str(each)):g}" for each in numbers[:MOST_NUMBERS])
    more = f" and {len(numbers) - MOST_NUMBERS} further numbers" if len(numbers) > MOST_NUMBERS else ""
    frame = _stated(ds, "ReferencedFrameOfReferenceUID")
    in_frame = f" mm in frame of reference {frame}" if frame else ""
    return f"{_stated(ds, 'GraphicType')} {told}{more}{in_frame}", "", Dataset()


def _unknown(ds: Dataset) -> _Value:
    """Containers, and value types that are not known, say nothing of their own."""
    return "", "", Dataset()


_VALUES: MappingProxyType[str, Callable[[Dataset], _Value]] = MappingProxyType({
    "TEXT": _words("TextValue"), "DATE": _words("Date"), "TIME": _words("Time"), "DATETIME": _words("DateTime"),
    "UIDREF": _words("UID"), "PNAME": _words("PersonName"), "TCOORD": _words("TemporalRangeType"), "CODE": _code,
    "NUM": _number, "IMAGE": _reference, "COMPOSITE": _reference, "WAVEFORM": _reference, "SCOORD": _coordinates,
    "SCOORD3D": _coordinates,
})  # fmt: skip
