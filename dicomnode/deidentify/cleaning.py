"""Cleaning of one data set, element by element and into every sequence, by Table E.1-1 and the profile's options.

Rules where the table is silent: private and unknown elements are removed, names become empty, dates are treated like
those of the table, unregistered UIDs are replaced, and text loses every identifier that another element of the same
data set holds.
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
from dicomnode.datasets.vrs import CHARACTER_SET_TEXT
from dicomnode.deidentify import own_results, private, table, values
from dicomnode.deidentify.secret import Secret, Subject
from dicomnode.deidentify.table import Action

__all__ = ["Cleaner", "collect_identifiers"]

_REGISTERED_ROOT = "1.2.840.10008."  # PS3.6 Annex A
_CODING_UIDS = frozenset({"CodingSchemeUID", "ContextGroupExtensionCreatorUID", "ContextUID", "MappingResourceUID"})
_IDENTIFIERS = frozenset({
    "PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "AdmissionID", "InstitutionName", "StationName",
    "InstitutionalDepartmentName", "DeviceSerialNumber", "RequestedProcedureID", "PerformedProcedureStepID",
    "ScheduledProcedureStepID", "PatientTelephoneNumbers", "PatientAddress",
})  # fmt: skip
_EQUIPMENT = frozenset({"Manufacturer", "ManufacturerModelName", "SoftwareVersions"})
_SHORTEST_IDENTIFIER, _SHORTEST_NAME_PART = 4, 3


@dataclass(frozen=True)
class Cleaner:
    """Cleaner for the instances of one subject. ``identifiers`` are removed from every text that stays."""

    profile: DeidentifyConfig
    secret: Secret
    subject: Subject
    identifiers: frozenset[str]
    is_own: bool = False

    def clean(self, ds: Dataset) -> None:
        """Clean a data set in place, private elements first: their values are judged before any other changes."""
        private.clean_private_elements(ds, safe=self.profile.private == "safe", is_own=self.is_own)
        for tag in list(ds.keys()):
            if tag.is_private:
                continue
            if tag.element == 0 or _is_overlay_or_curve(tag) or not dictionary_has_tag(tag):
                del ds[tag]
                continue
            element = ds[tag]
            row = table.find_row(tag)
            if row is None:
                self._clean_unlisted(ds, element)
            else:
                action = table.choose_action(row, self.profile, is_sequence=element.VR == "SQ")
                self._apply_action(
                    ds, element, self._choose_own_result_action(element, action) if self.is_own else action
                )

    def _choose_own_result_action(self, element: DataElement, action: Action) -> Action:
        """Return the action for an element of an own result: the marks of a result stay."""
        if element.keyword in own_results.KEPT_DESCRIPTORS or element.keyword == "DeviceSerialNumber":
            return Action.CLEAN
        return Action.DUMMY if element.keyword == "ContributionDateTime" and action is Action.REMOVE else action

    def _apply_action(self, ds: Dataset, element: DataElement, action: Action) -> None:
        if action is Action.REMOVE and not _is_required(ds, element):
            del ds[element.tag]
        elif action in (Action.REMOVE, Action.EMPTY):
            _set_value(ds, element, [] if element.VR == "SQ" else None)
        elif element.VR == "SQ":
            for item in element.value:
                self.clean(item)
                if action is Action.DUMMY:
                    _fill_with_dummies(item)
        elif not element.is_empty:
            self._replace_value(ds, element, action)

    def _replace_value(self, ds: Dataset, element: DataElement, action: Action) -> None:
        """Replace the value of an element that is no sequence."""
        if action in (Action.DUMMY, Action.UID):
            _set_value(
                ds,
                element,
                _map_values(element.value, self._replace_uid) if element.VR == "UI" else values.make_dummy(element),
            )
        elif action is Action.SHIFT:
            self._shift_dates(ds, element)
        elif action is Action.CLEAN:
            self._clean_text(ds, element)
        elif element.VR == "AS":
            _set_value(ds, element, _map_values(element.value, lambda age: values.cap_age(str(age))))

    def _clean_unlisted(self, ds: Dataset, element: DataElement) -> None:
        if element.VR == "SQ":
            for item in element.value:
                self.clean(item)
        elif element.is_empty:
            return
        elif element.VR == "UI":
            if not self.profile.retain_uids and element.keyword not in _CODING_UIDS:
                _set_value(ds, element, _map_values(element.value, self._replace_uid))
        elif element.VR in ("DA", "DT", "TM"):
            self._shift_dates(ds, element)
        elif element.keyword == "TextValue":
            self._clean_text(ds, element)
        elif element.VR == "PN":
            _set_value(ds, element, "")
        elif element.VR in CHARACTER_SET_TEXT and element.keyword not in _EQUIPMENT:
            _set_value(
                ds,
                element,
                _map_values(element.value, lambda text: values.remove_words(str(text), self.identifiers).strip()),
            )

    def _replace_uid(self, original: Any) -> str:
        return str(original) if str(original).startswith(_REGISTERED_ROOT) else str(self.secret.uid(str(original)))

    def _shift_dates(self, ds: Dataset, element: DataElement) -> None:
        """Shift or remove a date. Times of day stay where dates are shifted: intervals depend on them."""
        if self.profile.dates == "remove":
            _set_value(ds, element, None)
        elif element.VR in ("DA", "DT"):
            _set_value(ds, element, values.shift_date(element.value, self.subject.shift_days))
        elif isinstance(element.value, bytes):
            _set_value(ds, element, values.make_dummy(element))

    def _clean_text(self, ds: Dataset, element: DataElement) -> None:
        """Clean the node's own text of what it quotes, other text by the vocabulary; a dummy replaces an empty rest."""

        def clean(text: Any) -> str:
            if self.is_own:
                return values.remove_words(own_results.clean_text(str(text), self.profile), self.identifiers).strip()
            return values.keep_known_words(values.remove_words(str(text), self.identifiers))

        if element.VR in CHARACTER_SET_TEXT:
            _set_value(ds, element, _map_values(element.value, lambda text: clean(text) or "REMOVED"))
        else:
            _set_value(ds, element, values.make_dummy(element))


