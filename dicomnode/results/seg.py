"""Segmentation Storage (PS3.3 A.51) of a segmentation, BINARY or LABELMAP, on the grid of its result image."""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicomnode.errors import InputRefused
from dicomnode.results import concepts
from dicomnode.results.header import Context, Series, add_common_modules, instance_arguments, without_patient_names
from dicomnode.results.planes import arrange_frames, set_pixel_measures
from dicomnode.results.wording import cut_words
from pipelines import contract

__all__ = ["write"]

_SEGMENTATION = ("113076", "DCM", "Segmentation")
_COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
"""Colours of segments that name none, in turn; the colour-blind can distinguish them (Okabe and Ito, 2008)."""


def write(
    finding: contract.Segmentation, context: Context, number: int, images: Sequence[Dataset], variant: str = ""
) -> Dataset:
    """Return the labels as a Segmentation object on the grid of ``images``, results or sources.

    ``variant``: the form of these images, where they can have several. An empty mask is stored too, all its
    frames zero: it says that nothing was found, which no object would not.
    """
    known = {segment.number for segment in finding.segments}
    if unknown := sorted(set(np.unique(finding.labels).tolist()) - known - {0}):
        raise InputRefused(f"result '{finding.name}': labels {unknown} name no segment")
    labels = arrange_frames(finding.labels, finding.grid, images, finding.name)
    binary = context.config.segmentation_kind == "binary"
    name = f"{finding.name}{variant}" if binary else f"{finding.name}{variant}/labelmap"
    ds: Dataset = hd.seg.Segmentation(
        source_images=without_patient_names(images, context),
        pixel_array=labels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY if binary else hd.seg.SegmentationTypeValues.LABELMAP,
        segment_descriptions=[_segment(segment, context, finding.name) for segment in finding.segments],
        omit_empty_frames=bool(labels.any()),
        content_label="SEGMENTATION",
        content_creator_name="",
        content_description=cut_words(finding.description),
        **instance_arguments(context, name, number),
    )
    set_pixel_measures(ds, finding.grid, finding.slice_thickness_mm)
    empty = "" if labels.any() else " No voxel was found."
    add_common_modules(
        ds,
        context,
        Series(
            name,
            number,
            finding.description,
            f"{finding.description}.{empty}",
            _SEGMENTATION,
            derived_from=images,
        ),
    )
    return ds


def _segment(segment: contract.Segment, context: Context, name: str) -> hd.seg.SegmentDescription:
    made_by = context.provenance
    algorithm = hd.AlgorithmIdentificationSequence(
        name=f"{made_by.pipeline} {made_by.model_name}"[:64],
        version=made_by.model_version[:64],
        family=codes.cid7162.ArtificialIntelligence,
    )
    description = hd.seg.SegmentDescription(
        segment_number=segment.number,
        segment_label=segment.label[:64],
        segmented_property_category=concepts.to_code(segment.category),
        segmented_property_type=concepts.to_code(segment.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=context.uid("tracking", name, str(segment.number)),
        tracking_id=segment.label[:64],
        anatomic_regions=[concepts.to_code(segment.site)] if segment.site else None,
        display_color=hd.color.CIELabColor.from_rgb(*(segment.color or _COLORS[(segment.number - 1) % len(_COLORS)])),
    )
    _narrow(description.SegmentedPropertyTypeCodeSequence, "SegmentedPropertyTypeModifierCodeSequence", segment.type)
    if segment.site:
        _narrow(description.AnatomicRegionSequence, "AnatomicRegionModifierSequence", segment.site)
    if segment.description:
        description.SegmentDescription = segment.description[:1024]
    return description


def _narrow(sequence: Sequence[Dataset], keyword: str, code: contract.Code) -> None:
    """Put the modifiers of a code into its one item."""
    if code.modifiers:
        setattr(sequence[0], keyword, [concepts.code_item(each) for each in code.modifiers])
