"""What every result says besides its pixels: whose it is, where from, who made it, and that it is synthetic."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydicom.config import RAISE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    KeyObjectSelectionDocumentStorage,
    RawDataStorage,
    SegmentationStorage,
)
from pydicom.valuerep import validate_value

from dicomnode import uids
from dicomnode.datasets import part10
from dicomnode.errors import InputRefused
from dicomnode.results.provenance import Provenance, record
from pipelines.contract import Measurement

if TYPE_CHECKING:
    from dicomnode.results.preferences import ResultsConfig

__all__ = [
    "DOCUMENTS",
    "MANUFACTURER",
    "SYNTHESIZING_EQUIPMENT",
    "Context",
    "Series",
    "code",
    "complete",
    "document_of",
    "instance_of",
    "name_sources",
    "nameless",
    "reference",
]

MANUFACTURER = "dicomnode"
SYNTHESIZING_EQUIPMENT = ("109100", "DCM", "Synthesizing Equipment")
_SOURCE_IMAGE = ("121322", "DCM", "Source image for image processing operation")
_SOURCE_RAW_DATA = ("128226", "DCM", "Source raw data")  # PS3.16 CID 7013
_LONGEST = {"LO": 64, "ST": 1024}  # PS3.5 6.2

_KEPT = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize",
    "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod", "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID", "ClinicalTrialSubjectID",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
    "StudyDescription", "BodyPartExamined", "Laterality", "PatientPosition", "PositionReferenceIndicator",
    "TimezoneOffsetFromUTC",
)  # fmt: skip
DOCUMENTS = frozenset({Comprehensive3DSRStorage, KeyObjectSelectionDocumentStorage, EncapsulatedPDFStorage})
"""Trees of words and numbers, or pages of them: neither pixels nor a place in the patient."""
_OF_A_DOCUMENT = ("series_instance_uid", "series_number", "sop_instance_uid", "instance_number", "manufacturer")
_OF_IMAGES = ("BodyPartExamined", "Laterality", "PatientPosition", "PositionReferenceIndicator")
_TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip


@dataclass(frozen=True)
class Context:
    """What the results of one job share. ``sources``: headers of the input instances of one study, to which the results
    belong; ``priors``: those of earlier examinations of the same patient that they are compared with."""

    sources: Sequence[Dataset]
    provenance: Provenance
    measurements: Sequence[Measurement]
    config: ResultsConfig
    now: datetime
    priors: Sequence[Dataset] = ()

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputRefused("results: no input instance to derive from")
        for keyword in ("StudyInstanceUID", "PatientID"):
            if len({str(source.get(keyword, "")) for source in self.sources}) > 1:
                raise InputRefused(f"results: the inputs differ in {keyword}; a result belongs to one study")
        for keyword in ("PatientID", "IssuerOfPatientID"):
            if len({str(each.get(keyword) or "") for each in self.inputs}) > 1 and self.priors:
                raise InputRefused(f"results: the earlier examination differs in {keyword}; it must be of the patient")

    @property
    def inputs(self) -> list[Dataset]:
        """Everything that the results derive from."""
        return [*self.sources, *self.priors]

    def uid(self, *parts: str) -> UID:
        """From the inputs, the model with its version, the parameters and ``parts``: a retry makes the same.

        Versions may share their weights and differ in what is done with them; so may versions of this node.
        """
        made_by = self.provenance
        inputs = sorted(str(source.SOPInstanceUID) for source in self.inputs)
        return uids.derive(
            *parts,
            *inputs,
            made_by.model_digest,
            made_by.model_version,
            made_by.node_version,
            made_by.pipeline,
            made_by.canonical(),
            str(made_by.seed),
            prefix=self.config.uid_prefix,
        )

    @property
    def frame_of_reference_uid(self) -> UID:
        """That of the sources; one of the results' own when they state none or several."""
        stated = {str(source.get("FrameOfReferenceUID", "") or "") for source in self.sources} - {""}
        if len(stated) == 1:
            return UID(stated.pop())
        inputs = sorted(str(source.SOPInstanceUID) for source in self.sources)
        return uids.derive("frame of reference", *inputs, prefix=self.config.uid_prefix)

    @property
    def modality(self) -> str:
        modalities = {str(source.get("Modality", "OT")) for source in self.sources}
        return modalities.pop() if len(modalities) == 1 else "OT"


@dataclass(frozen=True)
class Series:
    """One result series: ``name`` tells it from others of the job, ``derivation`` is its Derivation Code, which a
    document has not."""

    name: str
    number: int
    description: str
    explanation: str
    derivation: tuple[str, str, str] = ("", "", "")
    derived_from: Sequence[Dataset] = ()


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def reference(source: Dataset) -> Dataset:
    """An item that names an instance and its part in the derivation."""
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    raw = source.SOPClassUID == RawDataStorage
    item.PurposeOfReferenceCodeSequence = [code(*(_SOURCE_RAW_DATA if raw else _SOURCE_IMAGE))]
    return item


