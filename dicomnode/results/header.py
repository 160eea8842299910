"""Common modules of every result: patient, study, series, equipment, derivation, and the marks of synthetic data."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    KeyObjectSelectionDocumentStorage,
    RawDataStorage,
)

from dicomnode import uids
from dicomnode.datasets import laterality, part10
from dicomnode.datasets.validity import has_known_character_set
from dicomnode.results.inherited import TYPE_2, Inherited, inherit
from dicomnode.results.provenance import Provenance, record
from dicomnode.results.wording import cut_words
from pipelines.contract import Measurement

if TYPE_CHECKING:
    from dicomnode.config.results import ResultsConfig

__all__ = [
    "DOCUMENTS",
    "MANUFACTURER",
    "SYNTHESIZING_EQUIPMENT",
    "Context",
    "Series",
    "add_common_modules",
    "code_item",
    "document_arguments",
    "instance_arguments",
    "reference_sources",
    "source_item",
    "without_patient_names",
]

MANUFACTURER = "dicomnode"
SYNTHESIZING_EQUIPMENT = ("109100", "DCM", "Synthesizing Equipment")
_SOURCE_IMAGE = ("121322", "DCM", "Source image for image processing operation")
_SOURCE_RAW_DATA = ("128226", "DCM", "Source raw data")  # PS3.16 CID 7013
_LONGEST = {"LO": 64, "ST": 1024}  # PS3.5 6.2

DOCUMENTS = frozenset({Comprehensive3DSRStorage, KeyObjectSelectionDocumentStorage, EncapsulatedPDFStorage})
"""Trees of words and numbers, or pages of them: neither pixels nor a place in the patient."""
_OF_A_DOCUMENT = ("series_instance_uid", "series_number", "sop_instance_uid", "instance_number", "manufacturer")
_OF_THE_BODY = ("BodyPartExamined", "Laterality", "ImageLaterality")
_OF_THE_PLACE = (*_OF_THE_BODY, "PatientPosition", "PositionReferenceIndicator")
_IDENTIFYING_GROUPS = frozenset({0x0010, 0x0012, 0x0032, 0x0038, 0x0040})
"""Patient, trial, order, visit and procedure."""


@dataclass(frozen=True)
class Context:
    """The data that the results of one job share.

    ``sources``: headers of the input instances of one study, to which the results belong; ``priors``: headers of
    earlier examinations of the same patient, for comparison.
    """

    sources: Sequence[Dataset]
    provenance: Provenance
    measurements: Sequence[Measurement]
    config: ResultsConfig
    now: datetime
    priors: Sequence[Dataset] = ()

    def __post_init__(self) -> None:
        _ = self.inherited  # raises InputRefused

    @cached_property
    def inherited(self) -> Inherited:
        """The attributes that all results take over from the sources."""
        return inherit(self.sources, self.priors)

    @property
    def moment(self) -> datetime:
        """``now`` in the time zone of the times that are taken over."""
        return self.inherited.moment(self.now)

    @property
    def inputs(self) -> list[Dataset]:
        """All instances that the results derive from."""
        return [*self.sources, *self.priors]

    def uid(self, *parts: str) -> UID:
        """Derive a UID from inputs, model with its version, parameters and ``parts``, so that a retry makes the same.

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
        """The frame of reference of the series whose grid the results lie on; an own one unless it states one."""
        if value := self.inherited.of_images.get("FrameOfReferenceUID"):
            return UID(value)
        inputs = sorted(str(source.SOPInstanceUID) for source in self.sources)
        return uids.derive("frame of reference", *inputs, prefix=self.config.uid_prefix)

    @property
    def modality(self) -> str:
        """The modality of the series whose grid the results lie on."""
        return str(self.inherited.of_images.get("Modality") or "OT")


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


def code_item(value: str, scheme: str, meaning: str) -> Dataset:
    """Return an item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def source_item(source: Dataset) -> Dataset:
    """Return an item that names an instance and its part in the derivation."""
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    raw = source.SOPClassUID == RawDataStorage
    item.PurposeOfReferenceCodeSequence = [code_item(*(_SOURCE_RAW_DATA if raw else _SOURCE_IMAGE))]
    return item


def instance_arguments(context: Context, name: str, number: int) -> dict[str, Any]:
    """Return highdicom's arguments for an instance; ``add_common_modules`` replaces the equipment."""
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


