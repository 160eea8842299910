"""Training reads a folder with a DICOM series as the node reads the series, or refuses it for the same reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicomnode.cli import train as command
from dicomnode.errors import InputRefused
from dicomnode.reading import folders, volumes
from model_zoo.training import images, manifest, mri_prior
from model_zoo.training.images import SeriesReader
from pipelines.contract import Volume
from tests.scanner import ORIENTATIONS, make_grid
from tests.series import unpack_series, write_slices

pytestmark = pytest.mark.slow

SHAPE = (6, 9, 7)
SERIES = SeriesReader(folders.read_grid, folders.read_values)
KIT_SERIES = {
    "T1w of 384 slices": "mri/t1-dicom-studyforrest/dicoms.tar.xz",
    "GE sagittal": "dicom/ge-irspgr-fruit-refaced/dicoms.tar.xz",
    "whole-body PET": "pet/tcia-sts001-fdg-wholebody/raw_bqml.tar.xz",
    "Philips 3D": "dicom/philips-classic-asl/401_3D_pCASL_6mm",
}


def _check_same_voxels(trained: images.Volume, served: Volume) -> None:
    """Check that each voxel of training is a voxel of the node, at its centre and with its value; axes are LPS."""
    values, grid = trained.values.numpy(), trained.grid
    assert sorted(values.shape) == sorted(served.data.shape)
    to_served = np.linalg.inv(served.grid.affine_mm) @ grid.affine_mm
    turn = np.rint(to_served[:3, :3]).astype(int)
    assert np.array_equal(np.abs(turn).sum(axis=0), [1, 1, 1])
    corners = np.stack([*np.array(list(np.ndindex(2, 2, 2))).T * (np.array(values.shape)[::-1, None] - 1), np.ones(8)])
    places = (to_served @ corners)[:3]
    assert np.abs(places - np.rint(places)).max() < 1e-6
    assert places.min() > -1e-6
    along = np.argmax(np.abs(turn), axis=0)  # the served axis (i, j, k) along each axis of training
    there = served.data.T.transpose(along)
    there = there[tuple(slice(None, None, turn[axis, i]) for i, axis in enumerate(along))]
    assert np.array_equal(there.T, values)
    assert nibabel.aff2axcodes(np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine_mm) == ("L", "P", "S")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_has_the_values_and_places_of_the_node(orientation: str, tmp_path: Path) -> None:
    data = np.random.default_rng(7).integers(0, 3000, SHAPE).astype(np.uint16)
    grid = make_grid(orientation, SHAPE, (3.5, 1.25, 0.9), (-31.25, 17.125, 55.5))

    def rescale(k: int, ds: Dataset) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = 0.5 + k, -3

    paths = write_slices(tmp_path, grid, data, edit=rescale)
    (tmp_path / "notes.txt").write_text("no DICOM")
    trained, served = images.read_volume(tmp_path, SERIES), volumes.read(paths).volume
    _check_same_voxels(trained, served)
    assert trained.grid.matches(images.read_grid(tmp_path, SERIES))


def test_an_axial_series_gives_equal_arrays_and_the_equal_affine(tmp_path: Path) -> None:
    data = np.random.default_rng(7).integers(0, 3000, SHAPE).astype(np.uint16)
    paths = write_slices(tmp_path, make_grid("axial", SHAPE, (3.5, 1.25, 0.9), (-31.25, 17.125, 55.5)), data)
    trained, served = images.read_volume(tmp_path, SERIES), volumes.read(paths).volume
    assert np.array_equal(trained.values.numpy(), served.data)
    assert np.array_equal(trained.grid.affine_mm, served.grid.affine_mm)


@pytest.mark.parametrize("name", KIT_SERIES)
def test_series_of_real_scanners_have_the_values_and_places_of_the_node(name: str, kit: Path, tmp_path: Path) -> None:
    source = kit / KIT_SERIES[name]
    paths = unpack_series(source, tmp_path) if source.suffix == ".xz" else sorted(source.iterdir())
    _check_same_voxels(images.read_volume(paths[0].parent, SERIES), volumes.read(paths).volume)


def _remove_place(_: int, ds: Dataset) -> None:
    del ds.ImagePositionPatient


def _set_second_echo(k: int, ds: Dataset) -> None:
    ds.EchoTime = 10 if k < 3 else 20


def _make_colour(_: int, ds: Dataset) -> None:
    ds.PhotometricInterpretation = "PALETTE COLOR"


def _cut_rows(_: int, ds: Dataset) -> None:
    ds.PixelData = ds.PixelData[:-20]


@pytest.mark.parametrize(
    ("edit", "from_headers"),
    [(_remove_place, True), (_set_second_echo, True), (_make_colour, True), (_cut_rows, False)],
    ids=["no place", "two echoes", "colours", "pixels that are cut off"],
)
def test_training_refuses_what_the_node_refuses_with_the_same_reason(
    edit: Callable[[int, Dataset], None], from_headers: bool, tmp_path: Path
) -> None:
    data = np.zeros(SHAPE, np.uint16)
    folder = tmp_path / "series"
    paths = write_slices(folder, make_grid("axial", SHAPE, (3.0, 1.0, 1.0), (0.0, 0.0, 0.0)), data, edit=edit)
    with pytest.raises(InputRefused) as by_node:
        volumes.read(paths)
    with pytest.raises(ValueError, match=r"\w") as by_training:
        images.read_volume(folder, SERIES)
    assert str(by_training.value) == str(by_node.value)
    table = tmp_path / "table.csv"
    table.write_text("subject,split,image\ns1,train,series\ns2,validation,series\n")
    if from_headers:
        with pytest.raises(manifest.ManifestError, match="line 2, column image") as by_table:
            manifest.read(table, mri_prior.RECIPE.columns, SERIES)
        assert by_table.value.problems[0].endswith(f"{folder}: {by_node.value}")


def test_a_single_slice_and_a_folder_without_a_reader_are_refused(tmp_path: Path) -> None:
    one = make_grid("axial", (1, 9, 7), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    write_slices(tmp_path / "one", one, np.zeros((1, 9, 7), np.uint16))
    with pytest.raises(ValueError, match="single slice"):
        images.read_grid(tmp_path / "one", SERIES)
    with pytest.raises(ValueError, match="no reader of DICOM series"):
        images.read_grid(tmp_path / "one")


def test_the_command_hands_its_reader_of_series_to_the_table(tmp_path: Path) -> None:
    data = np.random.default_rng(7).integers(0, 3000, SHAPE).astype(np.uint16)
    paths = write_slices(tmp_path / "a", make_grid("axial", SHAPE, (3.5, 1.25, 0.9), (0.0, 0.0, 0.0)), data)
    table = tmp_path / "table.csv"
    table.write_text("subject,split,image\ns1,train,a\ns2,validation,a\n")
    cohort = command.open_sources(mri_prior.RECIPE, None, table, False).train.cohort
    assert cohort is not None
    assert np.array_equal(cohort.read_volume(cohort.rows[0], "image").values.numpy(), volumes.read(paths).volume.data)
