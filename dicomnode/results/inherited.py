"""Attributes that results take over from their sources' headers: one list for every kind of object, checked before
anything is computed.

Attributes that identify patient and study must be the same in all sources, else the job is refused by the attribute's
name. Those that break their rules, or differ where they may be left out, are left empty (type 2) or out (type 3) with
a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dicomnode.datasets import lossy
from dicomnode.datasets.titles import title
from dicomnode.datasets.validity import find_fault, has_known_character_set
from dicomnode.datasets.zone import convert_to_zone_of
from dicomnode.errors import InputRefused

__all__ = ["TYPE_2", "Inherited", "inherit"]

_UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_IDENTITY = (
    "StudyInstanceUID", "PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "AccessionNumber", "TimezoneOffsetFromUTC",
)  # fmt: skip
"""Two values of these are two patients, two studies or two readings of every time: refused."""
_OF_PATIENT = ("PatientID", "IssuerOfPatientID")
_NEEDED = frozenset({"PatientID", "IssuerOfPatientID", "StudyInstanceUID"})
"""Broken, they are refused: a result without its patient's ID may be filed as somebody else's."""
_OF_ALL = frozenset({
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence", "TimezoneOffsetFromUTC",
    "LongitudinalTemporalInformationModified",
})  # fmt: skip
"""Attributes that results state only where every source states them."""
_SUBJECT = (
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID",
    "ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID",
    "ClinicalTrialProtocolEthicsCommitteeName", "ClinicalTrialProtocolEthicsCommitteeApprovalNumber",
)  # fmt: skip
_TIME_POINT = (
    "ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription", "LongitudinalTemporalOffsetFromEvent",
    "LongitudinalTemporalEventType", "ConsentForClinicalTrialUseSequence",
)  # fmt: skip
"""The Clinical Trial Subject and Study modules (PS3.3 C.7.1.3, C.7.2.3). That of the series is not a result's."""
_INHERITED = (
    *_IDENTITY, *sorted(_OF_ALL - {"TimezoneOffsetFromUTC"}),
    "StudyDate", "StudyTime", "StudyID", "StudyDescription", "ReferringPhysicianName",
    "IssuerOfAccessionNumberSequence", "PatientAge", "PatientSize", "PatientWeight", *_SUBJECT, *_TIME_POINT,
)  # fmt: skip
_OF_IMAGES = (
    "BodyPartExamined", "Laterality", "ImageLaterality", "PatientPosition", "PositionReferenceIndicator",
    "FrameOfReferenceUID", "Modality",
)  # fmt: skip
TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip


@dataclass(frozen=True)
class Inherited:
    """``common``: what every object says, ``of_images``: of the series whose grid the results lie on, ``lossy``: the
    compression that the sources went through, ``zone``: the offset of their times, if any states it; ``notes``: what
    was left out and why."""

    common: Dataset
    of_images: Dataset
    lossy: Dataset
    zone: Dataset
    notes: tuple[str, ...]

    def moment(self, now: datetime) -> datetime:
        """Return ``now`` in the time zone that the sources state; as it is where they state none."""
        return convert_to_zone_of(self.zone, now)


def inherit(sources: Sequence[Dataset], priors: Sequence[Dataset] = ()) -> Inherited:
    """Take over the attributes that the sources of one study agree in. Raises InputRefused."""
    if not sources:
        raise InputRefused("results: no input instance to derive from")
    _check_uids([*sources, *priors])
    _check_priors(sources, priors)
    agreement = _Agreement(sources)
    common = agreement.of(_INHERITED)
    _complete_identity_removed(common, agreement.notes)
    _complete_trial(common, agreement.notes)
    for keyword in TYPE_2:
        if keyword not in common:
            setattr(common, keyword, "")
    first = [each for each in sources if each.SeriesInstanceUID == sources[0].SeriesInstanceUID]
    of_main = _Agreement(first, agreement.notes)
    if why := of_main.fault("SliceThickness"):
        agreement.notes.append(f"{title('SliceThickness')} of the input {why}; it counts as not stated")
    of_images, lost = of_main.of(_OF_IMAGES), _lossy([*sources, *priors])
    return Inherited(common, of_images, lost, _zone(agreement), tuple(dict.fromkeys(agreement.notes)))


def _zone(agreement: _Agreement) -> Dataset:
    """Return the time zone of any source; ``common`` has it only where all state it, as it concerns all times."""
    found = Dataset()
    present = [each for each in agreement.sources if _states(each, "TimezoneOffsetFromUTC")]
    if present and not agreement.fault("TimezoneOffsetFromUTC"):
        found.TimezoneOffsetFromUTC = present[0].TimezoneOffsetFromUTC
    return found


