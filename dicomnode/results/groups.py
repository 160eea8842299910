"""Measurement groups of a report (PS3.16 TID 1501, and TID 1411 where the group is a segment of the job).

A group says what it is of, as IHE's AI Results asks: tracking identifier and UID, finding, finding site, algorithm;
where a segment of the job bears its name, those of the segment, a reference to it and a point by which to mark it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import highdicom as hd
import numpy as np
from highdicom.sr import RelationshipTypeValues
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicomnode.errors import InputRefused
from dicomnode.results import concepts
from dicomnode.results.concepts import evaluation, private, text, to_code
from dicomnode.results.header import Context
from pipelines.codes import ANATOMICAL_STRUCTURE
from pipelines.contract import Code, Finding, Measurement, Note, Segment, Segmentation
from pipelines.quality import Outcome, Verdict

__all__ = ["WHOLE", "JobObjects", "measurement_groups"]

WHOLE = "Whole result"
"""Tracking identifier of the group of measurements that belong to no region."""

_GATE = private("GATE", "Output gate")
_CONTRACT = private("CONTRACT", "Input contract of the model")
_OUTCOMES = {
    Outcome.ACCEPT: private("ACCEPT", "Accepted"),
    Outcome.HOLD: private("HOLD", "Held for a person's decision"),
    Outcome.REFUSE: private("REFUSE", "Refused"),
}
_KEPT, _DOUBTED = private("KEPT", "Kept"), private("DOUBTED", "Doubted")


@dataclass(frozen=True)
class JobObjects:
    """The result objects of the job that the report refers to, and the object of each segmentation."""

    objects: Sequence[Dataset] = ()
    masks: Sequence[tuple[Segmentation, Dataset]] = ()


def measurement_groups(
    findings: Sequence[Finding],
    written: JobObjects,
    context: Context,
    verdict: Verdict,
    doubts: Sequence[str],
    name: str,
) -> list[hd.sr.Template]:
    """Return the group of the whole result, then each group in the order in which the pipeline first names it."""
    by_name: dict[str, list[Measurement]] = {"": []}
    for finding in findings:
        if isinstance(finding, Measurement):
            by_name.setdefault(finding.group, []).append(finding)
    notes = [finding for finding in findings if isinstance(finding, Note)]
    overall = _overall_group(by_name.pop(""), notes, context, verdict, doubts, name)
    return [overall, *(_region(group, found, written, context) for group, found in by_name.items())]


def _overall_group(
    measurements: Sequence[Measurement],
    notes: Sequence[Note],
    context: Context,
    verdict: Verdict,
    doubts: Sequence[str],
    name: str,
) -> hd.sr.Template:
    """Return the group of the whole result, whose measurements keep finding sites of their own."""
    evaluations = [evaluation(_GATE, _OUTCOMES[verdict.outcome], verdict.reasons)]
    if verdict.outcome is not Outcome.REFUSE:
        evaluations.append(evaluation(_CONTRACT, _DOUBTED if doubts else _KEPT, doubts))
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(WHOLE, context.uid("tracking", name)),
        algorithm_id=_algorithm(context),
        **_items(measurements, evaluations),
    )
    for note in notes:
        group[0].ContentSequence.append(
            text(concepts.private_concept("N", note.name), note.text or "-", RelationshipTypeValues.CONTAINS)
        )
    return group


def _region(name: str, measurements: Sequence[Measurement], written: JobObjects, context: Context) -> hd.sr.Template:
    found = _segment(name, written)
    if found is not None:
        return _of_segment(*found, measurements, context)
    sites = _sites(measurements)
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(name, context.uid("tracking", "group", name)),
        finding_category=to_code(ANATOMICAL_STRUCTURE) if len(sites) == 1 else None,
        finding_type=to_code(sites[0]) if len(sites) == 1 else None,
        **_facts(sites, measurements, context),
    )


def _of_segment(
    segment: Segment, mask: Dataset, measurements: Sequence[Measurement], context: Context
) -> hd.sr.Template:
    """Return the group of a segment, with the tracking identifiers of the segment itself: one thing in two objects."""
    (item,) = [each for each in mask.SegmentSequence if each.SegmentNumber == segment.number]
    group = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(item.TrackingID, item.TrackingUID),
        referenced_segment=_referenced(segment, mask),
        finding_category=to_code(segment.category),
        finding_type=to_code(segment.type),
        **_facts([segment.site] if segment.site else _sites(measurements), measurements, context),
    )
    if segment.centre_mm is not None:
        group[0].ContentSequence.append(_point(segment.centre_mm, mask))
    return group


def _facts(sites: Sequence[Code], measurements: Sequence[Measurement], context: Context) -> dict[str, object]:
    """Return the arguments common to both templates; measurements do not repeat the site of their group."""
    return {
        "algorithm_id": _algorithm(context),
        "finding_sites": [concepts.finding_site(site) for site in sites],
        **_items([replace(m, site=None) for m in measurements], []),
    }


def _sites(measurements: Sequence[Measurement]) -> list[Code]:
    return list(dict.fromkeys(m.site for m in measurements if m.site))


def _items(
    measurements: Sequence[Measurement], evaluations: Sequence[hd.sr.QualitativeEvaluation]
) -> dict[str, list[hd.sr.Template]]:
    items = [concepts.measurement(m) for m in _distinguish(measurements)]
    numbers = [item for item in items if isinstance(item, hd.sr.Measurement)]
    others = [item for item in items if not isinstance(item, hd.sr.Measurement)]
    return {"measurements": numbers, "qualitative_evaluations": [*evaluations, *others]}


def _distinguish(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Return the measurements without a concept that several share: a reader of codes would take it for one quantity.

    Finding sites of their own do not distinguish them: some readers know only that of the group.
    """
    counts = Counter(_concept(m) for m in measurements)
    return [replace(m, quantity=None, derivation=None) if counts[_concept(m)] > 1 else m for m in measurements]


