"""Findings become DICOM objects that other software reads back: SimpleITK, highdicom, dciodvfy."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode import results
from dicomnode.config.results import ResultsConfig
from dicomnode.errors import GeometryError, InputRefused
from dicomnode.results import image, label, marking
from dicomnode.results.provenance import read_record
from pipelines.contract import Grid, Image, Measurement, Volume
from tests.dciodvfy import find_errors
from tests.findings import CONFIG, NOW, PROVENANCE, grid, make_findings, save, source, write_objects
from tests.scanner import ORIENTATIONS


def _list_corners(where: Grid) -> list[tuple[int, int, int]]:
    k, j, i = where.shape
    return [(a, b, c) for a in {0, k - 1} for b in (0, j - 1) for c in (0, i - 1)]


@pytest.mark.slow
@pytest.mark.parametrize("slices", [1, 4])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_simpleitk_reads_geometry_and_values_back(orientation: str, slices: int, tmp_path: Path) -> None:
    these = make_findings(grid(orientation, slices))
    image = sitk.ReadImage(str(save(write_objects(these)[0], tmp_path)))
    array = sitk.GetArrayFromImage(image)
    step = float(np.ptp(these.image)) / 65535
    for k, j, i in _list_corners(these.grid):
        place = these.grid.affine_mm @ [i, j, k, 1]
        index = image.TransformPhysicalPointToIndex(place[:3].tolist())
        assert np.allclose(image.TransformIndexToPhysicalPoint(index), place[:3], rtol=0, atol=1e-3)
        assert array[index[::-1]] == pytest.approx(these.image[k, j, i], abs=step)
    assert sorted(image.GetSize()) == sorted(these.grid.shape)


@pytest.mark.slow
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_label_lies_below_the_anatomy_which_stays_where_it_was(orientation: str, tmp_path: Path) -> None:
    these = make_findings(grid(orientation))
    clean, labelled = write_objects(these)[:2]
    one = sitk.ReadImage(str(save(clean, tmp_path, "clean.dcm")))
    other = sitk.ReadImage(str(save(labelled, tmp_path, "labelled.dcm")))
    assert (one.GetOrigin(), one.GetSpacing(), one.GetDirection()) == (
        other.GetOrigin(), other.GetSpacing(), other.GetDirection())  # fmt: skip
    rows, columns = these.grid.shape[1:]
    frames = sitk.GetArrayFromImage(other)
    assert frames.shape[1] > rows
    assert np.array_equal(frames[:, :rows, :columns], sitk.GetArrayFromImage(one))
    window_top = float(labelled.WindowCenter) - 0.5 + (float(labelled.WindowWidth) - 1) / 2
    ink = (frames[:, rows:] >= window_top - 1e-3).mean()
    assert 0.03 < ink < 0.5
    assert (labelled.BurnedInAnnotation, clean.BurnedInAnnotation) == ("YES", "NO")


@pytest.mark.parametrize("window", [(0.0, 0.97), (0.0, 2.25), (-0.2, 0.1), (0.0, 4095.0)])
def test_a_window_of_few_units_shows_what_it_says(window: tuple[float, float]) -> None:
    ds = Dataset()
    image.set_window(ds, window, 1e-5)
    centre, width = float(ds.WindowCenter), float(ds.WindowWidth)
    assert width >= 1
    assert "VOILUTFunction" not in ds, "viewers pass over it"
    low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2  # PS3.3 C.11.2.1.2.1
    assert (low, high) == pytest.approx(window, abs=1e-6)


@pytest.mark.parametrize("columns", [16, 64, 128, 320, 1024])
def test_the_label_fits_and_is_large_enough_to_read(columns: int) -> None:
    band = label.band(columns)
    letters = np.flatnonzero((band > 0.5).any(axis=1))
    gaps = np.flatnonzero(np.diff(letters) > 1)
    heights = np.diff(np.concatenate([[-1], gaps, [len(letters) - 1]]))
    assert heights.min() >= 7
    assert not (band[:, [0, -1]] > 0.5).any()
    assert band.shape[1] >= columns
    assert columns < 100 or band.shape[1] == columns


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_highdicom_reads_the_map_back(orientation: str, tmp_path: Path) -> None:
    these = make_findings(grid(orientation))
    volume = hd.imread(str(save(write_objects(these)[2], tmp_path))).get_volume()
    _check_same_voxels(volume, these.deviation, these.grid, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_highdicom_reads_the_segmentation_back(orientation: str, kind: str, tmp_path: Path) -> None:
    these = make_findings(grid(orientation))
    config = ResultsConfig.model_validate({"segmentation_kind": kind})
    segmentation = hd.seg.segread(str(save(write_objects(these, config)[3], tmp_path)))
    volume = segmentation.get_volume(combine_segments=True, rescale_fractional=False, allow_missing_positions=True)
    _check_same_voxels(volume, these.labels, these.grid, atol=0)


def _check_same_voxels(volume: hd.Volume, expected: np.ndarray, where: Grid, atol: float) -> None:
    """Check that every voxel (k, j, i) lies where the grid has it, and that slices left out are empty."""
    to_index = np.linalg.inv(where.affine_mm)
    covered = np.zeros(expected.shape, np.bool_)
    for k in range(volume.array.shape[0]):
        start = to_index @ volume.affine @ [k, 0, 0, 1]
        index = np.round(start).astype(int)
        assert np.allclose(start, index, rtol=0, atol=1e-3)
        assert np.array_equal(index[:2], [0, 0])
        assert np.allclose(volume.array[k], expected[index[2]], rtol=0, atol=atol)
        covered[index[2]] = True
    assert not expected[~covered].any()


def test_a_map_says_its_quantity_and_unit() -> None:
    mapping = (
        write_objects(make_findings(grid("axial")))[2]
        .SharedFunctionalGroupsSequence[0]
        .RealWorldValueMappingSequence[0]
    )
    unit = mapping.MeasurementUnitsCodeSequence[0]
    quantity = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
    assert (unit.CodeValue, unit.CodingSchemeDesignator) == ("1", "UCUM")
    assert (quantity.CodeValue, quantity.CodeMeaning) == ("113061", "Standard Deviation")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raw", "mr", "nothing known"])
@pytest.mark.parametrize("slices", [1, 4])
@pytest.mark.parametrize("empty", [False, True], ids=["some labels", "no label"])
def test_dciodvfy_finds_no_error(kind: str, slices: int, empty: bool, tmp_path: Path) -> None:
    header = source("mr" if kind == "mr" else "raw")
    if kind == "nothing known":
        for keyword in ("BodyPartExamined", "StudyDate", "StudyTime", "StudyID", "FrameOfReferenceUID", "PatientSex"):
            delattr(header, keyword)
    for ds in write_objects(make_findings(grid("oblique", slices), empty=empty), CONFIG, header):
        assert find_errors(ds, tmp_path / "result.dcm") == []


def test_an_empty_mask_is_an_answer_too(tmp_path: Path) -> None:
    ds = dcmread(save(write_objects(make_findings(grid("axial"), empty=True))[3], tmp_path))
    assert ds.NumberOfFrames == 4
    assert not ds.pixel_array.any()
    assert "No voxel was found" in ds.DerivationDescription


@pytest.mark.parametrize("orientation", ["oblique", "axial, left-handed"])
def test_without_a_clean_image_the_others_lie_on_the_labelled_one(orientation: str, tmp_path: Path) -> None:
    these = make_findings(grid(orientation, columns=50))
    labelled, _, segmentation = write_objects(these, ResultsConfig(clean=False, report=False))
    assert (segmentation.Rows, segmentation.Columns) == (labelled.Rows, labelled.Columns)
    volume = hd.seg.segread(str(save(segmentation, tmp_path))).get_volume(
        combine_segments=True, rescale_fractional=False, allow_missing_positions=True)  # fmt: skip
    volume = volume[:, : these.grid.shape[1], : these.grid.shape[2]]
    _check_same_voxels(volume, these.labels, these.grid, atol=0)
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == labelled.SeriesInstanceUID


def test_frames_run_along_the_normal_and_are_numbered_so() -> None:
    for orientation in ORIENTATIONS:
        ds = write_objects(make_findings(grid(orientation)))[0]
        axes = np.reshape(ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient,
                          (2, 3)).astype(float)  # fmt: skip
        normal = np.cross(*axes)
        frames = ds.PerFrameFunctionalGroupsSequence
        places = [np.dot(normal, frame.PlanePositionSequence[0].ImagePositionPatient) for frame in frames]
        assert np.allclose(np.diff(places), 3.7)
        assert [frame.FrameContentSequence[0].DimensionIndexValues for frame in frames] == [1, 2, 3, 4]


def test_each_result_is_a_series_of_its_own_in_the_study_of_the_source() -> None:
    header = source("mr")
    objects = write_objects(make_findings(grid("axial")), CONFIG, header, source("mr", 2))
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber", "StudyDate",
                    "StudyID", "FrameOfReferenceUID"):  # fmt: skip
        assert all(ds[keyword].value == header[keyword].value for ds in objects), keyword
    assert len({ds.SeriesInstanceUID for ds in objects}) == 4
    assert [ds.SeriesNumber for ds in objects] == [9000, 9001, 9002, 9003]
    assert all(ds.Manufacturer == "dicomnode" and ds.DeviceSerialNumber != "scanner-1" for ds in objects)
    assert all(ds.SeriesDescription.startswith("SYN ") for ds in objects)


def test_every_input_is_referenced_as_what_it_is() -> None:
    inputs = [source("raw"), source("mr", 1), source("mr", 2)]
    image, _, _, segmentation = write_objects(make_findings(grid("axial")), CONFIG, *inputs)
    assert [item.ReferencedSOPInstanceUID for item in image.SourceInstanceSequence] == [inputs[0].SOPInstanceUID]
    purposes = [item.PurposeOfReferenceCodeSequence[0].CodeValue for item in image.SourceInstanceSequence]
    assert purposes == ["128226"]  # Source raw data
    assert [item.ReferencedSOPInstanceUID for item in image.SourceImageSequence] == [
        inputs[1].SOPInstanceUID, inputs[2].SOPInstanceUID]  # fmt: skip
    purposes = [item.PurposeOfReferenceCodeSequence[0].CodeValue for item in image.SourceImageSequence]
    assert purposes == ["121322", "121322"]  # Source image for image processing operation
    assert segmentation.SourceImageSequence[-1].ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == image.SeriesInstanceUID
    derivation = segmentation.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
    assert derivation.SourceImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID


def test_a_retry_makes_the_same_objects_and_another_seed_or_version_others() -> None:
    these, inputs = make_findings(grid("axial")), [source()]
    first, again = write_objects(these), write_objects(these)
    assert first == again
    for change in ({"seed": 8}, {"model_version": "9.9.9"}, {"node_version": "9.9.9"}):
        other = results.write(these.findings, inputs, replace(PROVENANCE, **change), CONFIG, NOW)
        assert not {ds.SOPInstanceUID for ds in first} & {ds.SOPInstanceUID for ds in other}
    later = results.write(these.findings, inputs, replace(PROVENANCE, job_key="job-2"), CONFIG, NOW)
    assert [ds.SOPInstanceUID for ds in first] == [ds.SOPInstanceUID for ds in later]


def test_uids_lie_below_the_configured_root() -> None:
    objects = write_objects(make_findings(grid("axial")), ResultsConfig(uid_prefix="1.2.826.0.1.3680043.10.999"))
    assert all(ds.SOPInstanceUID.startswith("1.2.826.0.1.3680043.10.999.") for ds in objects)
    assert all(ds.SOPInstanceUID.is_valid for ds in objects)


@pytest.mark.parametrize(
    ("character_set", "name"),
    [("ISO_IR 100", "Müller^Jörg"), ("ISO_IR 144", "Люкceмбypг"), (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
     ("ISO_IR 192", "Wang^XiaoDong=王^小东"), (None, "Miller^John")],
)  # fmt: skip
def test_names_keep_their_characters(character_set: object, name: str, tmp_path: Path) -> None:
    header = source("mr", SpecificCharacterSet=character_set, PatientName=name)
    received = dcmread(_write_file(header, tmp_path))
    for ds in write_objects(make_findings(grid("axial", 1)), CONFIG, received):
        read = dcmread(save(ds, tmp_path))
        assert str(read.PatientName) == name
        assert read.get("SpecificCharacterSet") == received.get("SpecificCharacterSet")


def test_an_optional_value_that_breaks_its_rules_is_left_out_and_quoted_nowhere(tmp_path: Path) -> None:
    header = source("mr", PatientWeight="71.5", BodyPartExamined="HEAD")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header.PatientAge = "42"  # an Age String is 042Y
        received = dcmread(_write_file(header, tmp_path))
    for ds in write_objects(make_findings(grid("axial", 1)), CONFIG, received):  # a warning is an error here
        assert "PatientAge" not in ds
        assert (ds.PatientWeight, ds.BodyPartExamined, ds.PatientID) == (71.5, "HEAD", "4711")


def test_words_that_the_set_cannot_hold_make_it_utf_8(tmp_path: Path) -> None:
    these = make_findings(grid("axial", 1))
    findings = [Image("image", Volume(these.image, these.grid), "Rekonstruktion mit χ²", 3.0)]
    header = dcmread(_write_file(source("mr", SpecificCharacterSet="ISO_IR 100"), tmp_path))
    ds = dcmread(save(results.write(findings, [header], PROVENANCE, CONFIG, NOW)[0], tmp_path))
    assert (ds.SpecificCharacterSet, str(ds.PatientName)) == ("ISO_IR 192", "Müller^Jörg")
    assert ds.SeriesDescription == "SYN Rekonstruktion mit χ²"


def _write_file(header: Dataset, folder: Path) -> Path:
    header.ensure_file_meta()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.save_as(folder / "source.dcm", enforce_file_format=True)
    return folder / "source.dcm"


def test_how_it_came_about_stands_in_every_header(tmp_path: Path) -> None:
    for ds in write_objects(make_findings(grid("axial", 1))):
        read = dcmread(save(ds, tmp_path))
        record = read_record(read)
        assert record["model"]["sha256"] == "ab" * 32
        assert (record["seed"], record["parameters"]["sampler"], record["device"]) == (7, "dds", "cpu")
        assert {m["name"] for m in record["measurements"]} >= {"chi-square", "noise level", "acceleration R"}
        for words in (
            "chi-square: 1.02 (residual",
            "acceleration R: 8.04",
            "computing time: 12.5 s",
            "steps = 40",
            "Seed 7",
            "mri-prior 1.2.0",
            "Trained on: simulated slices",
            "RESEARCH USE ONLY",
        ):
            assert words in read.ImageComments
        assert "Müller" not in read.ImageComments + ds.DerivationDescription


def test_a_measurement_that_is_no_number_stays_valid_json() -> None:
    these = make_findings(grid("axial", 1))
    findings = [*these.findings, Measurement("broken", float("nan"), "1")]
    ds = results.write(findings, [source()], PROVENANCE, CONFIG, NOW)[0]
    marking.check_marks(ds)
    assert read_record(ds)["measurements"][-1]["value"] is None


def test_what_cannot_be_stored_truly_is_refused() -> None:
    good = make_findings(grid("axial"))
    sheared = grid("axial").affine_mm.copy()
    sheared[0, 2] += 1.0
    flat = grid("axial").affine_mm.copy()
    flat[:3, 0] = 0
    spoiled = good.image.copy()
    spoiled[1, 2, 3] = np.nan
    for affine, reason in (
        (sheared, "not perpendicular"),
        (flat, "no length"),
        (np.full((4, 4), np.nan), "not finite"),
    ):
        image = Image("image", Volume(good.image, Grid(good.grid.shape, affine)), "Image", 3.0)
        with pytest.raises(GeometryError, match=reason):
            results.write([image], [source()], PROVENANCE, CONFIG, NOW)
    with pytest.raises(InputRefused, match="1 voxels are not finite"):
        results.write([Image("image", Volume(spoiled, good.grid), "Image", 3.0)], [source()], PROVENANCE, CONFIG, NOW)
    with pytest.raises(GeometryError, match="no result image lies on its grid"):
        results.write(good.findings[1:], [source()], PROVENANCE, CONFIG, NOW)


def test_inputs_of_two_studies_or_none_are_refused() -> None:
    these = make_findings(grid("axial", 1))
    with pytest.raises(InputRefused, match="differ in Study Instance UID"):
        write_objects(these, CONFIG, source(), source("mr", StudyInstanceUID="1.2.3"))
    with pytest.raises(InputRefused, match="no input"):
        results.write(these.findings, [], PROVENANCE, CONFIG, NOW)


def test_slice_by_slice_images_carry_their_geometry_and_the_others_refer_to_them(tmp_path: Path) -> None:
    these = make_findings(grid("oblique, left-handed"))
    objects = write_objects(these, ResultsConfig(image_kind="single", report=False))
    clean, labelled, (deviation, segmentation) = objects[:4], objects[4:8], objects[8:]
    assert [len({ds.SeriesInstanceUID for ds in part}) for part in (clean, labelled)] == [1, 1]
    assert [ds.InstanceNumber for ds in clean] == [1, 2, 3, 4]
    assert [ds.SeriesNumber for ds in (clean[0], labelled[0], deviation, segmentation)] == [9000, 9001, 9002, 9003]
    files = [str(save(ds, tmp_path, f"{ds.InstanceNumber}.dcm")) for ds in clean]
    image = sitk.ReadImage(files)
    array = sitk.GetArrayFromImage(image)
    for k, j, i in _list_corners(these.grid):
        place = these.grid.affine_mm @ [i, j, k, 1]
        index = image.TransformPhysicalPointToIndex(place[:3].tolist())
        assert np.allclose(image.TransformIndexToPhysicalPoint(index), place[:3], rtol=0, atol=1e-3)
        assert array[index[::-1]] == pytest.approx(these.image[k, j, i], abs=0.02)
    for ds in objects:
        marking.check_marks(ds)
    volume = hd.imread(str(save(deviation, tmp_path))).get_volume()
    _check_same_voxels(volume, these.deviation, these.grid, atol=0)
    sources = {item.ReferencedSOPInstanceUID for item in segmentation.SourceImageSequence}
    assert {ds.SOPInstanceUID for ds in clean} <= sources


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multiframe", "single"])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e-3, 1e6])
def test_dciodvfy_finds_no_error_at_any_scale(scale: float, kind: str, tmp_path: Path) -> None:
    where = grid("axial", 2)
    these = make_findings(where)
    findings = [Image("image", Volume((these.image * scale).astype(np.float32), where), "Image", 3.0)]
    config = ResultsConfig.model_validate({"image_kind": kind})
    for ds in results.write(findings, [source()], PROVENANCE, config, NOW):
        assert find_errors(ds, tmp_path / "result.dcm") == []