def collect_identifiers(ds: Dataset, profile: DeidentifyConfig) -> frozenset[str]:
    """Return every name, identifier, date and UID in the data set: no text of the copy may contain one."""
    return frozenset(each.strip() for each in _iterate_identifiers(ds, profile) if each.strip())


def _iterate_identifiers(ds: Dataset, profile: DeidentifyConfig) -> Iterator[str]:
    for element in ds.iterall():
        if element.tag.is_private or element.is_empty:
            continue
        for value in element.value if isinstance(element.value, MultiValue) else [element.value]:
            if element.VR == "PN":
                yield from _split_name(str(value))
            elif element.keyword in _IDENTIFIERS and len(str(value)) >= _SHORTEST_IDENTIFIER:
                yield str(value)
            elif element.VR == "DA" and len(str(value)) == 8:
                text = str(value)
                yield from (text, f"{text[:4]}-{text[4:6]}-{text[6:]}", f"{text[6:]}.{text[4:6]}.{text[:4]}")
            elif element.VR == "UI" and not profile.retain_uids and not str(value).startswith(_REGISTERED_ROOT):
                yield str(value)


def _split_name(name: str) -> Iterator[str]:
    for part in name.replace("^", " ").replace("=", " ").replace(",", " ").split():
        if len(part) >= _SHORTEST_NAME_PART and not values.keep_known_words(part):
            yield part


def _is_required(ds: Dataset, element: DataElement) -> bool:
    """Return whether the element must stay: type 2 in documents (PS3.3 C.17.1), not allowed empty in images."""
    return element.keyword == "ReferencedPerformedProcedureStepSequence" and "ValueType" in ds


def _is_overlay_or_curve(tag: BaseTag) -> bool:
    """Return whether the element belongs to an overlay or a curve (PS3.5 7.6)."""
    return tag.group & 0xFF00 in (0x5000, 0x6000)


def _fill_with_dummies(item: Dataset) -> None:
    for element in item:
        if element.VR == "SQ":
            for inner in element.value:
                _fill_with_dummies(inner)
        elif element.VR != "UI" and not element.is_empty:
            _set_value(item, element, values.make_dummy(element))


def _map_values(value: Any, change: Any) -> Any:
    return [change(each) for each in value] if isinstance(value, MultiValue | list) else change(value)


def _set_value(ds: Dataset, element: DataElement, value: Any) -> None:
    """Set a value without validation: pydicom's warnings would quote values."""
    if element.VR == "SQ":
        value = Sequence(value or [])
    ds[element.tag] = DataElement(element.tag, element.VR, value, validation_mode=IGNORE)
