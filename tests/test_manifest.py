"""A user's table is read, or refused with every bad row named; volumes come in LPS at the requested spacing."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from dicomnode.reading import folders
from model_zoo.training import images, loop, manifest, mri_prior
from model_zoo.training.images import SeriesReader
from model_zoo.training.recipe import Column

COLUMNS = (
    Column("image", "image"),
    Column("lesions", "labels", required=False),
    Column("age", "number"),
    Column("sex", "word", required=False),
)
SERIES = SeriesReader(folders.read_grid, folders.read_values)
SHAPE_IJK = (20, 24, 16)


def write_nifti(path: Path, *, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 2.0), shift_mm: float = 0.0) -> Path:
    """Write a volume of 100 plus the millimetres towards the left (RAS: minus x), in RAS+ order."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = (-10.0 + shift_mm, -12.0, -8.0)
    x = affine[0, 3] + spacing_mm[0] * np.arange(SHAPE_IJK[0])
    values = np.broadcast_to((100 - x)[:, None, None], SHAPE_IJK).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def write_dicom_series(
    folder: Path, values: NDArray[np.uint16], *, slope: float = 1.0, gap_at: int | None = None
) -> Path:
    """Write an axial MR series (k, j, i), slices 3 mm apart and out of order, without the slice ``gap_at``."""
    folder.mkdir()
    series, study = generate_uid(), generate_uid()
    for k in reversed(range(len(values))):
        if k == gap_at:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds = FileDataset(str(folder / f"{100 - k}.dcm"), {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.Modality = series, study, "MR"
        ds.Rows, ds.Columns = values.shape[1:]
        ds.PixelSpacing, ds.SliceThickness = [1.5, 1.25], 3.0
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [-7.0, 4.0, 3.0 * k], [1, 0, 0, 0, 1, 0]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.RescaleSlope, ds.RescaleIntercept = slope, 0.0
        ds.PixelData = values[k].tobytes()
        pydicom.dcmwrite(folder / f"{100 - k}.dcm", ds, enforce_file_format=True)
    return folder


def write_table(folder: Path, *lines: str, header: str = "subject,split,image,age") -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def read_problems(path: Path) -> list[str]:
    with pytest.raises(manifest.ManifestError) as caught:
        manifest.read(path, COLUMNS, SERIES)
    return list(caught.value.problems)


def test_a_table_becomes_rows_with_images_numbers_and_words(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz")
    path = write_table(
        tmp_path, "s1,train,a.nii.gz,61.5,F", "s2,validation,a.nii.gz,70,", header="subject,split,image,age,sex"
    )
    cohort = manifest.read(path, COLUMNS, SERIES)
    assert [row.subject for row in cohort.rows] == ["s1", "s2"]
    assert cohort.rows[0].numbers == {"age": 61.5}
    assert cohort.rows[0].words == {"sex": "F"}
    assert "sex" not in cohort.rows[1].words
    assert [row.subject for row in manifest.make_sources(cohort).train.cohort.rows] == ["s1"]  # type: ignore[union-attr]


def test_every_bad_row_is_named_with_its_line_and_column(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz")
    (tmp_path / "broken.nii.gz").write_bytes(b"not an image")
    (tmp_path / "empty").mkdir()
    path = write_table(
        tmp_path,
        "s1,train,a.nii.gz,61",
        "s2,train,missing.nii.gz,sixty",
        ",training,a.nii.gz,61",
        "s4,train,broken.nii.gz,nan",
        "s5,validation,empty,",
        "s6,validation,table.csv,50",
        "s7,validation,a.nii.gz,50,extra",
    )
    found = read_problems(path)
    for expected in (
        "line 3, column image: {}/missing.nii.gz: there is no such file or folder",
        "line 3, column age: 'sixty' is no number",
        "line 4, column subject: it is blank",
        "line 4, column split: 'training' is none of train, validation, test",
        "line 5, column image: {}/broken.nii.gz: no image can be read from it",
        "line 5, column age: 'nan' is no number",
        "line 6, column image: {}/empty: a folder with one DICOM series is needed, it has none",
        "line 6, column age: it is blank",
        "line 7, column image: {}/table.csv: an image is a NIfTI file (.nii, .nii.gz) or a folder with one DICOM "
        "series",
        "line 8: more cells than columns",
    ):
        assert expected.format(tmp_path) in found
    assert len(found) == 10


def test_columns_that_are_missing_unknown_or_doubled_are_named(tmp_path: Path) -> None:
    found = read_problems(write_table(tmp_path, "s1,a,b,1", header="subject,imgae,age,age"))
    assert 'line 1: the column "image" is missing' in found
    assert 'line 1: no column "imgae" is known; known are subject, split, resample, image, lesions, age, sex' in found
    assert 'line 1: the column "age" is there twice' in found


def test_a_subject_in_two_splits_is_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz")
    path = write_table(tmp_path, "s1,train,a.nii.gz,1", "s2,validation,a.nii.gz,1", "s1,validation,a.nii.gz,1")
    assert read_problems(path) == ["line 4, column split: subject 's1' is in validation, but in train by line 2"]


def test_a_subject_s_blank_rows_follow_its_stated_split(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz")
    path = write_table(
        tmp_path, "s1,test,a.nii.gz,1", "s1,,a.nii.gz,2", "s2,train,a.nii.gz,1", "s3,validation,a.nii.gz,1"
    )
    assert [row.split for row in manifest.read(path, COLUMNS, SERIES).rows] == ["test", "test", "train", "validation"]


def test_without_a_stated_split_a_subject_goes_by_the_hash_of_its_name() -> None:
    splits = [manifest.assign_split(f"subject {n}") for n in range(1000)]
    assert splits == [manifest.assign_split(f"subject {n}") for n in range(1000)]
    assert [splits.count(each) / 1000 for each in manifest.SPLITS] == pytest.approx([0.8, 0.1, 0.1], abs=0.04)


def test_a_table_without_validation_rows_is_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz")
    assert read_problems(write_table(tmp_path, "s1,train,a.nii.gz,1")) == [
        'no row is in the split "validation": name splits in the column "split"'
    ]


def test_images_of_a_row_on_different_grids_are_refused_unless_stated(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz")
    write_nifti(tmp_path / "l.nii.gz", shift_mm=3.0)
    rows = ("s1,train,a.nii.gz,l.nii.gz,1", "s2,validation,a.nii.gz,,1")
    (problem,) = read_problems(write_table(tmp_path, *rows, header="subject,split,image,lesions,age"))
    assert problem.startswith("line 2, column lesions: ")
    assert 'not on the grid of "image"' in problem
    path = write_table(tmp_path, *(f"{row},yes" for row in rows), header="subject,split,image,lesions,age,resample")
    cohort = manifest.read(path, COLUMNS)
    moved = cohort.read_volume(cohort.rows[0], "lesions")
    assert moved.grid.matches(cohort.read_volume(cohort.rows[0], "image").grid)


def test_a_nifti_volume_comes_in_lps_with_its_spacing(tmp_path: Path) -> None:
    volume = images.read_volume(write_nifti(tmp_path / "a.nii.gz"))
    i, j, k = SHAPE_IJK
    assert volume.values.shape == (k, j, i)
    assert volume.grid.spacing_mm == pytest.approx((2.0, 1.0, 1.0))
    along_left = volume.values[0, 0]
    assert torch.allclose(along_left.diff(), torch.ones(i - 1))  # RAS x falls by a millimetre a voxel towards the left
    assert volume.grid.matches(images.read_grid(tmp_path / "a.nii.gz"))


def test_a_dicom_series_is_read_in_the_order_of_its_positions_and_rescaled(tmp_path: Path) -> None:
    values = np.arange(5 * 6 * 7, dtype=np.uint16).reshape(5, 6, 7)
    folder = write_dicom_series(tmp_path / "series", values, slope=0.5)
    volume = images.read_volume(folder, SERIES)
    np.testing.assert_allclose(volume.values.numpy(), 0.5 * values)
    assert volume.grid.spacing_mm == pytest.approx((3.0, 1.5, 1.25))
    assert volume.grid.matches(images.read_grid(folder, SERIES))


def test_a_dicom_series_with_a_missing_slice_is_refused(tmp_path: Path) -> None:
    folder = write_dicom_series(tmp_path / "series", np.zeros((6, 4, 4), np.uint16), gap_at=2)
    with pytest.raises(ValueError, match="about 1 slices are missing"):
        images.read_grid(folder, SERIES)


def test_patches_of_a_row_show_the_same_place_at_the_asked_spacing(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz")
    rows = ("s1,train,a.nii.gz,a.nii.gz,1", "s2,validation,a.nii.gz,,1")
    cohort = manifest.read(write_table(tmp_path, *rows, header="subject,split,image,lesions,age"), COLUMNS)
    generator = torch.Generator().manual_seed(0)
    starts = set()
    for _ in range(8):
        found = cohort.draw_patch(cohort.rows[0], ("image", "lesions"), (8, 8, 8), 2.0, generator)
        assert found["image"].shape == (8, 8, 8)
        inside = found["image"][:, :, 1:-1]
        assert torch.allclose(inside.diff(dim=2), torch.full((8, 8, 5), 2.0), atol=0.1)  # 1 a millimetre
        assert float((found["image"] - found["lesions"]).abs()[:, :, 1:-1].max()) <= 1.0  # the nearest voxel
        starts.add(float(found["image"][0, 0, 4]))
    assert len(starts) > 1


def test_an_image_smaller_than_a_patch_is_padded_with_its_lowest_value(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz")
    cohort = manifest.read(write_table(tmp_path, "s1,train,a.nii.gz,1", "s2,validation,a.nii.gz,1"), COLUMNS)
    found = cohort.draw_patch(cohort.rows[0], ("image",), (64, 8, 8), 1.0, torch.Generator().manual_seed(0))["image"]
    assert found.shape == (64, 8, 8)
    assert torch.equal(found[0], torch.full((8, 8), float(found.min())))


def test_memory_for_volumes_is_bounded(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz")
    lines = [f"s{n},train,a.nii.gz,1" for n in range(4)]
    table_cohort = manifest.read(write_table(tmp_path, *lines, "v,validation,a.nii.gz,1"), COLUMNS)
    one_volume = 4 * math.prod(SHAPE_IJK)
    cohort = manifest.Cohort(table_cohort.rows, table_cohort.digest, cache_bytes=2 * one_volume)
    volumes = []
    for row in cohort.rows:
        volumes.append(cohort.read_volume(row, "image"))
        assert cohort.read_volume(row, "image") is volumes[-1]
    is_in_memory = [cohort.read_volume(cohort.rows[n], "image") is volumes[n] for n in (4, 3, 2, 1, 0)]
    assert is_in_memory == [True, True, False, False, False]


@pytest.mark.slow
def test_mri_prior_trains_on_a_user_s_volumes(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz")
    path = tmp_path / "table.csv"
    path.write_text("subject,split,image\ns1,train,a.nii.gz\ns2,validation,a.nii.gz\n")
    sources = manifest.make_sources(manifest.read(path, mri_prior.RECIPE.columns))
    c = mri_prior.RECIPE.configurations["smoke"]
    loop.train(mri_prior.RECIPE, c, tmp_path / "run", sources=sources)
    x0 = mri_prior.draw_patches(4, c, sources.train, torch.Generator().manual_seed(1))
    assert x0.shape == (4, 2, c.patch, c.patch)
    assert 0.3 < float(torch.linalg.vector_norm(x0, dim=1).amax()) < 3
