"""Results show windows that a person can set, and every reader gets their values in the unit of the pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its usual name
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomnode import picture, results
from dicomnode.config.results import ResultsConfig
from dicomnode.errors import InputRefused
from dicomnode.execution import comparing, stored
from dicomnode.reading import lookup, volumes
from dicomnode.results import display_scale
from pipelines.contract import Image, Volume
from tests.findings import NOW, PROVENANCE, grid, save, source
from tests.pet_series import write_pet

pytestmark = pytest.mark.fast

WIDTHS = {
    # unit: the widest value of the image, and the factor of its modality values
    "1 small": ("1", 2.0, 1000),
    "1 tiny": ("1", 3e-6, 10**9),
    "1 large": ("1", 800.0, 1),
    "SUVR": ("{SUVr}", 2.5, 1000),
    "SUV": ("g/ml{SUVbw}", 180.0, 1000),
    "HU": ("[hnsf'U]", 60.0, 1),
    "activity": ("Bq/ml", 20.0, 1),
}


KINDS = ["multiframe", "single", "modality"]


def make_image(unit: str, largest: float) -> Image:
    place = grid("axial")
    data = np.random.default_rng(5).random(place.shape) * largest
    return Image("image", Volume(data.astype(np.float32), place, unit), "Synthetic image", 3.7, modality="MR")


def write_image(image: Image, kind: str) -> list[Dataset]:
    config = ResultsConfig.model_validate({"image_kind": kind, "labelled": False, "report": False})
    return results.write([image], [source("raw")], PROVENANCE, config, NOW)


def save_all(objects: list[Dataset], folder: Path) -> list[Path]:
    return [save(ds, folder, f"{number}.dcm") for number, ds in enumerate(objects)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WIDTHS)
def test_every_reader_gets_the_values_of_the_pipeline(name: str, kind: str, tmp_path: Path) -> None:
    unit, largest, factor = WIDTHS[name]
    image = make_image(unit, largest)
    objects = write_image(image, kind)
    paths = save_all(objects, tmp_path)
    step = 1.01 * float(objects[0].RescaleSlope) / factor
    for read in (volumes.read(paths).volume, stored.read_image(paths).volume):
        assert read.unit == unit
        assert np.abs(read.data - image.volume.data).max() <= step
    for ds, expected in zip(objects, np.array_split(image.volume.data, len(objects)), strict=True):
        (mapping,) = ds.RealWorldValueMappingSequence
        real = ds.pixel_array * mapping.RealWorldValueSlope + mapping.RealWorldValueIntercept
        assert np.abs(real - expected).max() <= step
        assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == unit
    middle = objects[len(objects) // 2]
    expected = image.volume.data[image.volume.grid.shape[0] // 2]
    assert np.abs(picture.read_frame(middle) - expected).max() <= step


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WIDTHS)
def test_a_viewer_shows_modality_values_and_a_window_of_whole_numbers(name: str, kind: str, tmp_path: Path) -> None:
    unit, largest, factor = WIDTHS[name]
    image = make_image(unit, largest)
    objects = write_image(image, kind)
    files = [str(path) for path in save_all(objects, tmp_path)]
    shown = sitk.GetArrayFromImage(sitk.ReadImage(files if len(files) > 1 else files[0]))
    assert shown / factor == pytest.approx(image.volume.data, abs=1.01 * float(objects[0].RescaleSlope) / factor)
    centre, width = float(objects[0].WindowCenter), float(objects[0].WindowWidth)
    assert width == pytest.approx(factor * largest, rel=0.06)
    if unit not in ("[hnsf'U]", "Bq/ml"):
        assert width >= 100
        assert (centre, width) == (round(centre), round(width))


@pytest.mark.parametrize(
    ("unit", "factor", "expected"),
    [
        ("1", 1, "US"),
        ("1", 1000, "10*-3"),
        ("{SUVr}", 1, "{SUVr}"),
        ("{SUVr}", 1000, "10*-3.{SUVr}"),
        ("[hnsf'U]", 1, "HU"),
    ],
)
def test_rescale_type_is_the_unit_of_modality_values(unit: str, factor: int, expected: str) -> None:
    ds = Dataset()
    display_scale.set_rescale(ds, "1", "0", unit, factor)
    assert ds.RescaleType == expected
    assert lookup.split_rescale_type(expected) == (1 / factor, "US" if expected == "US" else unit)


def test_another_vendors_rescale_type_changes_no_value(tmp_path: Path) -> None:
    """ADC maps have Rescale Type 10*-6.mm2/s: 800 of them are 800, as in every viewer."""
    (result,) = write_image(make_image("1", 800.0), "multiframe")
    expected = stored.read_image(save_all([result], tmp_path)).volume.data
    result.SyntheticData, result.RescaleType = "NO", "10*-6.mm2/s"
    del result.RealWorldValueMappingSequence
    np.testing.assert_array_equal(volumes.read(save_all([result], tmp_path)).volume.data, expected)


def test_results_of_an_earlier_version_compare_as_equal(tmp_path: Path) -> None:
    """Modality values were the quantity itself until 0.2."""
    image = make_image("{SUVr}", 2.0)
    (now,) = write_image(image, "multiframe")
    (before,) = write_image(image, "multiframe")
    before.RescaleSlope, before.RescaleIntercept = float(now.RescaleSlope) / 1000, float(now.RescaleIntercept) / 1000
    before.RescaleType = "{SUVr}"
    del before.RealWorldValueMappingSequence
    (row,) = comparing.compare_results(save_all([before], tmp_path), [now])
    assert row["largest_difference"] < 1e-6
    assert stored.read_image(save_all([before], tmp_path)).volume.unit == "{SUVr}"


def test_a_secondary_capture_of_pet_is_read_in_its_unit(tmp_path: Path) -> None:
    """Units is an attribute of PET Images only; a result says its unit by its mapping."""
    place = grid("axial")
    data = (np.random.default_rng(4).random(place.shape) * 3e4).astype(np.float32)
    series = volumes.read(write_pet(tmp_path / "in", place, data))
    image = Image("pet", Volume(data, series.volume.grid, "Bq/ml"), "Standard-dose PET", 3.7, modality="PT")
    config = ResultsConfig(labelled=False, report=False)
    paths = save_all(results.write([image], series.headers, PROVENANCE, config, NOW), tmp_path)
    volume = stored.read_image(paths).volume
    assert volume.unit == "Bq/ml"
    assert volume.data == pytest.approx(data, abs=1)
    shorn = dcmread(paths[0])
    del shorn.RealWorldValueMappingSequence
    with pytest.raises(InputRefused, match="PET without Units"):
        volumes.read([save(shorn, tmp_path)])