@dataclass(frozen=True)
class _Agreement:
    sources: Sequence[Dataset]
    notes: list[str] = field(default_factory=list)

    def of(self, keywords: Iterable[str]) -> Dataset:
        found = Dataset()
        for keyword in keywords:
            if (element := self._one(keyword)) is not None:
                found[element.tag] = element
        return found

    def _one(self, keyword: str) -> DataElement | None:
        """Return the element that the sources agree in; None where there is none."""
        if why := self.fault(keyword):
            if keyword in _NEEDED:
                raise InputRefused(f"{title(keyword)} of the input {why}; a result without it could not be filed")
            self.notes.append(f"{title(keyword)} of the input {why}; it is left empty")
            return None
        present = {_key(each[keyword]): each[keyword] for each in reversed(self.sources) if _states(each, keyword)}
        if len(present) > 1:
            if keyword in _IDENTITY:
                raise InputRefused(f"the inputs of the job differ in {title(keyword)}; a result has one")
            self.notes.append(f"{title(keyword)} differs between the inputs; it is left empty")
            return None
        if keyword in _OF_ALL and not all(_states(each, keyword) for each in self.sources):
            return None
        return _copy_element(next(iter(present.values()))) if present else None

    def fault(self, keyword: str) -> str:
        """Return the first fault of the attribute in any source, or ""."""
        checked = set()
        for source in self.sources:
            if not _states(source, keyword):
                continue
            element, declared = source[keyword], has_known_character_set(source)
            if (key := (element.VR, str(element.value), declared)) not in checked:
                checked.add(key)
                if why := find_fault(element, declared=declared):
                    return why
        return ""


def _states(source: Dataset, keyword: str) -> bool:
    return keyword in source and not source[keyword].is_empty


def _key(element: DataElement) -> str:
    """Return a key that is equal for values of one meaning."""
    value = element.value
    if element.VR == "PN":
        groups = ["^".join(part.strip() for part in group.split("^")) for group in str(value).split("=")]
        return next((group.rstrip("^").casefold() for group in groups if group.strip("^ ")), "")
    if element.VR == "DS" and element.VM == 1:
        return repr(float(value))
    if element.VR == "TM":
        clock, _, fraction = str(value).strip().partition(".")
        return f"{clock.ljust(6, '0')}.{fraction.rstrip('0')}"
    return str(value).strip()


def _copy_element(element: DataElement) -> DataElement:
    """Return a copy of the element with the VR of the dictionary, whatever the sender wrote."""
    vr = dictionary_VR(element.tag)
    value = deepcopy(element.value) if vr != "PN" and vr in ("SQ", element.VR) else str(element.value)
    return DataElement(element.tag, vr, value)


def _check_uids(instances: Sequence[Dataset]) -> None:
    for keyword, each in ((keyword, each) for each in instances for keyword in _UIDS):
        if not _states(each, keyword):
            raise InputRefused(f"an input states no {title(keyword)}; a result cannot refer to it")
        if why := find_fault(each[keyword]):
            raise InputRefused(f"{title(keyword)} of an input {why}; a result cannot refer to it")


def _check_priors(sources: Sequence[Dataset], priors: Sequence[Dataset]) -> None:
    for keyword in _OF_PATIENT if priors else ():
        if len({str(each.get(keyword) or "") for each in chain(sources, priors)}) > 1:
            raise InputRefused(f"the earlier examination differs in {title(keyword)}; it must be of the patient")


def _complete_identity_removed(common: Dataset, notes: list[str]) -> None:
    """Remove a YES without a method, in words or codes, and a method without YES (PS3.3 C.7.1.1)."""
    method = [each for each in ("DeidentificationMethod", "DeidentificationMethodCodeSequence") if common.get(each)]
    if common.get("PatientIdentityRemoved") == "YES" and not method:
        del common.PatientIdentityRemoved
        notes.append(f"{title('PatientIdentityRemoved')} of the input goes without a method; it is left out")
    for keyword in method if common.get("PatientIdentityRemoved") != "YES" else ():
        delattr(common, keyword)


def _complete_trial(common: Dataset, notes: list[str]) -> None:
    """Complete both Clinical Trial modules, or remove them."""
    present = [keyword for keyword in (*_SUBJECT, *_TIME_POINT) if keyword in common]
    if not present:
        return
    needed = (
        "ClinicalTrialSponsorName",
        "ClinicalTrialProtocolID",
        _SUBJECT[5] if _SUBJECT[5] in common else _SUBJECT[6],
    )
    if missing := [keyword for keyword in needed if keyword not in common]:
        for keyword in present:
            delattr(common, keyword)
        notes.append(f"the Clinical Trial modules of the input lack {title(missing[0])}; they are left out")
        return
    for keyword in ("ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName"):
        common.setdefault(keyword, DataElement(keyword, dictionary_VR(keyword), ""))
    if any(keyword in common for keyword in _TIME_POINT):
        common.setdefault("ClinicalTrialTimePointID", DataElement("ClinicalTrialTimePointID", "LO", ""))
    for keyword, of in ((_SUBJECT[8], _SUBJECT[7]), (_TIME_POINT[2], _TIME_POINT[3])):
        if keyword in common and of not in common:  # type 1C
            delattr(common, keyword)


def _lossy(sources: Sequence[Dataset]) -> Dataset:
    """Return Lossy Image Compression, and with 01 ratio and method of the source that lost most (PS3.3 C.7.6.1.1.5)."""
    found = Dataset()
    losing = [each for each in sources if lossy.is_lossy(each)]
    found.LossyImageCompression = "01" if losing else "00"
    ratios = ("LossyImageCompressionRatio", "LossyImageCompressionMethod")
    present = [each for each in losing if all(_states(each, k) and not find_fault(each[k]) for k in ratios)]
    if present:
        most = max(present, key=lambda each: _largest(each, ratios[0]))
        for keyword in ratios:
            found[keyword] = _copy_element(most[keyword])
    elif methods := {lossy.compression_method(each) for each in losing} - {""}:
        found.LossyImageCompressionMethod = sorted(methods)
    return found


def _largest(ds: Dataset, keyword: str) -> float:
    value = ds[keyword].value
    return max(float(each) for each in ([value] if ds[keyword].VM == 1 else value))
