"""One data set, element by element and into every sequence: what Table E.1-1 and the profile's options make of it.

Where the table is silent: private elements and unknown ones go, names become empty, dates are treated as the table
treats dates, UIDs that are no registered ones are replaced, and text loses what identifies by other elements of the
same data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydicom.config import IGNORE
from pydicom.datadict import dictionary_has_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from dicomnode.config.deidentify import DeidentifyConfig
from dicomnode.deidentify import ours, private, table, values
from dicomnode.deidentify.secret import Secret, Subject
from dicomnode.deidentify.table import Action

__all__ = ["Cleaner", "identifying"]

_TEXT = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_REGISTERED = "1.2.840.10008."  # PS3.6 Annex A
_OF_CODES = frozenset({"CodingSchemeUID", "ContextGroupExtensionCreatorUID", "ContextUID", "MappingResourceUID"})
_IDENTIFIERS = frozenset({
    "PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "AdmissionID", "InstitutionName", "StationName",
    "InstitutionalDepartmentName", "DeviceSerialNumber", "RequestedProcedureID", "PerformedProcedureStepID",
    "ScheduledProcedureStepID", "PatientTelephoneNumbers", "PatientAddress",
})  # fmt: skip
_EQUIPMENT = frozenset({"Manufacturer", "ManufacturerModelName", "SoftwareVersions"})
_SHORTEST, _SHORTEST_OF_NAMES = 4, 3


@dataclass(frozen=True)
class Cleaner:
    """For the instances of one subject. ``words``: what is left out of every text that stays."""

    profile: DeidentifyConfig
    secret: Secret
    subject: Subject
    words: frozenset[str]
    ours: bool = False

    def clean(self, ds: Dataset) -> None:
        """In place; the values of what is private are judged before anything else is."""
        private.clean(ds, safe=self.profile.private == "safe", ours=self.ours)
        for tag in list(ds.keys()):
            if tag.is_private:
                continue
            if tag.element == 0 or _drawn(tag) or not dictionary_has_tag(tag):
                del ds[tag]
                continue
            element = ds[tag]
            found = table.row(tag)
            if found is None:
                self._unlisted(ds, element)
            else:
                act = table.action(found, self.profile, is_sequence=element.VR == "SQ")
                self._apply(ds, element, self._of_ours(element, act) if self.ours else act)

    def _of_ours(self, element: DataElement, act: Action) -> Action:
        """A mark of a result stays."""
        if element.keyword in ours.KEPT_WORDS or element.keyword == "DeviceSerialNumber":
            return Action.CLEAN
        return Action.DUMMY if element.keyword == "ContributionDateTime" and act is Action.REMOVE else act

    def _apply(self, ds: Dataset, element: DataElement, act: Action) -> None:
        if act is Action.REMOVE and not _must_stand(ds, element):
            del ds[element.tag]
        elif act in (Action.REMOVE, Action.EMPTY):
            _set(ds, element, [] if element.VR == "SQ" else None)
        elif element.VR == "SQ":
            for item in element.value:
                self.clean(item)
                if act is Action.DUMMY:
                    _blank(item)
        elif not element.is_empty:
            self._replace(ds, element, act)

    def _replace(self, ds: Dataset, element: DataElement, act: Action) -> None:
        """The value of an element that is no sequence."""
        if act in (Action.DUMMY, Action.UID):
            _set(ds, element, _each(element.value, self._uid) if element.VR == "UI" else values.dummy(element))
        elif act is Action.SHIFT:
            self._shift(ds, element)
        elif act is Action.CLEAN:
            self._words(ds, element)
        elif element.VR == "AS":
            _set(ds, element, _each(element.value, lambda age: values.aged(str(age))))

    def _unlisted(self, ds: Dataset, element: DataElement) -> None:
        if element.VR == "SQ":
            for item in element.value:
                self.clean(item)
        elif element.is_empty:
            return
        elif element.VR == "UI":
            if not self.profile.retain_uids and element.keyword not in _OF_CODES:
                _set(ds, element, _each(element.value, self._uid))
        elif element.VR in ("DA", "DT", "TM"):
            self._shift(ds, element)
        elif element.keyword == "TextValue":
            self._words(ds, element)
        elif element.VR == "PN":
            _set(ds, element, "")
        elif element.VR in _TEXT and element.keyword not in _EQUIPMENT:
            _set(ds, element, _each(element.value, lambda text: values.without(str(text), self.words).strip()))

    def _uid(self, original: Any) -> str:
        return str(original) if str(original).startswith(_REGISTERED) else str(self.secret.uid(str(original)))

    def _shift(self, ds: Dataset, element: DataElement) -> None:
        """Times of day stay where dates are shifted, for intervals depend on them."""
        if self.profile.dates == "remove":
            _set(ds, element, None)
        elif element.VR in ("DA", "DT"):
            _set(ds, element, values.shifted(element.value, self.subject.shift_days))
        elif isinstance(element.value, bytes):
            _set(ds, element, values.dummy(element))

    def _words(self, ds: Dataset, element: DataElement) -> None:
        """Words of the node itself without what they quote, others by the vocabulary; nothing left is a dummy."""

        def cleaned(text: Any) -> str:
            if self.ours:
                return values.without(ours.clean_words(str(text), self.profile), self.words).strip()
            return values.known_words(values.without(str(text), self.words))

        if element.VR in _TEXT:
            _set(ds, element, _each(element.value, lambda text: cleaned(text) or "REMOVED"))
        else:
            _set(ds, element, values.dummy(element))


def identifying(ds: Dataset, profile: DeidentifyConfig) -> frozenset[str]:
    """Every name, identifier, date and UID that stands anywhere in the data set, to be found in no text of the copy."""
    return frozenset(each.strip() for each in _identifying(ds, profile) if each.strip())


def _identifying(ds: Dataset, profile: DeidentifyConfig) -> Iterator[str]:
    for element in ds.iterall():
        if element.tag.is_private or element.is_empty:
            continue
        for value in element.value if isinstance(element.value, MultiValue) else [element.value]:
            if element.VR == "PN":
                yield from _parts_of_name(str(value))
            elif element.keyword in _IDENTIFIERS and len(str(value)) >= _SHORTEST:
                yield str(value)
            elif element.VR == "DA" and len(str(value)) == 8:
                text = str(value)
                yield from (text, f"{text[:4]}-{text[4:6]}-{text[6:]}", f"{text[6:]}.{text[4:6]}.{text[:4]}")
            elif element.VR == "UI" and not profile.retain_uids and not str(value).startswith(_REGISTERED):
                yield str(value)


def _parts_of_name(name: str) -> Iterator[str]:
    for part in name.replace("^", " ").replace("=", " ").replace(",", " ").split():
        if len(part) >= _SHORTEST_OF_NAMES and not values.known_words(part):
            yield part


def _must_stand(ds: Dataset, element: DataElement) -> bool:
    """Of type 2 in documents (PS3.3 C.17.1), where no IOD of images knows an empty one."""
    return element.keyword == "ReferencedPerformedProcedureStepSequence" and "ValueType" in ds


def _drawn(tag: BaseTag) -> bool:
    """Overlays and curves, with all that describes them (PS3.5 7.6)."""
    return tag.group & 0xFF00 in (0x5000, 0x6000)


def _blank(item: Dataset) -> None:
    for element in item:
        if element.VR == "SQ":
            for inner in element.value:
                _blank(inner)
        elif element.VR != "UI" and not element.is_empty:
            _set(item, element, values.dummy(element))


def _each(value: Any, change: Any) -> Any:
    return [change(each) for each in value] if isinstance(value, MultiValue | list) else change(value)


def _set(ds: Dataset, element: DataElement, value: Any) -> None:
    """Without a look at whether it is valid: pydicom's warnings would quote values."""
    if element.VR == "SQ":
        value = Sequence(value or [])
    ds[element.tag] = DataElement(element.tag, element.VR, value, validation_mode=IGNORE)
