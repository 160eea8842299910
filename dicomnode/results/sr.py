"""Comprehensive 3D SR (PS3.3 A.35.13) of measurements, notes and the gate's verdict, TID 1500 Measurement Report.

A group of measurements (TID 1501) speaks of the whole result: its numbers, its notes, the verdict of the output gate
and the doubts about the input. Each further group is a region or a lesion; where a segment of the job bears its
name, the group refers to that (TID 1411). The document is complete as the program sees it, preliminary, and not
verified.
"""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
from highdicom.sr import RelationshipTypeValues
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import RawDataStorage

from dicomnode import uids
from dicomnode.errors import InputRefused
from dicomnode.results import concepts
from dicomnode.results.concepts import private, text
from dicomnode.results.groups import JobObjects, measurement_groups
from dicomnode.results.header import MANUFACTURER, Context, Series, add_common_modules, document_arguments
from dicomnode.results.provenance import sentences
from pipelines.contract import Finding
from pipelines.quality import Outcome, Verdict

__all__ = ["device", "evidence", "write"]

_RESULT = private("RESULT", "Result of this job")
_EARLIER = private("EARLIER", "Earlier examination")
_PROCEDURES = {
    "MR": codes.cid100.MRIUnspecifiedBodyRegion,
    "PT": codes.cid100.PETUnspecifiedBodyRegion,
    "CT": codes.cid100.CTUnspecifiedBodyRegion,
    "NM": codes.cid100.NMUnspecifiedBodyRegion,
}
_ENGLISH = Code("en", "RFC5646", "English")


def write(
    findings: Sequence[Finding],
    written: JobObjects,
    context: Context,
    number: int,
    verdict: Verdict,
    doubts: Sequence[str] = (),
) -> Dataset:
    """Return the report on a job. ``doubts``: rules of the input contract that hold the result.

    Where the verdict is to refuse, it is the note that nothing was made. Another verdict makes another object: limits
    are the node's configuration, which no UID of the other results depends on.
    """
    refused = verdict.outcome is Outcome.REFUSE
    description = f"Not processed: {context.provenance.pipeline}" if refused else "Measurements"
    words = [f"Not processed: {reason}" for reason in verdict.reasons] if refused else []
    name = "\n".join(("report", verdict.outcome, *verdict.reasons, *doubts, context.config.rendition_key)).rstrip("\n")
    content = measurement_groups(findings, written, context, verdict, doubts, name)
    ds: Dataset = hd.sr.Comprehensive3DSR(
        evidence=[evidence(each) for each in (*context.inputs, *written.objects)],
        content=_report(content, written, context, words),
        is_complete=True,
        is_final=False,
        is_verified=False,
        **document_arguments(context, name, number),
    )
    ds.CodingSchemeIdentificationSequence = [concepts.SCHEME_IDENTIFICATION]
    add_common_modules(ds, context, Series(name, number, description, description))
    return ds


def evidence(instance: Dataset) -> Dataset:
    """Return the attributes of an instance that a reference needs; ``add_common_modules`` adds patient and study."""
    if not instance.get("SeriesInstanceUID"):
        raise InputRefused("report: an instance states no Series Instance UID and cannot be referred to")
    found = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        setattr(found, keyword, instance[keyword].value)
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
                    "StudyDate", "StudyTime"):  # fmt: skip
        setattr(found, keyword, "")
    return found


def _report(
    content_groups: Sequence[hd.sr.Template], written: JobObjects, context: Context, words: Sequence[str]
) -> hd.sr.MeasurementReport:
    """TID 1500, extended by the words that every viewer shall show first."""
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=device(context)),
        procedure_reported=_PROCEDURES.get(context.modality, codes.cid100.ImagingProcedure),
        imaging_measurements=content_groups,
        language_of_content_item_and_descendants=hd.sr.LanguageOfContentItemAndDescendants(
            hd.sr.CodedConcept(_ENGLISH.value, _ENGLISH.scheme_designator, _ENGLISH.meaning)
        ),
    )
    content = report[0].ContentSequence
    first = next(at for at, item in enumerate(content) if item.name == codes.DCM.ImagingMeasurements)
    lines = [*sentences(context.provenance)[:1], *words, *sentences(context.provenance)[1:]]
    items = [text(concepts.COMMENT, line, RelationshipTypeValues.CONTAINS) for line in lines]
    for at, item in enumerate([*items, *_library(written, context)]):
        content.insert(first + at, item)
    return report


def device(context: Context) -> hd.sr.ObserverContext:
    """Return TID 1002: the node with its model."""
    made_by = context.provenance
    attributes = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=uids.derive("device", MANUFACTURER, made_by.node_serial, prefix=context.config.uid_prefix),
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=f"{made_by.pipeline}, model {made_by.model_name} {made_by.model_version}",
        serial_number=made_by.node_serial,
    )
    return hd.sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=attributes)


def _library(written: JobObjects, context: Context) -> list[Dataset]:
    """Return TID 1600, the images read and made. Raw data are no images; they are in the evidence only.

    No library rather than an empty one (PS3.3 C.17.3.2.4).
    """
    library = _container(codes.DCM.ImageLibrary)
    read = [source for source in context.sources if source.SOPClassUID != RawDataStorage]
    for name, instances in ((codes.SCT.Source, read), (_EARLIER, context.priors), (_RESULT, written.objects)):
        if not instances:
            continue
        group = _container(codes.DCM.ImageLibraryGroup)
        group.ContentSequence.extend(_image(name, instance) for instance in instances)
        library.ContentSequence.append(group)
    return [library] if library.ContentSequence else []


def _container(name: Code) -> Dataset:
    item: Dataset = hd.sr.ContainerContentItem(name=name, relationship_type=RelationshipTypeValues.CONTAINS)
    item.ContentSequence = hd.sr.ContentSequence()
    return item


def _image(name: Code, instance: Dataset) -> Dataset:
    item: Dataset = hd.sr.ImageContentItem(
        name=name,
        referenced_sop_class_uid=instance.SOPClassUID,
        referenced_sop_instance_uid=instance.SOPInstanceUID,
        relationship_type=RelationshipTypeValues.CONTAINS,
    )
    return item