def _concept(m: Measurement) -> Hashable:
    return (m.quantity, m.derivation) if m.quantity else m.name


def _tracking(name: str, uid: str) -> hd.sr.TrackingIdentifier:
    return hd.sr.TrackingIdentifier(uid=uid, identifier=name)


def _algorithm(context: Context) -> hd.sr.AlgorithmIdentification:
    made_by = context.provenance
    return hd.sr.AlgorithmIdentification(
        name=f"{made_by.pipeline} {made_by.model_name}",
        version=made_by.model_version,
        family=codes.cid7162.ArtificialIntelligence,
    )


def _segment(name: str, written: JobObjects) -> tuple[Segment, Dataset] | None:
    """Return the segment that bears the group's name. Raises InputRefused where several do."""
    found = [
        (segment, mask)
        for finding, mask in written.masks
        for segment in finding.segments
        if segment.label.casefold() == name.casefold()
    ]
    if len(found) > 1:
        raise InputRefused(f"report: {len(found)} segments are called '{name}'; the measurements may be of any of them")
    return found[0] if found else None


def _referenced(segment: Segment, mask: Dataset) -> hd.sr.ReferencedSegment:
    (series,) = mask.ReferencedSeriesSequence
    return hd.sr.ReferencedSegment(
        sop_class_uid=mask.SOPClassUID,
        sop_instance_uid=mask.SOPInstanceUID,
        segment_number=segment.number,
        source_series=hd.sr.SourceSeriesForSegmentation(referenced_series_instance_uid=series.SeriesInstanceUID),
    )


def _point(place_mm: tuple[float, float, float], mask: Dataset) -> Dataset:
    """Return an extension of TID 1411: (111010, DCM, "Center") of CID 219. An Image Region would be a second region."""
    item: Dataset = hd.sr.Scoord3DContentItem(
        name=codes.DCM.Center,
        graphic_type=hd.sr.GraphicTypeValues3D.POINT,
        graphic_data=np.array([place_mm]),
        frame_of_reference_uid=mask.FrameOfReferenceUID,
        relationship_type=RelationshipTypeValues.CONTAINS,
    )
    return item
