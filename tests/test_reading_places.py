"""Positions of pixels, and attributes shared by all slices: planes, frames of reference, tiles, functional groups."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicomnode.reading import volumes
from pipelines import anatomy
from pipelines.contract import Grid, Refused
from tests.pixel_files import (
    SHAPE,
    Edit,
    check_refused,
    make_axial_grid,
    make_item,
    make_values,
    set_attributes,
    set_private,
    turn_into_ct,
    write_series,
)
from tests.series import unpack_series, write_enhanced, write_slices

ORDER = list(range(SHAPE[0]))


def _edit_last_slice(**values: object) -> Edit:
    """Return an edit that sets attributes of the last slice only."""

    def edit(k: int, ds: Dataset) -> None:
        if k == SHAPE[0] - 1:
            set_attributes(**values)(k, ds)

    return edit


ONE_PER_VOLUME: dict[str, tuple[object, object]] = {
    "FrameOfReferenceUID": ("1.2.3", "1.2.4"),
    "StudyInstanceUID": ("1.2.3", "1.2.4"),
    "PatientID": ("one", "4711"),
    "PatientAge": ("040Y", "050Y"),
    "PatientSex": ("M", "F"),
    "PatientWeight": ("70", "80"),
    "PatientSize": ("1.7", "1.8"),
    "Modality": ("MR", "OT"),
    "SliceThickness": ("3.5", "5"),
    "EchoTime": ("4.92", "7.38"),
    "EchoNumbers": (1, 2),
    "RepetitionTime": ("2000", "2300"),
    "InversionTime": ("900", "1100"),
    "FlipAngle": ("8", "9"),
    "DiffusionBValue": (0.0, 1000.0),
    "MagneticFieldStrength": ("1.5", "3"),
    "EchoTrainLength": (1, 8),
    "ImageType": (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]),
    "ComplexImageComponent": ("MAGNITUDE", "REAL"),
    "TemporalPositionIdentifier": (1, 2),
    "Manufacturer": ("One", "Other"),
    "ManufacturerModelName": ("One", "Other"),
    "BodyPartExamined": ("HEAD", "NECK"),
    "PatientPosition": ("HFS", "FFS"),
    "MRAcquisitionType": ("2D", "3D"),
    "ScanningSequence": ("SE", "GR"),
    "SequenceVariant": ("SK", "SP"),
    "PhotometricInterpretation": ("MONOCHROME2", "MONOCHROME1"),
    "ConvolutionKernel": ("soft", "bone"),
    "KVP": ("80", "120"),
}


@pytest.mark.parametrize("keyword", ONE_PER_VOLUME)
def test_what_a_volume_has_one_of_is_the_same_on_all_slices(keyword: str, tmp_path: Path) -> None:
    one, other = ONE_PER_VOLUME[keyword]

    def edit(k: int, ds: Dataset) -> None:
        if keyword == "PhotometricInterpretation":  # of MR another refusal comes first
            turn_into_ct(k, ds)
        setattr(ds, keyword, other if k == SHAPE[0] - 1 else one)

    tag = Dataset()
    setattr(tag, keyword, one)
    group, element = next(iter(tag)).tag.group, next(iter(tag)).tag.element
    check_refused(
        write_series(tmp_path, make_values(), edit), rf"\({group:04X},{element:04X}\) differs among the slices"
    )


def test_numbers_may_differ_by_their_rounding_and_be_left_out(tmp_path: Path) -> None:
    def edit(k: int, ds: Dataset) -> None:
        ds.EchoTime = ["2.98", "2.9800001", "2.981", "2.98"][k]
        if k == 3:
            del ds.RepetitionTime, ds.BodyPartExamined

    facts = volumes.read(write_series(tmp_path, make_values(), edit)).facts
    assert facts["te_ms"] == pytest.approx(2.98, rel=1e-3)
    assert (facts["tr_ms"], facts["body_part"]) == (2300, "BRAIN")


def test_a_thickness_of_one_slice_that_is_no_number_differs_from_the_others(tmp_path: Path) -> None:
    paths = write_series(tmp_path, make_values())
    content = paths[0].read_bytes()
    assert content.count(b"DS\4\x003.5 ") == 1
    paths[0].write_bytes(content.replace(b"DS\4\x003.5 ", b"DS\4\x003,5 "))
    check_refused(paths, r"Slice Thickness \(0018,0050\) differs among the slices \(3,5, 3.5\); a volume has one")


@pytest.mark.parametrize("keyword", ["ScanningSequence", "SequenceVariant"])
def test_words_may_stand_in_any_order(keyword: str, tmp_path: Path) -> None:
    paths = write_series(
        tmp_path, make_values(), lambda k, ds: setattr(ds, keyword, ["SK", "SP"] if k % 2 else ["SP", "SK"])
    )
    assert np.array_equal(volumes.read(paths).volume.data, make_values())


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "Modality", "PatientID", "StudyInstanceUID"])
def test_some_things_are_on_all_slices_or_on_none(keyword: str, tmp_path: Path) -> None:
    check_refused(
        write_series(tmp_path / "some", make_values(), _edit_last_slice(**{keyword: None})), "differs among the slices"
    )
    assert volumes.read(
        write_series(tmp_path / "none", make_values(), set_attributes(FrameOfReferenceUID=None))
    ).volume.data.any()


@pytest.mark.parametrize("keyword", ["RescaleSlope", "ContrastBolusAgent"])
def test_some_slices_with_and_some_without_are_refused(keyword: str, tmp_path: Path) -> None:
    values: dict[str, object] = {"ContrastBolusAgent": "Gd"}
    if keyword == "RescaleSlope":
        values = {"RescaleSlope": "2", "RescaleIntercept": "0"}
    check_refused(
        write_series(tmp_path, make_values(), _edit_last_slice(**values)), "some slices have .* and others have none"
    )


def test_slices_of_two_rescale_types_are_refused(tmp_path: Path) -> None:
    def edit(k: int, ds: Dataset) -> None:
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "1", "0", "US" if k else "OD"

    check_refused(write_series(tmp_path, make_values(), edit), r"Rescale Type \(0028,1054\) differs")


KINDS: dict[str, tuple[dict[str, object], str]] = {
    "animal": ({"AnatomicalOrientationType": "QUADRUPED"}, r"Anatomical Orientation Type \(0010,2210\)"),
    "projection": ({"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]}, "projection or rendering"),
    "a word for it": ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "projection or rendering"),
    "a word for the smallest": ({"ImageType": ["DERIVED", "SECONDARY", "MINIP"]}, "projection or rendering"),
    "Siemens' word for the smallest": ({"ImageType": ["DERIVED", "PRIMARY", "MNIP"]}, "projection or rendering"),
    "MIP": ({"VolumeBasedCalculationTechnique": "MAX_IP"}, r"projection or rendering \(MAX_IP\)"),
    "sampled": ({"VolumetricProperties": "SAMPLED"}, "projection or rendering"),
    "curved": ({"VolumeBasedCalculationTechnique": "CURVED_MPR"}, "projection or rendering"),
    "aspect": ({"PixelAspectRatio": [2, 1]}, r"Pixel Aspect Ratio \(0028,0034\) and Pixel Spacing .* contradict"),
    "aspect alone": ({"PixelAspectRatio": [1, 1], "PixelSpacing": None}, "no usable PixelSpacing"),
    "imager spacing alone": ({"ImagerPixelSpacing": ["1", "1"], "PixelSpacing": None}, "no usable PixelSpacing"),
    "spacing of nothing": ({"PixelSpacing": ["0", "1"]}, "PixelSpacing is not positive"),
    "one number of spacing": ({"PixelSpacing": "1"}, "no usable PixelSpacing"),
    "no frames": ({"NumberOfFrames": -1}, r"Number of Frames \(0028,0008\) is -1"),
    "directions not perpendicular": ({"ImageOrientationPatient": [1, 0, 0, 0.1, 0.995, 0]}, "no perpendicular unit"),
    "directions of no length": ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "no perpendicular unit"),
}


@pytest.mark.parametrize("case", KINDS)
def test_what_has_no_plane_in_a_patient_is_refused(case: str, tmp_path: Path) -> None:
    values, reason = KINDS[case]
    check_refused(write_series(tmp_path, make_values(), set_attributes(**values)), reason)


IGNORED: dict[str, object] = {
    "AnatomicalOrientationType": "BIPED", "PatientOrientation": ["P", "F"], "SliceLocation": "7",
    "SpacingBetweenSlices": "-9", "PositionReferenceIndicator": "SN", "GantryDetectorTilt": "15",
    "PixelAspectRatio": [125, 90], "ImagerPixelSpacing": ["3", "3"], "TableHeight": "100", "Laterality": "L",
    "VolumetricProperties": "DISTORTED", "InstanceNumber": 1, "AcquisitionNumber": 4,
}  # fmt: skip


@pytest.mark.parametrize("keyword", IGNORED)
def test_what_changes_no_place(keyword: str, tmp_path: Path) -> None:
    expected = volumes.read(write_series(tmp_path / "without", make_values())).volume
    found = volumes.read(
        write_series(tmp_path / "with", make_values(), set_attributes(**{keyword: IGNORED[keyword]}))
    ).volume
    assert np.array_equal(found.data, expected.data)
    assert np.array_equal(found.grid.affine_mm, expected.grid.affine_mm)


@pytest.mark.parametrize(("between", "thickness", "depth"), [("-4.5", "3", 4.5), ("4.5", "3", 4.5), ("0", "3", 3.0)])
def test_the_depth_of_one_slice_is_a_magnitude(between: str, thickness: str, depth: float, tmp_path: Path) -> None:
    paths = write_series(
        tmp_path, make_values()[:1], set_attributes(SpacingBetweenSlices=between, SliceThickness=thickness)
    )
    assert volumes.read(paths).volume.grid.spacing_mm == pytest.approx((depth, 1.25, 0.9))


def test_rows_and_columns_have_their_own_spacing(tmp_path: Path) -> None:
    affine = volumes.read(write_series(tmp_path, make_values())).volume.grid.affine_mm
    assert np.allclose(np.linalg.norm(affine[:3, :3], axis=0), (0.9, 1.25, 3.5))


def _write_enhanced(
    path: Path, edit: Edit = lambda number, group: None, change: Callable[[Dataset], None] | None = None
) -> list[Path]:
    write_enhanced(path, make_axial_grid(), make_values(), ORDER, edit)
    if change is not None:
        ds = dcmread(path)
        change(ds)
        ds.save_as(path)
    return [path]


def test_the_word_mosaic_on_frames_with_places_is_no_tile(tmp_path: Path) -> None:
    def name_mosaic(ds: Dataset) -> None:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]

    assert np.array_equal(
        volumes.read(_write_enhanced(tmp_path / "e.dcm", change=name_mosaic)).volume.data, make_values()
    )


def _set_macro(sequence: str, **values: object) -> Edit:
    def edit(number: int, group: Dataset) -> None:
        chosen = {key: each[number == 0] if isinstance(each, tuple) else each for key, each in values.items()}
        held = group.get(sequence) or [Dataset()]
        held[0].update(make_item(**chosen))
        setattr(group, sequence, held)

    return edit


FRAMES: dict[str, tuple[Edit, str]] = {
    "echo": (_set_macro("MREchoSequence", EffectiveEchoTime=(2.0, 4.0)), r"Effective Echo Time \(0018,9082\) differs"),
    "repetition": (_set_macro("MRTimingAndRelatedParametersSequence", RepetitionTime=(20.0, 40.0)), "Repetition Time"),
    "flip": (_set_macro("MRTimingAndRelatedParametersSequence", FlipAngle=(20.0, 40.0)), "Flip Angle"),
    "inversions": (_set_macro("MRModifierSequence", InversionTimes=(900.0, 1100.0)), "Inversion Times"),
    "b value": (_set_macro("MRDiffusionSequence", DiffusionBValue=(0.0, 1000.0)), "Diffusion b-value"),
    "stack": (_set_macro("FrameContentSequence", StackID=("1", "2")), "Stack ID"),
    "time": (_set_macro("FrameContentSequence", TemporalPositionIndex=(1, 2)), "Temporal Position Index"),
    "component": (_set_macro("MRImageFrameTypeSequence", ComplexImageComponent=("MAGNITUDE", "PHASE")),
                  "Complex Image"),
    "frame type": (_set_macro("MRImageFrameTypeSequence", FrameType=(["DERIVED"], ["ORIGINAL"])), "Frame Type"),
    "some transformed": (lambda number, group: _set_macro("PixelValueTransformationSequence", RescaleSlope="1")(
        number, group) if number else None, "some slices have Rescale Slope"),
    "rescale type": (_set_macro("PixelValueTransformationSequence", RescaleSlope="1", RescaleIntercept="0",
                            RescaleType=("US", "OD")), "Rescale Type"),
    "rendering": (_set_macro("MRImageFrameTypeSequence", VolumeBasedCalculationTechnique="MIN_IP"), "projection"),
    "two places": (lambda number, group: group.PlanePositionSequence.append(group.PlanePositionSequence[0]),
                   "Plane Position .* has 2 items in one group"),
    "two spacings": (_set_macro("PixelMeasuresSequence", PixelSpacing=["3", "3"], SliceThickness="3.5"),
                     "Pixel Measures Sequence .* is shared by all frames and another in one"),
    "no place": (set_attributes(PlanePositionSequence=None), "no usable ImagePositionPatient"),
}  # fmt: skip


@pytest.mark.parametrize("case", FRAMES)
def test_frames_that_disagree_or_say_nothing_are_refused(case: str, tmp_path: Path) -> None:
    edit, reason = FRAMES[case]
    check_refused(_write_enhanced(tmp_path / "e.dcm", edit), reason)


def _share_twice(ds: Dataset) -> None:
    ds.SharedFunctionalGroupsSequence.append(Dataset())


def _remove_groups(ds: Dataset) -> None:
    del ds.PerFrameFunctionalGroupsSequence


def _remove_orientation(ds: Dataset) -> None:
    del ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence


WHOLE: dict[str, tuple[Callable[[Dataset], None], str]] = {
    "two shared groups": (_share_twice, r"Shared Functional Groups Sequence \(5200,9229\) has 2 items"),
    "no groups of the frames": (_remove_groups, "no usable ImagePositionPatient|no usable ImageOrientationPatient"),
    "no orientation": (_remove_orientation, "no usable ImageOrientationPatient"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_objects_without_whole_groups_are_refused(case: str, tmp_path: Path) -> None:
    change, reason = WHOLE[case]
    check_refused(_write_enhanced(tmp_path / "e.dcm", change=change), reason)


def test_a_group_of_each_frame_and_one_shared_that_say_the_same(tmp_path: Path) -> None:
    same = _set_macro("PixelMeasuresSequence", PixelSpacing=[1.25, 0.9], SliceThickness="3.5")
    found = volumes.read(_write_enhanced(tmp_path / "e.dcm", same)).volume
    assert found.grid.spacing_mm == pytest.approx((3.5, 1.25, 0.9))


def test_indices_and_stack_positions_do_not_order_the_frames(tmp_path: Path) -> None:
    def backwards(number: int, group: Dataset) -> None:
        group.FrameContentSequence[0].InStackPositionNumber = SHAPE[0] - number
        group.FrameContentSequence[0].DimensionIndexValues = [SHAPE[0] - number]

    found = volumes.read(_write_enhanced(tmp_path / "e.dcm", backwards)).volume
    assert np.array_equal(found.data, make_values())


def test_attributes_that_a_legacy_conversion_left_over_are_read(tmp_path: Path) -> None:
    def times(number: int, group: Dataset) -> None:
        group.UnassignedPerFrameConvertedAttributesSequence = [make_item(EchoTime="7.5")]

    def shared(ds: Dataset) -> None:
        del ds.EchoTime, ds.RepetitionTime
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.4.4")
        left = make_item(RepetitionTime="900", ScanningSequence="SE")
        ds.SharedFunctionalGroupsSequence[0].UnassignedSharedConvertedAttributesSequence = [left]

    facts = volumes.read(_write_enhanced(tmp_path / "e.dcm", times, shared)).facts
    assert (facts["te_ms"], facts["tr_ms"], facts["scanning_sequence"]) == (7.5, 900, "SE")

    def echoes(number: int, group: Dataset) -> None:
        group.UnassignedPerFrameConvertedAttributesSequence = [make_item(EchoNumbers=1 + number % 2)]

    check_refused(_write_enhanced(tmp_path / "f.dcm", echoes), r"Echo Number\(s\) \(0018,0086\) differs")


def test_a_concatenation_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    paths = []
    for part in range(2):
        path = tmp_path / f"{part}.dcm"
        frames = ORDER[2 * part : 2 * part + 2]
        write_enhanced(path, make_axial_grid(), make_values(), frames)
        ds = dcmread(path)
        ds.ConcatenationUID, ds.InConcatenationNumber, ds.InConcatenationTotalNumber = "1.2.9", part + 1, 2
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.8.{part}")
        ds.save_as(path)
        paths.append(path)
    assert np.array_equal(volumes.read(paths).volume.data, make_values())
    check_refused(paths[:1], "parts of a concatenation are missing: 1 of 2")
    check_refused(paths[1:], "parts of a concatenation are missing: 1 of 2")


COMPONENTS: dict[str, tuple[Edit, str]] = {
    "Complex Image Component": (set_attributes(ComplexImageComponent="PHASE"), "PHASE"),
    "of the signal's real part": (set_attributes(ComplexImageComponent="REAL"), "REAL"),
    "GE's private element": (set_private(0x0043, "GEMS_PARM_01", 0x2F, "SS", 1), "PHASE"),
    "GE's imaginary part": (set_private(0x0043, "GEMS_PARM_01", 0x2F, "SS", 3), "IMAGINARY"),
    "Siemens' word": (set_attributes(ImageType=["ORIGINAL", "PRIMARY", "P", "ND"]), "P"),
    "the word for the real part": (set_attributes(ImageType=["ORIGINAL", "PRIMARY", "R"]), "R"),
    "the whole word for it": (set_attributes(ImageType=["ORIGINAL", "PRIMARY", "REAL"]), "REAL"),
    "the word for the imaginary part": (set_attributes(ImageType=["ORIGINAL", "PRIMARY", "I"]), "I"),
    "the whole word for that": (set_attributes(ImageType=["ORIGINAL", "PRIMARY", "IMAGINARY"]), "IMAGINARY"),
    "the word for the phase": (set_attributes(ImageType=["ORIGINAL", "PRIMARY", "PHASE"]), "PHASE"),
    "Philips' word": (set_attributes(ImageType=["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"]), "PHASE MAP"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPONENTS)
def test_what_is_no_magnitude_is_told_and_taken_for_none(case: str, tmp_path: Path) -> None:
    edit, component = COMPONENTS[case]
    found = volumes.read(write_series(tmp_path, make_values(), edit))
    assert component in found.facts["image_type"]
    with pytest.raises(Refused, match="no magnitude"):
        anatomy.check_head(found.volume, found.facts)


def test_slices_of_two_components_by_a_private_element_are_refused(tmp_path: Path) -> None:
    def edit(k: int, ds: Dataset) -> None:
        set_private(0x0043, "GEMS_PARM_01", 0x2F, "SS", k % 2)(k, ds)

    check_refused(write_series(tmp_path, make_values(), edit), "several components of the signal: MAGNITUDE, PHASE")


def test_a_magnitude_is_told_as_it_was(tmp_path: Path) -> None:
    ge = set_private(0x0043, "GEMS_PARM_01", 0x2F, "SS", 0)
    assert volumes.read(write_series(tmp_path, make_values(), ge)).facts["image_type"] == ("ORIGINAL", "PRIMARY", "M")


def test_several_inversions_of_one_image_are_not_one_inversion_time(tmp_path: Path) -> None:
    both = _set_macro("MRModifierSequence", InversionTimes=[2078.0, 515.0])
    facts = volumes.read(_write_enhanced(tmp_path / "e.dcm", both)).facts
    assert "ti_ms" not in facts
    assert facts["inversion_times_ms"] == (2078, 515)
    one = volumes.read(
        _write_enhanced(tmp_path / "f.dcm", _set_macro("MRModifierSequence", InversionTimes=[900.0]))
    ).facts
    assert one["ti_ms"] == 900


def test_philips_private_scale_is_not_applied(tmp_path: Path) -> None:
    scale = set_private(0x2005, "Philips MR Imaging DD 001", 0x0E, "FL", 0.01)
    assert np.array_equal(volumes.read(write_series(tmp_path, make_values(), scale)).volume.data, make_values())


def test_a_real_tilted_gantry_is_refused(kit: Path, tmp_path: Path) -> None:
    paths = unpack_series(kit / "dicom" / "ct-gantry-tilt-ge" / "ge_ct_tilt.tar.xz", tmp_path)
    check_refused(paths, "gantry tilt|slices are missing|uneven")


def _write_philips(kit: Path, name: str, folder: Path) -> list[Path]:
    path = folder / f"{name}.dcm"
    path.write_bytes(gzip.decompress((kit / "dicom" / "philips-enhanced-mr" / f"{name}.dcm.gz").read_bytes()))
    return [path]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2001_WIP_fcMRI_Field_Mapping_e2_phMag"])
def test_real_enhanced_objects_of_several_volumes_are_refused(name: str, kit: Path, tmp_path: Path) -> None:
    check_refused(_write_philips(kit, name, tmp_path), "lie at only")


def test_a_real_enhanced_object_is_what_dcm2niix_made_of_it(kit: Path, tmp_path: Path) -> None:
    series = volumes.read(_write_philips(kit, "1901_WIP_3DpCASL_real", tmp_path))
    found = nib.load(kit / "dicom" / "philips-enhanced-mr" / "1901_WIP_3DpCASL_enh_real.nii.gz")
    assert isinstance(found, nib.Nifti1Image)
    expected = np.flip(found.get_fdata().T, axis=1)  # rows run from back to front in NIfTI
    assert np.allclose(series.volume.data, expected, atol=1e-3)
    assert series.facts["image_type"] == ("ORIGINAL", "PRIMARY", "PERFUSION", "NONE", "REAL")


@pytest.mark.slow
def test_raw_data_in_the_series_of_its_images_is_left_out(kit: Path, tmp_path: Path) -> None:
    image, raw = (_write_philips(kit, f"1901_WIP_3DpCASL_{name}", tmp_path) for name in ("real", "Raw"))
    assert dcmread(image[0]).SeriesInstanceUID == dcmread(raw[0]).SeriesInstanceUID
    both = volumes.read([*raw, *image])
    assert np.array_equal(both.volume.data, volumes.read(image).volume.data)
    assert [str(ds.SOPClassUID.name) for ds in both.headers] == ["Enhanced MR Image Storage"]
    check_refused(raw, r"is no image \(Raw Data Storage\)")


def test_a_sheared_ct_is_refused_whatever_its_tilt_says(tmp_path: Path) -> None:
    def edit(k: int, ds: Dataset) -> None:
        turn_into_ct(k, ds)
        ds.GantryDetectorTilt = "0"
        ds.ImagePositionPatient = [0, 0.9 * k, 3.5 * k]

    check_refused(
        write_slices(tmp_path, Grid(SHAPE, make_axial_grid().affine_mm), make_values(), edit=edit),
        "gantry tilt or a sheared stack",
    )
