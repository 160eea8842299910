"""What results take over of their sources' headers: one list for every kind of object, checked before anything is
computed.

What identifies patient and study has to be the same in all sources, else the job is refused by the attribute's name.
What breaks its rules, or differs where it may be left out, is left empty (type 2) or out (type 3) with a note.
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
"""True of the results only where every source states it."""
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
_TAKEN = (
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
    """Take over what the sources of one study say. Raises InputRefused."""
    if not sources:
        raise InputRefused("results: no input instance to derive from")
    _check_uids([*sources, *priors])
    _check_priors(sources, priors)
    taking = _Taking(sources)
    common = taking.of(_TAKEN)
    _complete_identity_removed(common, taking.notes)
    _complete_trial(common, taking.notes)
    for keyword in TYPE_2:
        if keyword not in common:
            setattr(common, keyword, "")
    first = [each for each in sources if each.SeriesInstanceUID == sources[0].SeriesInstanceUID]
    of_main = _Taking(first, taking.notes)
    if why := of_main.fault("SliceThickness"):
        taking.notes.append(f"{title('SliceThickness')} of the input {why}; it counts as not stated")
    of_images, lost = of_main.of(_OF_IMAGES), _lossy([*sources, *priors])
    return Inherited(common, of_images, lost, _zone(taking), tuple(dict.fromkeys(taking.notes)))


def _zone(taking: _Taking) -> Dataset:
    """That of any source; ``common`` has it only where all state it, for it would speak of the others' times."""
    found = Dataset()
    stated = [each for each in taking.sources if _states(each, "TimezoneOffsetFromUTC")]
    if stated and not taking.fault("TimezoneOffsetFromUTC"):
        found.TimezoneOffsetFromUTC = stated[0].TimezoneOffsetFromUTC
    return found


@dataclass(frozen=True)
class _Taking:
    sources: Sequence[Dataset]
    notes: list[str] = field(default_factory=list)

    def of(self, keywords: Iterable[str]) -> Dataset:
        found = Dataset()
        for keyword in keywords:
            if (element := self._one(keyword)) is not None:
                found[element.tag] = element
        return found

    def _one(self, keyword: str) -> DataElement | None:
        """The element that the sources agree in; None where there is none."""
        if why := self.fault(keyword):
            if keyword in _NEEDED:
                raise InputRefused(f"{title(keyword)} of the input {why}; a result without it could not be filed")
            self.notes.append(f"{title(keyword)} of the input {why}; it is left empty")
            return None
        stated = {_key(each[keyword]): each[keyword] for each in reversed(self.sources) if _states(each, keyword)}
        if len(stated) > 1:
            if keyword in _IDENTITY:
                raise InputRefused(f"the inputs of the job differ in {title(keyword)}; a result has one")
            self.notes.append(f"{title(keyword)} differs between the inputs; it is left empty")
            return None
        if keyword in _OF_ALL and not all(_states(each, keyword) for each in self.sources):
            return None
        return _copied(next(iter(stated.values()))) if stated else None

    def fault(self, keyword: str) -> str:
        seen = set()
        for source in self.sources:
            if not _states(source, keyword):
                continue
            element, declared = source[keyword], has_known_character_set(source)
            if (key := (element.VR, str(element.value), declared)) not in seen:
                seen.add(key)
                if why := find_fault(element, declared=declared):
                    return why
        return ""


def _states(source: Dataset, keyword: str) -> bool:
    return keyword in source and not source[keyword].is_empty


def _key(element: DataElement) -> str:
    """Equal for values that mean the same."""
    value = element.value
    if element.VR == "PN":
        groups = ["^".join(part.strip() for part in group.split("^")) for group in str(value).split("=")]
        return next((group.rstrip("^").casefold() for group in groups if group.strip("^ ")), "")
    if element.VR == "DS" and element.VM == 1:
        return repr(float(value))
    if element.VR == "TM":
        whole, _, fraction = str(value).strip().partition(".")
        return f"{whole.ljust(6, '0')}.{fraction.rstrip('0')}"
    return str(value).strip()


def _copied(element: DataElement) -> DataElement:
    """With the VR of the dictionary, whatever the sender wrote."""
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
    """PS3.3 C.7.1.1: YES goes with the method, in words or in codes."""
    method = [each for each in ("DeidentificationMethod", "DeidentificationMethodCodeSequence") if common.get(each)]
    if common.get("PatientIdentityRemoved") == "YES" and not method:
        del common.PatientIdentityRemoved
        notes.append(f"{title('PatientIdentityRemoved')} of the input goes without a method; it is left out")
    for keyword in method if common.get("PatientIdentityRemoved") != "YES" else ():
        delattr(common, keyword)


def _complete_trial(common: Dataset, notes: list[str]) -> None:
    """Both modules whole, or neither."""
    stated = [keyword for keyword in (*_SUBJECT, *_TIME_POINT) if keyword in common]
    if not stated:
        return
    needed = (
        "ClinicalTrialSponsorName",
        "ClinicalTrialProtocolID",
        _SUBJECT[5] if _SUBJECT[5] in common else _SUBJECT[6],
    )
    if lacking := [keyword for keyword in needed if keyword not in common]:
        for keyword in stated:
            delattr(common, keyword)
        notes.append(f"the Clinical Trial modules of the input lack {title(lacking[0])}; they are left out")
        return
    for keyword in ("ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName"):
        common.setdefault(keyword, DataElement(keyword, dictionary_VR(keyword), ""))
    if any(keyword in common for keyword in _TIME_POINT):
        common.setdefault("ClinicalTrialTimePointID", DataElement("ClinicalTrialTimePointID", "LO", ""))
    for keyword, of in ((_SUBJECT[8], _SUBJECT[7]), (_TIME_POINT[2], _TIME_POINT[3])):
        if keyword in common and of not in common:  # type 1C
            delattr(common, keyword)


def _lossy(sources: Sequence[Dataset]) -> Dataset:
    """Lossy Image Compression, and where it is 01 ratio and method of the source that lost most (PS3.3 C.7.6.1.1.5)."""
    found = Dataset()
    losing = [each for each in sources if lossy.is_lossy(each)]
    found.LossyImageCompression = "01" if losing else "00"
    ratios = ("LossyImageCompressionRatio", "LossyImageCompressionMethod")
    stated = [each for each in losing if all(_states(each, k) and not find_fault(each[k]) for k in ratios)]
    if stated:
        most = max(stated, key=lambda each: _largest(each, ratios[0]))
        for keyword in ratios:
            found[keyword] = _copied(most[keyword])
    elif methods := {lossy.compression_method(each) for each in losing} - {""}:
        found.LossyImageCompressionMethod = sorted(methods)
    return found


def _largest(ds: Dataset, keyword: str) -> float:
    value = ds[keyword].value
    return max(float(each) for each in ([value] if ds[keyword].VM == 1 else value))
