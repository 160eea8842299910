"""A report and the segmentation of one job agree, read back from their bytes."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as Concept

from dicomnode import results
from dicomnode.config.results import ResultsConfig
from dicomnode.datasets import objects
from dicomnode.errors import InputRefused
from dicomnode.results import concepts, marking
from pipelines.codes import MAXIMUM, MEAN, PEAK, SUV_BW, SUV_BW_UNIT, VOLUME
from pipelines.contract import Code, Finding, Measurement, Segment, Segmentation
from pipelines.laterality import LEFT, RIGHT
from pipelines.lesions import LESION_OF_BRAIN, MORPHOLOGY, PLACES
from pipelines.quality import Outcome, Verdict
from pipelines.uptake import Scale
from tests.dciodvfy import find_errors
from tests.findings import NOW, PROVENANCE, grid, make_findings, save, source
from tests.identifying import make_deidentifier

WHERE = grid("axial")
VOXEL_MM3 = float(np.prod(WHERE.spacing_mm))
LIVER = Code("10200004", "SCT", "Liver")
HELD = Verdict(Outcome.HOLD, ("x is 3",))


def _code_site(place: int, side: Code) -> Code:
    site = PLACES[place].site
    return Code(site.value, site.scheme, site.meaning, (*site.modifiers, side))


def _make_lesions() -> list[Finding]:
    """Return two lesions of 16 and 6 voxels, each a segment with its measurements."""
    labels = np.zeros(WHERE.shape, np.uint8)
    labels[1, 5:9, 5:9], labels[2, 20:22, 30:33] = 1, 2
    segments: list[Segment] = []
    numbers: list[Finding] = []
    for n, site in ((1, _code_site(1, LEFT)), (2, _code_site(3, RIGHT))):
        k, j, i = (int(each[0]) for each in np.nonzero(labels == n))
        x, y, z = (WHERE.affine_mm @ [i, j, k, 1])[:3]
        segments.append(Segment(n, f"Lesion {n}", MORPHOLOGY, LESION_OF_BRAIN, "", None, site, (x, y, z)))
        mm3 = float((labels == n).sum()) * VOXEL_MM3
        numbers.append(Measurement("volume", mm3, "mm3", group=f"lesion {n}", site=site, quantity=VOLUME))
    return [Segmentation("lesions", labels, WHERE, tuple(segments), "Lesions", 3.0), *numbers]


@cache
def write_lesion_objects(kind: str) -> tuple[Dataset, Dataset]:
    """Return the segmentation of the lesions and the report, read back."""
    config = ResultsConfig.model_validate({"segmentation_kind": kind})
    made = results.write([*make_findings(WHERE).findings, *_make_lesions()], [source("mr")], PROVENANCE, config, NOW)
    for ds in made:
        marking.check_marks(ds)
    mask, report = made[-2], made[-1]
    return dcmread(BytesIO(objects.encode(mask))), dcmread(BytesIO(objects.encode(report)))


def _read_groups(report: Dataset) -> list[hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations]:
    read = hd.sr.Comprehensive3DSR.from_dataset(report).content
    return [g for g in read.get_volumetric_roi_measurement_groups() if g.tracking_identifier.startswith("Lesion")]


def _read_concept(code: Code) -> Concept:
    return Concept(code.value, code.scheme, code.meaning)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_a_structure_has_one_tracking_uid_and_one_set_of_codes(kind: str) -> None:
    mask, report = write_lesion_objects(kind)
    segments = {item.SegmentNumber: item for item in mask.SegmentSequence}
    groups = _read_groups(report)
    assert len(groups) == 2
    for group in groups:
        (reference,) = group.referenced_segment[0].ReferencedSOPSequence
        item = segments[reference.ReferencedSegmentNumber]
        assert (group.tracking_identifier, group.tracking_uid) == (item.TrackingID, item.TrackingUID)
        assert group.finding_type == hd.sr.CodedConcept.from_dataset(item.SegmentedPropertyTypeCodeSequence[0])
        assert group.finding_category == hd.sr.CodedConcept.from_dataset(item.SegmentedPropertyCategoryCodeSequence[0])
        (site,) = group.finding_sites
        (region,) = item.AnatomicRegionSequence
        assert site.value == hd.sr.CodedConcept.from_dataset(region)
        modifiers = [hd.sr.CodedConcept.from_dataset(each) for each in region.AnatomicRegionModifierSequence]
        assert set(modifiers) == {site.laterality, site.topographical_modifier}
    assert len({item.TrackingUID for item in mask.SegmentSequence if item.SegmentNumber}) == 2


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_references_lead_from_the_report_to_the_segmentation_and_its_series(kind: str) -> None:
    mask, report = write_lesion_objects(kind)
    for group in _read_groups(report):
        (reference,) = group.referenced_segment[0].ReferencedSOPSequence
        assert reference.ReferencedSOPClassUID == mask.SOPClassUID
        assert reference.ReferencedSOPInstanceUID == mask.SOPInstanceUID
        (series,) = [item.UID for item in group.referenced_segment if item.ValueType == "UIDREF"]
        assert [series] == [each.SeriesInstanceUID for each in mask.ReferencedSeriesSequence]
    evidence = {uid for _, _, uid, _ in hd.sr.Comprehensive3DSR.from_dataset(report).get_evidence()}
    assert mask.SOPInstanceUID in evidence


def test_volumes_and_points_of_the_report_are_those_of_the_segments() -> None:
    mask, report = write_lesion_objects("binary")
    volume = hd.seg.Segmentation.from_dataset(mask).get_volume(combine_segments=True, allow_missing_positions=True)
    labels = np.asarray(volume.array)
    for group in _read_groups(report):
        (number,) = [item.ReferencedSOPSequence[0].ReferencedSegmentNumber for item in group.referenced_segment
                     if item.ValueType == "IMAGE"]  # fmt: skip
        (measured,) = group.get_measurements(name=_read_concept(VOLUME))
        assert measured.value == pytest.approx((labels == number).sum() * volume.voxel_volume, rel=1e-6)
        (point,) = [item for item in group[0].ContentSequence if item.ValueType == "SCOORD3D"]
        assert point.ReferencedFrameOfReferenceUID == mask.FrameOfReferenceUID
        assert (point.GraphicType, point.ConceptNameCodeSequence[0].CodeMeaning) == ("POINT", "Center")
        index = np.rint(volume.map_reference_to_indices(np.array([point.GraphicData], float)))[0].astype(int)
        assert labels[tuple(index)] == number


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_no_dciodvfy_finds_an_error_but_the_one_of_label_maps(kind: str, tmp_path: Path) -> None:
    """dciodvfy does not count Label Map Segmentation among the classes with a Referenced Segment Number."""
    for n, ds in enumerate(write_lesion_objects(kind)):
        errors = find_errors(ds, tmp_path / f"{n}.dcm")
        if kind == "labelmap":
            errors = [e for e in errors if "ReferencedSegmentNumber" not in e and not e.startswith("/usr/bin")]
        assert errors == []


def test_a_segmentation_has_an_empty_creator_s_name_and_says_what_its_segments_are() -> None:
    mask, _ = write_lesion_objects("binary")
    assert mask["ContentCreatorName"].is_empty
    assert [item.SegmentLabel for item in mask.SegmentSequence] == ["Lesion 1", "Lesion 2"]


@pytest.mark.slow
def test_a_region_of_the_cortex_is_cortex_in_both(tmp_path: Path) -> None:
    frontal = Code("40146001", "SCT", "Cerebral cortex", (Code("83251001", "SCT", "Frontal lobe"),))
    anatomy = Code("91723000", "SCT", "Anatomical Structure")
    labels = np.ones(WHERE.shape, np.uint8)
    mask = Segmentation("a", labels, WHERE, (Segment(1, "Frontal cortex", anatomy, frontal),), "Structures", 3.0)
    number = Measurement("volume", 1.0, "ml", group="Frontal cortex", site=frontal, quantity=VOLUME)
    *_, seg, report = results.write(
        [*make_findings(WHERE).findings, mask, number], [source("mr")], PROVENANCE, ResultsConfig(), NOW
    )
    (item,) = seg.SegmentSequence
    assert item.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Cerebral cortex"
    (modifier,) = item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
    assert modifier.CodeMeaning == "Frontal lobe"
    groups = hd.sr.Comprehensive3DSR.from_dataset(report).content.get_volumetric_roi_measurement_groups()
    (site,) = groups[-1].finding_sites
    assert (site.value.meaning, site.topographical_modifier.meaning) == ("Cerebral cortex", "Frontal lobe")
    for n, ds in enumerate((seg, report)):
        assert find_errors(ds, tmp_path / f"{n}.dcm") == []


def test_suv_of_a_region_has_one_mean_one_maximum_and_one_peak_in_codes() -> None:
    """The numbers of the input have private codes, so that a reader of codes does not mistake them for the result's."""
    from pipelines.uptake import Region, compare_uptake

    before = np.full((4, 4, 4), 2.0, np.float32)
    region = Region("liver", np.ones((4, 4, 4), bool), LIVER)
    numbers = compare_uptake(before, before + 1, (before, before + 1), [region], Scale.suv(0.5))
    (ds,) = results.write(numbers, [source("mr")], PROVENANCE, ResultsConfig(), NOW)
    read = hd.sr.Comprehensive3DSR.from_dataset(ds).content
    group = read.get_image_measurement_groups()[1]
    assert (group.finding_type.meaning, group.finding_sites[0].value.meaning) == ("Liver", "Liver")
    standard = [m for m in group.get_measurements() if m.name == _read_concept(SUV_BW)]
    assert {m.derivation.value for m in standard} == {each.value for each in (MEAN, MAXIMUM, PEAK)}
    assert [m.value for m in standard] == [1.5, 1.5, 1.5]
    assert {(m.unit.value, m.unit.meaning) for m in standard} == {
        (SUV_BW_UNIT, "Standardized Uptake Value body weight")
    }
    others = [m for m in group.get_measurements() if m not in standard]
    assert {m.name.scheme_designator for m in others} == {"99DICOMNODE"}