def document_arguments(context: Context, name: str, number: int) -> dict[str, Any]:
    """Return the arguments for a document, which has no equipment of its own module."""
    return {key: value for key, value in instance_arguments(context, name, number).items() if key in _OF_A_DOCUMENT}


def without_patient_names(images: Sequence[Dataset], context: Context) -> list[Dataset]:
    """Return the headers without patient and study, for highdicom: it copies these, fails where a type 2 attribute is
    absent, quotes odd names in warnings, checks character sets, and needs a frame of reference. ``add_common_modules``
    adds what is left out here.
    """
    frame_of_reference_uid = context.frame_of_reference_uid
    return [_without_patient_name(image, frame_of_reference_uid) for image in images]


def _without_patient_name(image: Dataset, frame_of_reference_uid: UID) -> Dataset:
    header = Dataset()
    for tag in image.keys():  # noqa: SIM118 a data set's iterator decodes values
        if tag.group not in _IDENTIFYING_GROUPS:
            header[tag] = image.get_item(tag)
    header.add_new("SpecificCharacterSet", "CS", "ISO_IR 192")  # a new element: the old one belongs to the image
    for keyword in TYPE_2:
        header.add_new(keyword, dictionary_VR(keyword), "")
    header.add_new("FrameOfReferenceUID", "UI", frame_of_reference_uid)
    header.add_new("SliceThickness", "DS", "1")  # of type 2; ``planes.measure`` writes that of the finding
    return header


def add_common_modules(ds: Dataset, context: Context, series: Series) -> None:
    """Add patient, study, series, equipment, marks and derivation to a data set with pixels and geometry.

    Attributes that stood there before are replaced.
    """
    texts = (series.description, series.explanation, context.provenance.trained_on, *_texts(ds))
    ds.SpecificCharacterSet = _character_set(context.sources, texts)
    _add_patient_study_series(ds, context, series)
    _add_general_equipment(ds, context)
    _mark_synthetic(ds, context)
    if not _is_document(ds):
        _add_place(ds, context, series)
        laterality.set_laterality(ds)
        _add_derivation(ds, context, series)
    record(ds, context.provenance, context.measurements, comments=not _is_document(ds))
    if ds.SpecificCharacterSet is None:
        del ds.SpecificCharacterSet
    part10.add_file_meta(ds)


def _is_document(ds: Dataset) -> bool:
    return ds.SOPClassUID in DOCUMENTS


def _texts(ds: Dataset) -> list[str]:
    """Return the texts of a document's tree, and its title."""
    if not _is_document(ds):
        return []
    words = ("TextValue", "CodeMeaning", "DocumentTitle", "PersonName")
    return [str(element.value) for element in ds.iterall() if element.keyword in words]


def _add_patient_study_series(ds: Dataset, context: Context, series: Series) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they would quote the patient's values
        ds.update(deepcopy(context.inherited.common))
    ds.SeriesInstanceUID = context.uid("series", series.name)
    ds.SOPInstanceUID = context.uid("instance", series.name)
    ds.SeriesNumber = series.number
    ds.InstanceNumber = 1
    ds.SeriesDescription = cut_words(_clean(f"SYN {series.description}", "LO"))
    date, time = context.moment.strftime("%Y%m%d"), context.moment.strftime("%H%M%S")
    ds.SeriesDate = ds.ContentDate = ds.InstanceCreationDate = date
    ds.SeriesTime = ds.ContentTime = ds.InstanceCreationTime = time
    if uid := context.provenance.workitem_uid:
        step = Dataset()
        step.ReferencedSOPClassUID, step.ReferencedSOPInstanceUID = uids.UNIFIED_PROCEDURE_STEP, uid
        ds.ReferencedPerformedProcedureStepSequence = [step]  # PS3.3 C.7.3.1


def _add_place(ds: Dataset, context: Context, series: Series) -> None:
    """Add body part and place in the patient; a page of a report has no place."""
    of_images = context.inherited.of_images
    lies = "ImageOrientationPatient" in ds or "SharedFunctionalGroupsSequence" in ds
    for keyword in _OF_THE_PLACE if lies else _OF_THE_BODY:
        if keyword in of_images:
            ds[keyword] = deepcopy(of_images[keyword])
    if lies:
        ds.FrameOfReferenceUID = context.frame_of_reference_uid
        ds.setdefault("PositionReferenceIndicator", DataElement("PositionReferenceIndicator", "LO", ""))
        _set_dimension_uid(ds, context.uid("dimensions", series.name))
    if "LossyImageCompression" in ds:
        ds.update(deepcopy(context.inherited.lossy))