def instance_of(context: Context, name: str, number: int) -> dict[str, Any]:
    """What highdicom's constructors want to know of an instance; ``complete`` replaces the equipment."""
    return {
        "series_instance_uid": context.uid("series", name),
        "series_number": number,
        "sop_instance_uid": context.uid("instance", name),
        "instance_number": 1,
        "manufacturer": "-",
        "manufacturer_model_name": "-",
        "software_versions": "-",
        "device_serial_number": "-",
    }


def document_of(context: Context, name: str, number: int) -> dict[str, Any]:
    """The same for a document, which has no equipment of its own module."""
    return {key: value for key, value in instance_of(context, name, number).items() if key in _OF_A_DOCUMENT}


def nameless(images: Sequence[Dataset], context: Context) -> list[Dataset]:
    """The headers as highdicom should see them: it quotes names that it finds odd in warnings, checks character sets,
    and wants a frame of reference. ``complete`` puts in what is left out here.
    """
    frame_of_reference_uid = context.frame_of_reference_uid
    return [_nameless(image, frame_of_reference_uid) for image in images]


def _nameless(image: Dataset, frame_of_reference_uid: UID) -> Dataset:
    header = Dataset()
    header.update(image)
    header.add_new("SpecificCharacterSet", "CS", "ISO_IR 192")  # a new element: the old one belongs to the image
    header.add_new("PatientName", "PN", "")
    header.add_new("ReferringPhysicianName", "PN", "")
    header.add_new("FrameOfReferenceUID", "UI", frame_of_reference_uid)
    return header


def complete(ds: Dataset, context: Context, series: Series) -> None:
    """Gives a data set that has its pixels and geometry everything else; what was there before is replaced."""
    texts = (series.description, series.explanation, context.provenance.trained_on, *_words(ds))
    ds.SpecificCharacterSet = _character_set(context.sources, texts)
    _identify(ds, context, series)
    _equip(ds, context)
    _mark(ds, context)
    if "ImageOrientationPatient" in ds or "SharedFunctionalGroupsSequence" in ds:
        ds.FrameOfReferenceUID = context.frame_of_reference_uid
        _organize(ds, context.uid("dimensions", series.name))
    if not _is_document(ds):
        _say_laterality(ds)
        _derive(ds, context, series)
    record(ds, context.provenance, context.measurements, comments=not _is_document(ds))
    if ds.SpecificCharacterSet is None:
        del ds.SpecificCharacterSet
    part10.describe(ds)


def _is_document(ds: Dataset) -> bool:
    return ds.SOPClassUID in DOCUMENTS


def _words(ds: Dataset) -> list[str]:
    """Those of a document's tree, and its title."""
    if not _is_document(ds):
        return []
    words = ("TextValue", "CodeMeaning", "DocumentTitle")
    return [str(element.value) for element in ds.iterall() if element.keyword in words]


def _identify(ds: Dataset, context: Context, series: Series) -> None:
    source = context.sources[0]
    left_out = _OF_IMAGES if _is_document(ds) else ()
    for keyword in (each for each in _KEPT if each not in left_out):
        if keyword in source and not _may_stand(source[keyword]):
            ds.pop(keyword, None)
        elif keyword in source:
            value = source[keyword].value
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they would quote the patient's values
                setattr(ds, keyword, str(value) if source[keyword].VR == "PN" else value)
    for keyword in _TYPE_2:
        if keyword not in ds and keyword not in left_out:
            setattr(ds, keyword, "")
    ds.SeriesInstanceUID = context.uid("series", series.name)
    ds.SOPInstanceUID = context.uid("instance", series.name)
    ds.SeriesNumber = series.number
    ds.InstanceNumber = 1
    ds.SeriesDescription = _cut(f"SYN {series.description}", "LO")
    date, time = context.now.strftime("%Y%m%d"), context.now.strftime("%H%M%S")
    ds.SeriesDate = ds.ContentDate = ds.InstanceCreationDate = date
    ds.SeriesTime = ds.ContentTime = ds.InstanceCreationTime = time


def _may_stand(element: DataElement) -> bool:
    """Not so an optional value of the source that breaks its VR; what identifies patient and study stands as it is."""
    if element.keyword in _TYPE_2 or element.VR in ("UI", "PN") or element.is_empty:
        return True
    values = element.value if element.VM > 1 else [element.value]
    try:
        for value in values:
            validate_value(element.VR, str(value), RAISE)
    except ValueError:
        return False
    return True