def test_two_numbers_of_one_quantity_in_a_group_get_names_of_their_own() -> None:
    numbers = [Measurement(f"volume of {kind}", 1.0, "ml", quantity=VOLUME) for kind in ("new", "enlarged")]
    (ds,) = results.write(numbers, [source("mr")], PROVENANCE, ResultsConfig(), NOW)
    (group,) = hd.sr.Comprehensive3DSR.from_dataset(ds).content.get_image_measurement_groups()
    assert [m.name.meaning for m in group.get_measurements()] == ["volume of new", "volume of enlarged"]


def test_a_group_that_several_segments_bear_the_name_of_is_refused() -> None:
    masks = [
        Segmentation(name, np.ones(WHERE.shape, np.uint8), WHERE, (Segment(1, "Part", MORPHOLOGY, LESION_OF_BRAIN),),
                     name, 3.0)
        for name in ("one", "two")
    ]  # fmt: skip
    number = Measurement("volume", 1.0, "ml", group="part")
    with pytest.raises(InputRefused, match="2 segments are called 'part'"):
        results.write(
            [*make_findings(WHERE).findings, *masks, number], [source("mr")], PROVENANCE, ResultsConfig(), NOW
        )


def test_identifiers_still_agree_in_a_de_identified_copy(tmp_path: Path) -> None:
    paths = [save(deepcopy(ds), tmp_path, f"{n}.dcm") for n, ds in enumerate(write_lesion_objects("binary"))]
    mask, report = (make_deidentifier().read(path) for path in paths)
    segments = {str(item.TrackingUID) for item in mask.SegmentSequence}
    assert {group.tracking_uid for group in _read_groups(report)} == segments
    assert segments.isdisjoint({str(item.TrackingUID) for item in write_lesion_objects("binary")[0].SegmentSequence})
    for group in _read_groups(report):
        (point,) = [item for item in group[0].ContentSequence if item.ValueType == "SCOORD3D"]
        assert point.ReferencedFrameOfReferenceUID == mask.FrameOfReferenceUID


def test_a_site_with_two_sides_is_no_site() -> None:
    with pytest.raises(ValueError, match="2 sides"):
        concepts.finding_site(Code("12738006", "SCT", "Brain", (LEFT, RIGHT)))
