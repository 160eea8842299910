"""Files of a series become a volume where SimpleITK sees it, or a refusal that names the fault and its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its usual name
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomnode.errors import InputRefused
from dicomnode.reading import frames, stored_values, volumes
from pipelines.contract import Grid, Volume
from tests.scanner import ORIENTATIONS, make_grid
from tests.series import unpack_series, write_enhanced, write_slices

SHAPE = (6, 9, 7)


def _make_grid(orientation: str = "oblique") -> Grid:
    return make_grid(orientation, SHAPE, (3.5, 1.25, 0.9), (-31.25, 17.125, 55.5))


def _make_stored(dtype: type[np.integer[Any]] = np.uint16) -> NDArray[np.integer[Any]]:
    return np.random.default_rng(5).integers(0, 3000, SHAPE).astype(dtype)


@pytest.mark.parametrize("enhanced", [False, True], ids=["single frames", "enhanced"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_voxel_lies_where_it_was_measured(orientation: str, enhanced: bool, tmp_path: Path) -> None:
    grid, stored = _make_grid(orientation), _make_stored()
    if enhanced:
        paths = [write_enhanced(tmp_path / "e.dcm", grid, stored, [3, 0, 5, 1, 4, 2])]
    else:
        paths = write_slices(tmp_path, grid, stored)
    series = volumes.read(paths)
    _check_same(series.volume, grid, stored.astype(np.float32))
    assert np.linalg.det(series.volume.grid.affine_mm[:3, :3]) > 0
    assert series.volume.slice_thickness_mm == pytest.approx(3.5)
    assert series.volume.unit == "1"


def _check_same(volume: Volume, grid: Grid, expected: NDArray[np.float32]) -> None:
    """Check that each voxel of ``grid`` is a voxel of the volume, at the same place and with its value."""
    assert volume.data.dtype == np.float32
    assert volume.data.shape == expected.shape
    indices = np.stack([*np.indices(expected.shape)[::-1].reshape(3, -1), np.ones(expected.size)])
    found = np.linalg.inv(volume.grid.affine_mm) @ grid.affine_mm @ indices
    voxels = np.rint(found).astype(int)
    assert np.abs(found - voxels).max() * min(grid.spacing_mm) < 1e-3
    assert np.array_equal(volume.data[voxels[2], voxels[1], voxels[0]], expected.ravel())


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    def rescale(k: int, ds: Dataset) -> None:
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = f"{0.25 + k}", f"{-10 * k}", "US"

    grid, stored = _make_grid("axial"), _make_stored(np.int16)
    volume = volumes.read(write_slices(tmp_path, grid, stored, edit=rescale)).volume
    k = np.arange(SHAPE[0])[:, None, None]
    _check_same(volume, grid, (stored * (0.25 + k) - 10 * k).astype(np.float32))


def test_each_frame_has_its_own_rescale(tmp_path: Path) -> None:
    def rescale(number: int, group: Dataset) -> None:
        item = Dataset()
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = str(number + 1), "-4", "US"
        group.PixelValueTransformationSequence = [item]

    grid, stored, order = _make_grid("axial"), _make_stored(), [5, 4, 3, 2, 1, 0]
    volume = volumes.read([write_enhanced(tmp_path / "e.dcm", grid, stored, order, rescale)]).volume
    slopes = np.argsort(order)[:, None, None] + 1
    _check_same(volume, grid, (stored * slopes - 4).astype(np.float32))


def test_a_real_world_value_mapping_with_a_unit_wins_over_the_rescale(tmp_path: Path) -> None:
    def mapped(unit: str) -> Callable[[int, Dataset], None]:
        def edit(_: int, ds: Dataset) -> None:
            item, code = Dataset(), Dataset()
            code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = unit, "UCUM", unit
            item.MeasurementUnitsCodeSequence = [code]
            item.RealWorldValueSlope, item.RealWorldValueIntercept = 1e-6, 0.0
            ds.RealWorldValueMappingSequence, ds.RescaleSlope, ds.RescaleIntercept = [item], "2", "0"

        return edit

    grid, stored = _make_grid("axial"), _make_stored()
    volume = volumes.read(write_slices(tmp_path / "adc", grid, stored, edit=mapped("mm2/s"))).volume
    assert volume.unit == "mm2/s"
    _check_same(volume, grid, (stored * 1e-6).astype(np.float32))
    volume = volumes.read(write_slices(tmp_path / "plain", grid, stored, edit=mapped("1"))).volume
    assert volume.unit == "1"
    _check_same(volume, grid, (stored * 2.0).astype(np.float32))


def test_philips_counts_become_activity_by_their_private_factor(tmp_path: Path) -> None:
    def pet(factor: str) -> Callable[[int, Dataset], None]:
        def edit(_: int, ds: Dataset) -> None:
            ds.Modality, ds.Units, ds.RescaleSlope, ds.RescaleIntercept = "PT", "CNTS", "0.5", "0"
            if factor:
                block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
                block.add_new(0x09, "DS", factor)

        return edit

    grid, stored = _make_grid("axial"), _make_stored()
    volume = volumes.read(write_slices(tmp_path / "factor", grid, stored, edit=pet("1.602563"))).volume
    assert volume.unit == "Bq/ml"
    _check_same(volume, grid, (stored * 0.5 * 1.602563).astype(np.float32))
    assert volumes.read(write_slices(tmp_path / "none", grid, stored, edit=pet(""))).volume.unit == "{counts}"


def test_facts_tell_the_acquisition_and_not_the_patient(tmp_path: Path) -> None:
    series = volumes.read(write_slices(tmp_path, _make_grid("sagittal"), _make_stored()))
    facts = series.facts
    assert (facts["modality"], facts["tr_ms"], facts["te_ms"], facts["field_strength_t"]) == ("MR", 2300, 2.98, 3)
    assert (facts["plane"], facts["slices"], facts["age_years"], facts["sex"]) == ("sagittal", 6, 56, "M")
    assert facts["spacing_mm"] == pytest.approx((3.5, 1.25, 0.9))
    words = json.dumps(facts, ensure_ascii=False)
    assert all(secret not in words for secret in ("Müller", "4711", "1970", "2026"))


def test_headers_come_in_the_order_of_the_slices_without_pixels_and_private_elements(tmp_path: Path) -> None:
    def private(_: int, ds: Dataset) -> None:
        ds.private_block(0x0029, "SOMEBODY", create=True).add_new(0x10, "LO", "something")

    headers = volumes.read(write_slices(tmp_path, _make_grid("axial"), _make_stored(), edit=private)).headers
    assert [ds.InstanceNumber for ds in headers] == [6, 5, 4, 3, 2, 1]
    assert all("PixelData" not in ds and not any(element.tag.is_private for element in ds) for ds in headers)


def _remove_slices(*missing: int) -> Callable[[list[Path]], list[Path]]:
    return lambda paths: [path for path in paths if int(path.stem.split("-")[1]) not in missing]


@pytest.mark.parametrize(
    ("missing", "reason"),
    [((2,), r"about 1 slices are missing: 7\.00 mm between slices 2 and 3, where 3\.50"),
     ((2, 3), "about 2 slices are missing: 10.50 mm")],
)  # fmt: skip
def test_a_missing_slice_is_named(missing: tuple[int, ...], reason: str, tmp_path: Path) -> None:
    grid = make_grid("oblique", (9, 9, 7), (3.5, 1.25, 0.9), (0, 0, 0))
    paths = write_slices(tmp_path, grid, np.zeros((9, 9, 7), np.uint16))
    with pytest.raises(InputRefused, match=reason):
        volumes.read(_remove_slices(*missing)(paths))


def _move_slice(
    slice_number: int, *, along_mm: float = 0.0, sideways_mm: float = 0.0
) -> Callable[[int, Dataset], None]:
    def edit(k: int, ds: Dataset) -> None:
        if k == slice_number:
            x, y, z = (float(value) for value in ds.ImagePositionPatient)
            ds.ImagePositionPatient = [x + sideways_mm, y, z + along_mm]

    return edit


def _tilt(k: int, ds: Dataset) -> None:
    x, y, z = (float(value) for value in ds.ImagePositionPatient)
    ds.ImagePositionPatient = [x, y + 0.9 * k, z]


def _set_echoes(k: int, ds: Dataset) -> None:
    ds.EchoTime = str(4.92 + 2.46 * (k % 2))
    ds.ImagePositionPatient = [0, 0, 3.5 * (k // 2)]


def _make_localiser(k: int, ds: Dataset) -> None:
    ds.ImageOrientationPatient = [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1]][k % 3]


def _remove_attribute(keyword: str) -> Callable[[int, Dataset], None]:
    def edit(k: int, ds: Dataset) -> None:
        if k == 4:
            delattr(ds, keyword)

    return edit


def _set(**values: object) -> Callable[[int, Dataset], None]:
    def edit(k: int, ds: Dataset) -> None:
        if k == 4:
            for keyword, value in values.items():
                setattr(ds, keyword, value)

    return edit


def _crop(k: int, ds: Dataset) -> None:
    if k == 4:
        ds.Rows, ds.PixelData = ds.Rows - 1, ds.PixelData[: -2 * ds.Columns]


REFUSALS: dict[str, tuple[Callable[[int, Dataset], None], str]] = {
    "uneven": (_move_slice(3, along_mm=0.8), "steps between slices are uneven: 2.700 to 4.300 mm"),
    "tilt": (_tilt, r"14\.4 degrees off their normal \(gantry tilt"),
    "one slice sideways": (_move_slice(3, sideways_mm=1.0), "1.00 mm at slice 4"),
    "several echoes": (
        _set_echoes, r"6 slices lie at only 3 positions, up to 2 at one; they differ in EchoTime \(4.92, 7.38"),
    "sent twice": (_move_slice(3, along_mm=3.5), "nothing tells them apart"),
    "localiser by geometry": (_make_localiser, r"3 orientations \(axial, coronal, sagittal\): a localiser"),
    "localiser by name": (_set(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "instance 2 is a localiser"),
    "mosaic": (_set(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "instance 2 is a mosaic"),
    "colour": (_set(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "colour image"),
    "palette": (_set(PhotometricInterpretation="PALETTE COLOR"), "colour image"),
    "size": (_crop, "differ in size: 8 x 7, 9 x 7"),
    "no position": (_remove_attribute("ImagePositionPatient"), "instance 2 .* has no usable ImagePositionPatient"),
    "no orientation": (_remove_attribute("ImageOrientationPatient"), "has no usable ImageOrientationPatient"),
    "no spacing": (_remove_attribute("PixelSpacing"), "has no usable PixelSpacing"),
    "other spacing": (_set(PixelSpacing=[1.25, 1.5]), "PixelSpacing is not positive and the same on all slices"),
    "negative spacing": (_set(PixelSpacing=[-1.25, 0.9]), "PixelSpacing is not positive"),
    "truncated": (_set(PixelData=b"\0" * 60), "instance 2: the pixels are damaged, incomplete"),
    "no pixels": (_remove_attribute("PixelData"), "instance 2: the pixels are damaged, incomplete"),
    "no rows": (_remove_attribute("Rows"), "instance 2 is no image"),
    "not unit vectors": (
        lambda k, ds: setattr(ds, "ImageOrientationPatient", [1, 0, 0, 0.5, 0.5, 0]), "no perpendicular unit vectors"),
    "PET of unknown unit": (lambda k, ds: setattr(ds, "Modality", "PT"), "PET without Units"),
    "two series": (_set(SeriesInstanceUID="1.2.3"), "of several series"),
}  # fmt: skip


@pytest.mark.parametrize("hazard", REFUSALS)
def test_what_makes_no_volume_is_refused_with_the_reason(hazard: str, tmp_path: Path) -> None:
    edit, reason = REFUSALS[hazard]
    paths = write_slices(tmp_path, _make_grid("axial"), _make_stored(), edit=edit)
    with pytest.raises(InputRefused, match=reason) as refused:
        volumes.read(paths)
    assert all(secret not in str(refused.value) for secret in ("Müller", "4711", "1970"))


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    def floating(k: int, ds: Dataset) -> None:
        pixels = np.ones(SHAPE[1:], np.float32)
        if k == 4:
            pixels[2, 3] = np.nan
        del ds.PixelData
        ds.BitsAllocated, ds.FloatPixelData = 32, pixels.tobytes()
        for keyword in ("BitsStored", "HighBit", "PixelRepresentation"):
            delattr(ds, keyword)

    with pytest.raises(InputRefused, match="instance 2, slice 5: 1 pixels are not finite"):
        volumes.read(write_slices(tmp_path, _make_grid("axial"), _make_stored(), edit=floating))


def test_frames_of_several_times_are_refused_by_what_tells_them_apart(tmp_path: Path) -> None:
    def time(number: int, group: Dataset) -> None:
        group.FrameContentSequence[0].TemporalPositionIndex = 1 + number // 6

    path = write_enhanced(tmp_path / "e.dcm", _make_grid(), _make_stored(), [*range(6), *range(6)], time)
    with pytest.raises(InputRefused, match=r"12 slices lie at only 6 .* differ in TemporalPositionIndex \(1, 2\)"):
        volumes.read([path])


def test_frames_without_their_functional_groups_are_refused(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "e.dcm", _make_grid(), _make_stored(), list(range(6)))
    ds = dcmread(path)
    del ds.PerFrameFunctionalGroupsSequence[-1]
    ds.save_as(path)
    with pytest.raises(InputRefused, match="6 frames, but functional groups for 5"):
        volumes.read([path])


def test_what_is_no_dicom_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("Müller")
    with pytest.raises(InputRefused, match="cannot be read as DICOM"):
        volumes.read([path])


def test_one_slice_has_the_depth_of_its_thickness(tmp_path: Path) -> None:
    grid = Grid((1, *SHAPE[1:]), _make_grid("axial").affine_mm)
    volume = volumes.read(write_slices(tmp_path / "a", grid, _make_stored()[:1])).volume
    assert volume.grid.spacing_mm == pytest.approx((3.5, 1.25, 0.9))
    bare = write_slices(tmp_path / "b", grid, _make_stored()[:1], edit=lambda k, ds: delattr(ds, "SliceThickness"))
    with pytest.raises(InputRefused, match="one slice without SliceThickness"):
        volumes.read(bare)


KIT_SERIES = {
    "T1w of 384 slices": "mri/t1-dicom-studyforrest/dicoms.tar.xz",
    "GE sagittal": "dicom/ge-irspgr-fruit-refaced/dicoms.tar.xz",
    "whole-body PET": "pet/tcia-sts001-fdg-wholebody/raw_bqml.tar.xz",
    "Philips with gaps": "dicom/philips-classic-asl/201_pCASL",
    "Philips 3D": "dicom/philips-classic-asl/401_3D_pCASL_6mm",
    "enhanced T1w": "dicom/siemens-xa30-enhanced/t1w_mprage_defaced.dcm",
    "enhanced ASL": "dicom/siemens-xa30-enhanced/asl_perfusion_weighted.dcm",
    "enhanced ADC": "dicom/siemens-xa30-enhanced/dwi_adc.dcm",
    "enhanced phase": "dicom/siemens-xa30-enhanced/gre_phase_diff.dcm",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KIT_SERIES)
def test_simpleitk_reads_the_same_volume_from_real_scans(name: str, kit: Path, tmp_path: Path) -> None:
    source = kit / KIT_SERIES[name]
    paths = (
        unpack_series(source, tmp_path)
        if source.suffix == ".xz"
        else sorted([source] if source.is_file() else source.iterdir())
    )
    volume = volumes.read(paths).volume
    if len(paths) == 1:
        image = sitk.ReadImage(str(source))
    else:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(paths[0].parent)))
        image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    array = sitk.GetArrayFromImage(image)
    if affine[:3, 2] @ volume.grid.affine_mm[:3, 2] < 0:  # SimpleITK keeps the frames as stored
        affine[:3, 3] += affine[:3, 2] * (len(array) - 1)
        affine[:3, 2] *= -1
        array = array[::-1]
    corners = np.array(
        [[i, j, k, 1] for k in (0, array.shape[0]) for j in (0, array.shape[1]) for i in (0, array.shape[2])]
    )
    assert np.abs((affine - volume.grid.affine_mm) @ corners.T).max() < 1e-3
    assert np.array_equal(array.astype(np.float32), volume.data)


@pytest.mark.slow
def test_pet_is_in_becquerel_per_millilitre_with_what_suv_needs(kit: Path, tmp_path: Path) -> None:
    series = volumes.read(unpack_series(kit / "pet/tcia-sts001-fdg-wholebody/raw_bqml.tar.xz", tmp_path))
    assert series.volume.unit == "Bq/ml"
    assert (series.facts["uptake_s"], series.facts["half_life_s"], series.facts["weight_kg"]) == (2711, 6588, 71)
    assert series.facts["dose_bq"] == pytest.approx(388.8e6, rel=1e-3)


def test_echoes_of_a_real_field_map_are_told_apart(kit: Path) -> None:
    with pytest.raises(InputRefused, match=r"they differ in EffectiveEchoTime \(10.0, 12.46\)"):
        volumes.read(sorted((kit / "dicom" / "siemens-xa30-enhanced").glob("gre_magnitude_echo*.dcm")))


def test_a_real_mosaic_is_decoded_alike_from_every_transfer_syntax_and_refused(kit: Path) -> None:
    paths = sorted((kit / "dicom" / "transfer-syntaxes-mosaic").glob("*.dcm"))
    decoded = [stored_values.decode_frames(path, frames.read_header(path)) for path in paths]
    assert all(np.array_equal(each, decoded[0]) for each in decoded)
    for path in paths:
        with pytest.raises(InputRefused, match="is a mosaic"):
            volumes.read([path])


def test_real_colour_is_refused(kit: Path) -> None:
    with pytest.raises(InputRefused, match="colour image"):
        volumes.read([kit / "dicom" / "siemens-xa30-enhanced" / "dwi_colour_fa.dcm"])


@pytest.mark.parametrize("options", ["RG", ["CG", "FS"], "FS"])
def test_the_repetition_times_of_triggered_slices_may_differ_and_are_no_fact(
    options: str | list[str], tmp_path: Path
) -> None:
    def beating(k: int, ds: Dataset) -> None:
        ds.ScanOptions, ds.RepetitionTime = options, f"{1800 + 70 * (k % 3)}"

    paths = write_slices(tmp_path, _make_grid("axial"), _make_stored(), edit=beating)
    if options == "FS":
        with pytest.raises(InputRefused, match=r"Repetition Time \(0018,0080\) differs among the slices"):
            volumes.read(paths)
    else:
        assert "tr_ms" not in volumes.read(paths).facts