def _say_laterality(ds: Dataset) -> None:
    """PS3.3 C.7.3.1: type 2C, empty only where a paired body part cannot be ruled out; not in a segmentation."""
    if ds.get("Laterality"):
        return
    if "Laterality" in ds:
        del ds.Laterality
    if not ds.get("BodyPartExamined") and ds.SOPClassUID != SegmentationStorage:
        ds.Laterality = ""


def _organize(ds: Dataset, uid: UID) -> None:
    """highdicom draws the UID of the dimension organization at random; a retry shall make the same."""
    for item in (*ds.get("DimensionOrganizationSequence", ()), *ds.get("DimensionIndexSequence", ())):
        item.DimensionOrganizationUID = uid


def _equip(ds: Dataset, context: Context) -> None:
    made_by = context.provenance
    ds.Manufacturer = MANUFACTURER
    ds.ManufacturerModelName = _cut(f"{MANUFACTURER} {made_by.pipeline}", "LO")
    ds.SoftwareVersions = [
        _cut(made_by.node_version, "LO"),
        _cut(f"{made_by.model_name} {made_by.model_version}", "LO"),
    ]
    ds.DeviceSerialNumber = _cut(made_by.node_serial, "LO")


def _mark(ds: Dataset, context: Context) -> None:
    made_by = context.provenance
    ds.SyntheticData = "YES"
    ds.ContentQualification = "RESEARCH"
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [code(*SYNTHESIZING_EQUIPMENT)]
    equipment.Manufacturer = MANUFACTURER
    equipment.ManufacturerModelName = _cut(f"{made_by.model_name} {made_by.model_version}", "LO")
    equipment.SoftwareVersions = list(ds.SoftwareVersions)
    equipment.DeviceSerialNumber = ds.DeviceSerialNumber
    equipment.ContributionDateTime = context.now.strftime("%Y%m%d%H%M%S%z")
    done = "Reported" if _is_document(ds) else "Pixels synthesised"
    equipment.ContributionDescription = _cut(
        f"{done} by {made_by.pipeline} with model {made_by.model_name} {made_by.model_version}, weights "
        f"SHA-256 {made_by.model_digest}, seed {made_by.seed}, on {made_by.device}",
        "ST",
    )
    ds.ContributingEquipmentSequence = [equipment]


def _derive(ds: Dataset, context: Context, series: Series) -> None:
    made_by = context.provenance
    ds.DerivationDescription = _cut(
        f"SYNTHETIC, for research use only: {series.explanation} Computed by {made_by.pipeline} with the model "
        f"{made_by.model_name} {made_by.model_version}; not measured by the scanner.",
        "ST",
    )
    ds.DerivationCodeSequence = [code(*series.derivation)]
    name_sources(ds, (*context.inputs, *series.derived_from))
    if other_studies := _studies_of(context.priors, str(ds.StudyInstanceUID)):
        ds.StudiesContainingOtherReferencedInstancesSequence = other_studies  # PS3.3 C.12.2


def name_sources(ds: Dataset, sources: Sequence[Dataset]) -> None:
    """Each once, images and others in their own sequences."""
    named = list({source.SOPInstanceUID: source for source in sources}.values())
    images = [reference(source) for source in named if source.SOPClassUID != RawDataStorage]
    others = [reference(source) for source in named if source.SOPClassUID == RawDataStorage]
    for keyword, items in (("SourceImageSequence", images), ("SourceInstanceSequence", others)):
        if items:
            setattr(ds, keyword, items)
        elif keyword in ds:
            delattr(ds, keyword)


def _studies_of(instances: Sequence[Dataset], study_uid: str) -> list[Dataset]:
    """Study, series and instance items of those that are of other studies."""
    studies: dict[str, dict[str, list[Dataset]]] = {}
    for each in instances:
        if each.StudyInstanceUID != study_uid:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = each.SOPClassUID, each.SOPInstanceUID
            series = studies.setdefault(str(each.StudyInstanceUID), {})
            series.setdefault(str(each.SeriesInstanceUID), []).append(item)
    return [_study_item(uid, series) for uid, series in studies.items()]


def _study_item(study_uid: str, instances: Mapping[str, list[Dataset]]) -> Dataset:
    study = Dataset()
    study.StudyInstanceUID = study_uid
    study.ReferencedSeriesSequence = []
    for uid, items in instances.items():
        series = Dataset()
        series.SeriesInstanceUID, series.ReferencedInstanceSequence = uid, items
        study.ReferencedSeriesSequence.append(series)
    return study


def _character_set(sources: Sequence[Dataset], texts: Sequence[str]) -> Any:
    """That of the inputs, as long as it can hold the words of the result."""
    stated = [source.get("SpecificCharacterSet") for source in sources]
    same = all(other == stated[0] for other in stated)
    return stated[0] if same and all(text.isascii() for text in texts) else "ISO_IR 192"


def _cut(text: str, vr: str) -> str:
    return text.replace("\\", "/")[: _LONGEST[vr]].rstrip()