def _set_dimension_uid(ds: Dataset, uid: UID) -> None:
    """Replace highdicom's random UID of the dimension organization, so that a retry makes the same object."""
    for item in (*ds.get("DimensionOrganizationSequence", ()), *ds.get("DimensionIndexSequence", ())):
        item.DimensionOrganizationUID = uid


def _add_general_equipment(ds: Dataset, context: Context) -> None:
    made_by = context.provenance
    ds.Manufacturer = MANUFACTURER
    ds.ManufacturerModelName = _cut(f"{MANUFACTURER} {made_by.pipeline}", "LO")
    ds.SoftwareVersions = [
        _cut(made_by.node_version, "LO"),
        _cut(f"{made_by.model_name} {made_by.model_version}", "LO"),
    ]
    ds.DeviceSerialNumber = _cut(made_by.node_serial, "LO")


def _mark_synthetic(ds: Dataset, context: Context) -> None:
    made_by = context.provenance
    ds.SyntheticData = "YES"
    ds.ContentQualification = "RESEARCH"
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [code_item(*SYNTHESIZING_EQUIPMENT)]
    equipment.Manufacturer = MANUFACTURER
    equipment.ManufacturerModelName = _cut(f"{made_by.model_name} {made_by.model_version}", "LO")
    equipment.SoftwareVersions = list(ds.SoftwareVersions)
    equipment.DeviceSerialNumber = ds.DeviceSerialNumber
    equipment.ContributionDateTime = context.moment.strftime("%Y%m%d%H%M%S%z")
    done = "Reported" if _is_document(ds) else "Pixels synthesised"
    equipment.ContributionDescription = _cut(
        f"{done} by {made_by.pipeline} with model {made_by.model_name} {made_by.model_version}, weights "
        f"SHA-256 {made_by.model_digest}, seed {made_by.seed}, on {made_by.device}",
        "ST",
    )
    ds.ContributingEquipmentSequence = [equipment]


def _add_derivation(ds: Dataset, context: Context, series: Series) -> None:
    made_by = context.provenance
    ds.DerivationDescription = _cut(
        f"SYNTHETIC, for research use only: {series.explanation} Computed by {made_by.pipeline} with the model "
        f"{made_by.model_name} {made_by.model_version}; not measured by the scanner.",
        "ST",
    )
    ds.DerivationCodeSequence = [code_item(*series.derivation)]
    reference_sources(ds, (*context.inputs, *series.derived_from))
    if other_studies := _studies_of(context.priors, str(ds.StudyInstanceUID)):
        ds.StudiesContainingOtherReferencedInstancesSequence = other_studies  # PS3.3 C.12.2


def reference_sources(ds: Dataset, sources: Sequence[Dataset]) -> None:
    """Add the source sequences, each source once; images and others in their own sequences."""
    unique = list({source.SOPInstanceUID: source for source in sources}.values())
    images = [source_item(source) for source in unique if source.SOPClassUID != RawDataStorage]
    others = [source_item(source) for source in unique if source.SOPClassUID == RawDataStorage]
    for keyword, items in (("SourceImageSequence", images), ("SourceInstanceSequence", others)):
        if items:
            setattr(ds, keyword, items)
        elif keyword in ds:
            delattr(ds, keyword)


def _studies_of(instances: Sequence[Dataset], study_uid: str) -> list[Dataset]:
    """Return study, series and instance items of those that are of other studies."""
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
    """Return the character set of the inputs if it can hold the texts of the result, else UTF-8."""
    value = [source.get("SpecificCharacterSet") for source in sources]
    known = all(not each or has_known_character_set(source) for each, source in zip(value, sources, strict=True))
    same = all(other == value[0] for other in value)
    return value[0] if known and same and all(text.isascii() for text in texts) else "ISO_IR 192"


def _cut(text: str, vr: str) -> str:
    return _clean(text, vr)[: _LONGEST[vr]].rstrip()


def _clean(text: str, vr: str) -> str:
    words = " ".join(text.split()) if vr == "LO" else text
    return words.replace("\\", "/")
