"""Missing slices of a series: found by positions or refused, filled, named; measured values as they were stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ParametricMapStorage
from safetensors.torch import save_file

import model_zoo
from dicomnode.config import Config
from dicomnode.errors import InputRefused
from dicomnode.execution.processing import Task, run_task
from dicomnode.reading import volumes
from model_zoo import registry
from model_zoo.bundle import Model, weights_digest
from model_zoo.evaluation import gap_scores
from model_zoo.evaluation import slice_repair as slice_repair_evaluation
from model_zoo.registry import WEIGHTS
from model_zoo.training import translation as recipe
from model_zoo.translation import network as networks
from model_zoo.translation import plan as plans
from pipelines import slice_repair, translation
from pipelines.contract import (
    Case,
    Finding,
    Grid,
    Image,
    Measurement,
    Note,
    ParametricMap,
    Refused,
    Segmentation,
    StoredSlices,
    Volume,
)
from tests.scanner import make_grid
from tests.series import write_enhanced, write_slices

pytestmark = pytest.mark.fast

PLAN = plans.read(Path(model_zoo.__path__[0]) / "translation" / "slice_repair.toml")
SHAPE = (16, 18, 14)


def make_oblique_grid() -> Grid:
    return make_grid("oblique", SHAPE, (1.0, 0.9, 0.9), (-31.25, 17.125, 55.5))


def make_stored(dtype: type[np.integer[Any]] = np.uint16) -> NDArray[np.integer[Any]]:
    """Return stored values of a smooth bright object with noise."""
    k, j, i = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    values = 900 * np.exp(-2 * (k**2 + j**2 + i**2)) + np.random.default_rng(5).normal(0, 8, SHAPE)
    return np.clip(values, 0, None).astype(dtype)


def rescale(slope: str, intercept: str) -> Callable[[int, Dataset], None]:
    def edit(_: int, ds: Dataset) -> None:
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = slope, intercept, "US"

    return edit


def leave_out(paths: list[Path], *missing: int) -> list[Path]:
    """Return the files without these slices k."""
    return [path for path in paths if int(path.stem.split("-")[1]) not in missing]


def write_bundle(folder: Path) -> Path:
    """Write a bundle whose network is untrained, so that it fills slices by the spline."""
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    definition = networks.describe_network(PLAN, {"channels": [4, 8], "blocks": 1})
    save_file(networks.make_network(definition).state_dict(), folder / WEIGHTS)
    facts = dict(recipe.make_recipe_of(PLAN).facts) | {"name": "slice_repair", "version": "1.0.0"}
    facts |= {"recipe": "translation", "weights_sha256": weights_digest(folder / WEIGHTS)}
    (folder / "configs" / "metadata.json").write_text(json.dumps(facts))
    inference = {"network_def": definition, "plan": PLAN.model_dump(mode="json")}
    (folder / "configs" / "inference.json").write_text(json.dumps(inference))
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("data") / "models" / "slice_repair")


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return registry.load_from(registry.read_facts(bundle))


def make_case(*missing: int) -> Case:
    data = make_stored().astype(np.float32)
    data[list(missing)] = 0
    numbers = tuple(None if k in missing else 101 + k for k in range(len(data)))
    volume = Volume(data, make_oblique_grid(), slices=StoredSlices(numbers, 1.0, 0.0))
    return Case({"image": volume}, {"modality": "MR"})


def run(case: Case, model: Model, *slices: int) -> list[Finding]:
    return slice_repair.run(case, model, slice_repair.Options(slices=slices), 0, lambda done, step: None)


def run_on(paths: list[Path], bundle: Path, image_kind: str = "multiframe") -> list[Dataset]:
    """Return the result objects of the files by the code of a job."""
    sections = {"node": {"data_dir": str(bundle.parents[1])}, "worker": {"device": "cpu"}}
    config = Config.model_validate({**sections, "results": {"image_kind": image_kind}})
    now = datetime(2026, 11, 3, tzinfo=UTC)
    task = Task("key", "translate:slice_repair", "slice_repair@1.0.0", {}, {"match": paths}, 1, now)
    return run_task(task, config, progress=lambda done, step: None).objects


def find(findings: list[Finding], kind: type[Any]) -> Any:
    return next(each for each in findings if isinstance(each, kind))


@pytest.mark.parametrize("enhanced", [False, True], ids=["single frames", "enhanced"])
def test_missing_slices_are_found_by_positions(enhanced: bool, tmp_path: Path) -> None:
    grid, stored = make_oblique_grid(), make_stored()
    kept = [k for k in range(16) if k not in (5, 6, 11)]
    if enhanced:
        paths = [write_enhanced(tmp_path / "e.dcm", grid, stored, kept)]
    else:
        paths = leave_out(write_slices(tmp_path, grid, stored), 5, 6, 11)
    whole = write_enhanced(tmp_path / "whole.dcm", grid, stored, list(range(16)))
    found, expected = volumes.read(paths, allow_gaps=True).volume, volumes.read([whole]).volume
    assert found.grid.matches(expected.grid)
    assert found.slices is not None
    missing = [k for k, number in enumerate(found.slices.numbers) if number is None]
    assert len(missing) == 3
    measured = np.delete(np.arange(16), missing)
    assert np.array_equal(found.data[measured], expected.data[measured])
    assert not found.data[missing].any()


@pytest.mark.parametrize(
    ("places_mm", "spacing_mm", "reason"),
    [
        ([0, 1, 2, 3, 4.4, 5.4, 6.4, 7.4, 8.4], None, "gap of 1.40 mm between slices 4 and 5|uneven"),
        ([0, 1, 2, 3, 5.5, 6.5, 7.5, 8.5, 9.5], None, "gap of 2.50 mm between slices 4 and 5 is no whole number"),
        ([0, 1, 3, 4, 5, 7, 8, 10, 11], None, "3 of 8 steps between slices are longer than"),
        ([0, 1, 2, 3, 5, 6, 7, 8, 9], "2.0", r"Spacing Between Slices \(0018,0088\) is 2.00 mm"),
    ],
)
def test_a_gap_with_two_readings_is_refused(
    places_mm: list[float], spacing_mm: str | None, reason: str, tmp_path: Path
) -> None:
    def edit(k: int, ds: Dataset) -> None:
        ds.ImagePositionPatient = [0, 0, places_mm[k]]
        if spacing_mm:
            ds.SpacingBetweenSlices = spacing_mm

    grid = make_grid("axial", (9, 9, 7), (1.0, 1.0, 1.0), (0, 0, 0))
    paths = write_slices(tmp_path, grid, np.ones((9, 9, 7), np.uint16), edit=edit)
    with pytest.raises(InputRefused, match=reason):
        volumes.read(paths, allow_gaps=True)


def test_a_gap_beyond_any_memory_is_refused_by_name(tmp_path: Path) -> None:
    def edit(k: int, ds: Dataset) -> None:
        ds.ImagePositionPatient = [0, 0, k if k < 8 else 1e7 + k]

    grid = make_grid("axial", (16, 9, 7), (1.0, 1.0, 1.0), (0, 0, 0))
    paths = write_slices(tmp_path, grid, np.ones((16, 9, 7), np.uint16), edit=edit)
    with pytest.raises(InputRefused, match="about 10000000 slices are missing between the 16 of the series"):
        volumes.read(paths, allow_gaps=True)


@pytest.mark.parametrize(("padding", "is_refused"), [(1, True), (0, False)], ids=["another value", "the value of air"])
def test_padding_that_would_be_changed_is_refused(padding: int, is_refused: bool, tmp_path: Path) -> None:
    """Padded pixels are filled by the value of air, and measured slices keep what is stored."""
    stored = make_stored() + 5
    stored[:, 0] = padding

    def edit(_: int, ds: Dataset) -> None:
        ds.PixelPaddingValue = padding

    paths = leave_out(write_slices(tmp_path, make_oblique_grid(), stored, edit=edit), 5)
    if is_refused:
        with pytest.raises(InputRefused, match="pixels are padding"):
            volumes.read(paths, allow_gaps=True)
    else:
        volume = volumes.read(paths, allow_gaps=True).volume
        whole = volumes.read(write_slices(tmp_path / "whole", make_oblique_grid(), stored)).volume
        assert np.array_equal(np.sort(volume.data[0].ravel()), np.sort(whole.data[0].ravel()))


def test_fractions_in_measured_slices_are_refused(tmp_path: Path) -> None:
    """A result has whole numbers: it would round them."""
    slices = make_stored().astype(np.float32)
    slices[3, 4, 5] += 0.25

    def edit(k: int, ds: Dataset) -> None:
        del ds.PixelData
        ds.BitsAllocated, ds.SOPClassUID = 32, ParametricMapStorage
        ds.FloatPixelData = slices[k].astype("<f4").tobytes()

    paths = leave_out(write_slices(tmp_path, make_oblique_grid(), make_stored(), edit=edit), 5)
    with pytest.raises(InputRefused, match="1 pixels are no whole numbers"):
        volumes.read(paths, allow_gaps=True)


def test_several_rescales_are_refused_since_measured_slices_keep_their_values(tmp_path: Path) -> None:
    def edit(k: int, ds: Dataset) -> None:
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = str(1 + k), "0", "US"

    with pytest.raises(InputRefused, match="one Rescale Slope"):
        volumes.read(write_slices(tmp_path, make_oblique_grid(), make_stored(), edit=edit), allow_gaps=True)


def test_measured_slices_are_the_same_and_filled_ones_lie_near_the_truth(model: Model) -> None:
    truth = make_stored().astype(np.float32)
    findings = run(make_case(6, 7), model)
    image, sd, labels = (find(findings, kind) for kind in (Image, ParametricMap, Segmentation))
    measured = np.delete(np.arange(16), [6, 7])
    assert np.array_equal(image.volume.data[measured], truth[measured])
    assert np.abs(image.volume.data[[6, 7]] - truth[[6, 7]]).mean() < 20
    assert np.array_equal(image.volume.data, np.rint(image.volume.data)), "in the steps of the source"
    assert image.synthetic_slices == (6, 7)
    assert not sd.volume.data[measured].any()
    assert (sd.volume.data[[6, 7]] > 0).all()
    assert np.array_equal(labels.labels.any(axis=(1, 2)), np.isin(np.arange(16), [6, 7]))
    assert "slices 7 to 8 of 16 (between the images numbered 106 and 109)" in find(findings, Note).text
    assert find(findings, Measurement).value == 2


def test_a_damaged_slice_is_filled_like_a_missing_one(model: Model) -> None:
    case = make_case(6)
    volume = case["image"]
    assert isinstance(volume, Volume)
    data = volume.data.copy()
    data[9] = 4000
    damaged = replace(case, inputs={"image": replace(volume, data=data)})
    image = find(run(damaged, model, 110), Image)
    assert image.synthetic_slices == (6, 9)
    assert np.array_equal(image.volume.data, find(run(make_case(6, 9), model), Image).volume.data)


@pytest.mark.parametrize(
    ("missing", "slices", "reason"),
    [
        ((), (), "nothing to fill"),
        ((4, 5, 6, 7), (), "4 neighbouring slices are missing; the model fills 3"),
        ((1,), (), "1 measured slices on one side"),
        ((6,), (900,), "0 slices of the series have the number 900"),
    ],
)
def test_what_the_model_cannot_fill_is_refused_by_name(
    missing: tuple[int, ...], slices: tuple[int, ...], reason: str, model: Model
) -> None:
    with pytest.raises(Refused, match=reason):
        run(make_case(*missing), model, *slices)


def test_signal_below_zero_is_refused(model: Model) -> None:
    case = make_case(5)
    image = case.inputs["image"]
    assert isinstance(image, Volume)
    below = replace(image, data=image.data - 0.5 * float(image.data.max()))
    with pytest.raises(Refused, match="signal below zero"):
        run(replace(case, inputs={"image": below}), model)


def test_the_bundle_of_a_plan_with_holes_is_this_pipeline(bundle: Path) -> None:
    pipeline = translation.make_pipeline(registry.read_facts(bundle))
    assert pipeline.name == "translate:slice_repair"
    assert pipeline.inputs[0].allows_gaps
    assert pipeline.run is slice_repair.run


@pytest.mark.parametrize(("slope", "intercept", "dtype"), [("0.25", "-7", np.uint16), ("1", "0", np.int16)])
def test_stored_values_of_measured_slices_are_the_source_s_and_each_frame_says_what_it_is(
    slope: str, intercept: str, dtype: type[np.integer[Any]], bundle: Path, tmp_path: Path
) -> None:
    stored = make_stored(dtype)
    paths = write_slices(tmp_path / "in", make_oblique_grid(), stored, edit=rescale(slope, intercept))
    objects = run_on(leave_out(paths, 5, 6), bundle)
    clean = next(ds for ds in objects if "CLEAN" in list(ds.ImageType))
    assert (float(clean.RescaleSlope), float(clean.RescaleIntercept)) == (float(slope), float(intercept))
    sources = {tuple(map(float, dcmread(p).ImagePositionPatient)): dcmread(p).pixel_array for p in paths}
    said = []
    for frame, pixels in zip(clean.PerFrameFunctionalGroupsSequence, clean.pixel_array, strict=True):
        place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        source = min(sources, key=lambda each: float(np.abs(np.array(each) - place).max()))
        said.append(frame.FrameContentSequence[0].FrameComments)
        assert np.array_equal(pixels, sources[source]) == said[-1].startswith("Measured")
    assert sum(each.startswith("SYNTHETIC") for each in said) == 2
    mask = next(ds for ds in objects if ds.SOPClassUID.name.startswith("Segmentation"))
    assert mask.SegmentSequence[0].SegmentLabel == "Synthetic slices"
    report = next(ds for ds in objects if "SR" in ds.SOPClassUID.name)
    assert "slices 10 to 11 of 16" in report.to_json() or "slices 6 to 7 of 16" in report.to_json()


def test_a_series_as_parametric_map_says_of_each_frame_what_it_is(bundle: Path, tmp_path: Path) -> None:
    paths = write_slices(tmp_path / "in", make_oblique_grid(), make_stored())
    kept = leave_out(paths, 5, 6)
    missing = [np.array(dcmread(path).ImagePositionPatient, float) for path in paths if path not in kept]
    objects = run_on(kept, bundle, "parametric")
    (repaired,) = (
        ds for ds in objects if ds.SOPClassUID == ParametricMapStorage and "Series with 2" in ds.SeriesDescription
    )
    for frame in repaired.PerFrameFunctionalGroupsSequence:
        place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        is_missing = any(np.allclose(place, each, atol=0.01) for each in missing)
        assert frame.FrameContentSequence[0].FrameComments.startswith("SYNTHETIC" if is_missing else "Measured")


def test_a_phase_image_is_refused(bundle: Path, tmp_path: Path) -> None:
    def edit(k: int, ds: Dataset) -> None:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "P", "ND"]

    paths = write_slices(tmp_path / "in", make_oblique_grid(), make_stored(), edit=edit)
    with pytest.raises(Refused, match=r"Image Type \(0008,0008\) is ORIGINAL.PRIMARY.P.ND"):
        run_on(leave_out(paths, 5, 6), bundle)


def test_gaps_lie_within_the_brain_and_an_untrained_model_scores_as_the_spline(model: Model) -> None:
    image = torch.from_numpy(make_stored().astype(np.float32))
    inside = torch.zeros(SHAPE, dtype=torch.bool)
    inside[3:14] = True
    assert gap_scores.list_gaps(inside, 2, 3) == [], "too few voxels in each slice"
    scores = gap_scores.score_gaps(model, image.repeat(1, 3, 3), inside.repeat(1, 3, 3), axis=0, missing=2, every=3)
    assert [gap.first for gap in scores] == [5, 8, 11]
    for gap in scores:
        assert gap.psnr_db[gap_scores.OURS] == pytest.approx(gap.psnr_db[gap_scores.CUBIC], abs=0.3)
        assert gap.psnr_db[gap_scores.CUBIC] > 20


def test_the_evaluation_reports_the_gaps_that_it_loses(model: Model) -> None:
    found = slice_repair_evaluation.evaluate(model, root=None, quick=True, progress=lambda done, step: None)
    assert found.tables[0].rows
    assert "Linear or cubic interpolation is better in" in found.failures
    assert found.metrics["simulated_cubic_psnr_db"] == pytest.approx(found.metrics["simulated_psnr_db"], abs=0.3)
