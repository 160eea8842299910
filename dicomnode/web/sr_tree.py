"""A structured report of any sender as a tree of plain text (PS3.3 C.17.3), for display on a page.

Reports are untrusted input: depth, number of content items and length are limited, and a report beyond a limit is
refused, not shown in part.
"""

from __future__ import annotations

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

__all__ = ["Concept", "Item", "Report", "is_report", "read_report"]

_CLASSES = "1.2.840.10008.5.1.4.1.1.88."
DEEPEST = 50
MOST_ITEMS = 20_000
MOST_CHARACTERS = 4_000_000
MOST_NUMBERS = 30
"""Greatest number of coordinates of an item that are shown; a contour may have thousands."""
_CONTROLS = [code for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"]
_DIRECTION_MARKS = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
"""Characters that change the direction of writing: they would displace the text that follows."""
_REPLACED_BY_SPACE = dict.fromkeys((*_CONTROLS, *_DIRECTION_MARKS), " ")
_UNREADABLE = (InvalidDicomError, ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError,
               EOFError, OSError, RecursionError, OverflowError)  # fmt: skip


@dataclass(frozen=True)
class Concept:
    """A coded concept as text; ``code``: its scheme and value."""

    meaning: str = ""
    code: str = ""


@dataclass(frozen=True)
class Item:
    """A content item. ``number``: its position in the tree ("1.3.2"); ``refers_to``: that of a referenced item."""

    number: str
    relation: str
    kind: str
    name: Concept
    value: str = ""
    concept: Concept = Concept()
    unit: Concept = Concept()
    children: tuple[Item, ...] = ()
    refers_to: str = ""


@dataclass(frozen=True)
class Report:
    """A report.

    ``about``: titles and values of patient, study and document; ``root``: the tree; ``is_synthetic``: by its header.
    """

    title: str
    about: tuple[tuple[str, str], ...]
    root: Item
    is_synthetic: bool


def is_report(sop_class_uid: str) -> bool:
    """Return whether instances of the SOP class are structured reports."""
    return sop_class_uid.startswith(_CLASSES)


def read_report(path: Path) -> Report:
    """Read the report in a file. Raises InputRefused for other objects and for reports beyond a limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values, which may identify the patient
        try:
            return _build_report(dcmread(path, stop_before_pixels=True))
        except _UNREADABLE as error:
            raise InputRefused(f"this is no structured report that can be shown ({type(error).__name__})") from None


def _build_report(ds: Dataset) -> Report:
    reader = _Reader()
    root = reader.item(ds, "1", 0)
    about = [(title, _remove_controls(_text_of(ds, keyword))) for title, keyword in _ABOUT.items()]
    about.append(
        ("Verified by", _remove_controls("; ".join(map(_describe_observer, ds.get("VerifyingObserverSequence") or []))))
    )
    rows = tuple((title, value) for title, value in about if value)
    return Report(root.name.meaning or "Structured report", rows, root, ds.get("SyntheticData") == "YES")


_ABOUT = MappingProxyType({
    "Patient": "PatientName", "Patient ID": "PatientID", "Issuer": "IssuerOfPatientID",
    "Birth date": "PatientBirthDate", "Sex": "PatientSex", "Study date": "StudyDate", "Study": "StudyDescription",
    "Accession number": "AccessionNumber", "Series": "SeriesDescription", "Content date": "ContentDate",
    "Content time": "ContentTime", "Manufacturer": "Manufacturer", "Completion": "CompletionFlag",
    "Preliminary or final": "PreliminaryFlag", "Verification": "VerificationFlag",
})  # fmt: skip


def _describe_observer(item: Dataset) -> str:
    """Describe a verifying observer: name, organization and time (PS3.3 C.17.2)."""
    keywords = ("VerifyingObserverName", "VerifyingOrganization", "VerificationDateTime")
    return ", ".join(filter(None, (_text_of(item, keyword) for keyword in keywords)))


def _remove_controls(text: str) -> str:
    """Replace characters that a reader cannot see by spaces: controls, and marks of the direction of writing."""
    return text.translate(_REPLACED_BY_SPACE)


class _Reader:
    """Reader of content items that counts items and characters."""

    def __init__(self) -> None:
        self._items = 0
        self._characters = 0

    def item(self, ds: Dataset, number: str, depth: int) -> Item:
        """Read the tree below a content item. Raises InputRefused beyond a limit."""
        self._items += 1
        if depth > DEEPEST or self._items > MOST_ITEMS:
            limit = f"{DEEPEST} levels" if depth > DEEPEST else f"{MOST_ITEMS} content items"
            raise InputRefused(f"this report has more than {limit}; retrieve the instance itself")
        kind = self._plain(_text_of(ds, "ValueType"))
        value, concept, unit = _VALUE_READERS.get(kind, _read_nothing)(ds)
        children = enumerate(ds.get("ContentSequence") or [], start=1)
        return Item(
            number,
            self._plain(_text_of(ds, "RelationshipType")).lower(),
            kind,
            self._coded(ds, "ConceptNameCodeSequence"),
            self._plain(value),
            self._coded(ds, concept),
            self._coded(unit, "MeasurementUnitsCodeSequence"),
            tuple(self.item(child, f"{number}.{n}", depth + 1) for n, child in children),
            ".".join(map(str, _values_of(ds, "ReferencedContentItemIdentifier"))),
        )

    def _coded(self, ds: Dataset, keyword: str) -> Concept:
        items = ds.get(keyword) if keyword else None
        if not items:
            return Concept()
        text = [_text_of(items[0], each) for each in ("CodeValue", "LongCodeValue", "URNCodeValue")]
        code = next(filter(None, text), "")
        scheme = _text_of(items[0], "CodingSchemeDesignator")
        return Concept(self._plain(_text_of(items[0], "CodeMeaning")), self._plain(f"{scheme} {code}".strip()))

    def _plain(self, text: str) -> str:
        self._characters += len(text)
        if self._characters > MOST_CHARACTERS:
            raise InputRefused(f"this report has more than {MOST_CHARACTERS} characters; retrieve the instance itself")
        return _remove_controls(text)


_Value = tuple[str, str, Dataset]
"""Text, the keyword of a coded value, and the item with the unit."""


def _text_of(ds: Dataset, keyword: str) -> str:
    return " \\ ".join(map(str, _values_of(ds, keyword)))


def _values_of(ds: Dataset, keyword: str) -> Sequence[object]:
    value = ds.get(keyword)
    if value is None or value == "":
        return ()
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,)


def _text_reader(keyword: str) -> Callable[[Dataset], _Value]:
    return lambda ds: (_text_of(ds, keyword), "", Dataset())


def _read_code(ds: Dataset) -> _Value:
    return "", "ConceptCodeSequence", Dataset()


def _read_number(ds: Dataset) -> _Value:
    """Read a number; a missing value is given as such, with its reason (PS3.3 C.18.1)."""
    measured = ds.get("MeasuredValueSequence")
    if not measured:
        return "no value", "NumericValueQualifierCodeSequence", Dataset()
    return _text_of(measured[0], "NumericValue"), "NumericValueQualifierCodeSequence", measured[0]


def _read_references(ds: Dataset) -> _Value:
    return "; ".join(_describe_instances(ds)), "", Dataset()


def _describe_instances(ds: Dataset) -> Iterator[str]:
    for item in ds.get("ReferencedSOPSequence") or []:
        parts = [UID(_text_of(item, "ReferencedSOPClassUID")).name, _text_of(item, "ReferencedSOPInstanceUID")]
        for noun, keyword in (("frame", "ReferencedFrameNumber"), ("segment", "ReferencedSegmentNumber")):
            if text := _text_of(item, keyword):
                parts.append(f"{noun} {text}")
        yield ", ".join(part for part in parts if part)


def _read_coordinates(ds: Dataset) -> _Value:
    numbers = _values_of(ds, "GraphicData")
    stated_values = ", ".join(f"{float(str(each)):g}" for each in numbers[:MOST_NUMBERS])
    more = f" and {len(numbers) - MOST_NUMBERS} further numbers" if len(numbers) > MOST_NUMBERS else ""
    frame = _text_of(ds, "ReferencedFrameOfReferenceUID")
    in_frame = f" mm in frame of reference {frame}" if frame else ""
    return f"{_text_of(ds, 'GraphicType')} {stated_values}{more}{in_frame}", "", Dataset()


def _read_nothing(ds: Dataset) -> _Value:
    """Return no value, for containers and unknown value types."""
    return "", "", Dataset()


_VALUE_READERS: MappingProxyType[str, Callable[[Dataset], _Value]] = MappingProxyType({
    "TEXT": _text_reader("TextValue"), "DATE": _text_reader("Date"), "TIME": _text_reader("Time"),
    "DATETIME": _text_reader("DateTime"), "UIDREF": _text_reader("UID"), "PNAME": _text_reader("PersonName"),
    "TCOORD": _text_reader("TemporalRangeType"), "CODE": _read_code, "NUM": _read_number, "IMAGE": _read_references,
    "COMPOSITE": _read_references, "WAVEFORM": _read_references, "SCOORD": _read_coordinates,
    "SCOORD3D": _read_coordinates,
})  # fmt: skip
