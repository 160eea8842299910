"""CT reconstruction with a prior that says nothing: CT numbers, spread, missing angles, and what holds a result."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pydantic
import pytest
import torch

from dicomnode.sinogram.geometry_file import AXIAL, make_plane_grid
from model_zoo import registry
from model_zoo.bundle import Model
from model_zoo.ct_geometry import CtGeometry
from model_zoo.training import ct_prior
from pipelines import ct_inversion, ct_reconstruction
from pipelines.contract import (
    Case,
    Finding,
    Grid,
    Image,
    Measurement,
    Note,
    ParametricMap,
    Projections,
    Refused,
    Segmentation,
    Volume,
)
from pipelines.quality import Outcome, OutputLimits, judge_result
from tests.ct_bundle import write_ct_bundle
from tests.ellipses import draw_image
from tests.sinograms import BODY, FAN, PARALLEL, PHOTONS, make_counts

torch.set_num_threads(1)

QUICK = ct_inversion.Options(steps=2, mean_steps=3, samples=2, bf16=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return registry.load_from(registry.read_facts(write_ct_bundle(tmp_path_factory.mktemp("models"))))


@cache
def scan(beam: CtGeometry, slices: int = 1) -> Projections:
    counts = make_counts(beam, slices)
    grid = make_plane_grid((slices, *beam.shape), (4.0, beam.pixel_mm, beam.pixel_mm), AXIAL, (0.0, 0.0, 0.0))
    lines = np.log(PHOTONS / np.maximum(counts, 0.5)).astype(np.float32)
    return Projections(lines, counts, beam, grid, 4.0, 0.0193)


def run(projections: Projections, model: Model, options: ct_inversion.Options = QUICK, seed: int = 1) -> list[Finding]:
    return ct_reconstruction.run(Case({"projections": projections}), model, options, seed, lambda done, step: None)


def image_of(findings: list[Finding]) -> Volume:
    return next(each.volume for each in findings if isinstance(each, Image))


def number(findings: list[Finding], name: str) -> float:
    return next(each.value for each in findings if isinstance(each, Measurement) and each.name == name)


def notes(findings: list[Finding]) -> dict[str, Note]:
    return {each.name: each for each in findings if isinstance(each, Note)}


@pytest.mark.parametrize("beam", [PARALLEL, FAN], ids=["parallel", "fan"])
def test_ct_numbers_are_those_of_the_object(beam: CtGeometry, model: Model) -> None:
    """Twice the water where both ellipses lie: 1000 HU; once: 0; air: -1000."""
    found = run(scan(beam), model)
    truth = 1000 * (draw_image(BODY, beam)[0].numpy() / 0.0193 - 1)
    hu = image_of(found)
    assert hu.unit == "[hnsf'U]"
    for level in (-1000.0, 0.0, 1000.0):
        even = np.abs(truth - level) < 1
        assert np.median(hu.data[0][even]) == pytest.approx(level, abs=100)
    assert 0.3 < number(found, "chi-square") < 4
    assert notes(found) == {}


def test_all_findings_lie_on_the_grid_of_the_scan(model: Model) -> None:
    projections = scan(PARALLEL, 2)
    found = run(projections, model)
    (sd,) = (each.volume for each in found if isinstance(each, ParametricMap))
    (mask,) = (each for each in found if isinstance(each, Segmentation))
    for grid in (image_of(found).grid, sd.grid, mask.grid):
        assert grid.matches(projections.grid)
    assert (sd.data > 0).all()
    np.testing.assert_array_equal(mask.labels, sd.data > 50)
    assert number(found, "denoiser evaluations") == 3 + 2 * 2 + (3 + 4 * 2)


def test_the_spread_is_larger_with_fewer_photons(model: Model) -> None:
    few = replace(scan(PARALLEL), counts=scan(PARALLEL).counts * np.float32(1e-3))
    one, other = (
        next(each.volume.data for each in run(each, model) if isinstance(each, ParametricMap))
        for each in (scan(PARALLEL), few)
    )
    assert np.median(other) > 1.5 * np.median(one)


def test_a_result_follows_its_seed_and_not_the_batch(model: Model) -> None:
    first, again, other = (
        image_of(run(scan(PARALLEL), model, QUICK.model_copy(update={"batch": batch}), seed)).data
        for batch, seed in ((4, 1), (1, 1), (4, 2))
    )
    np.testing.assert_allclose(first, again, atol=0.5)
    assert not np.allclose(first, other, atol=0.5)


def test_missing_angles_are_named_and_hold_the_result(model: Model) -> None:
    arc = CtGeometry(PARALLEL.shape, PARALLEL.pixel_mm, 24, PARALLEL.bins, PARALLEL.bin_mm, 120.0, 30.0)
    found = run(scan(arc), model)
    assert number(found, "missing angle") == pytest.approx(60)
    note = notes(found)["missing angles"]
    assert "no view between 150 and 210 degrees" in note.text
    assert "the standard deviation does not cover them" in note.text
    assert note.holds_result


def test_half_a_turn_of_a_fan_lacks_twice_the_angle_of_its_image() -> None:
    half = replace(FAN, arc_deg=180.0)
    assert half.missing_deg == pytest.approx(2 * np.rad2deg(np.arcsin(16 * 7.0 / 500)))
    short = CtGeometry((512, 512), 0.8, 600, 736, 1.2, 222.5, 0.0, 595.0)
    assert short.missing_deg == 0
    assert FAN.missing_deg == 0


def test_an_object_beyond_the_detector_is_measured() -> None:
    assert ct_reconstruction.find_truncated_share(scan(PARALLEL)) == 0
    narrow = replace(PARALLEL, bins=22)
    assert ct_reconstruction.find_truncated_share(scan(narrow)) > 0.5


@pytest.mark.parametrize("beam", [PARALLEL, FAN], ids=["parallel", "fan"])
def test_an_object_beyond_the_image_is_measured(beam: CtGeometry) -> None:
    assert ct_reconstruction.find_outside_share(scan(beam)) == 0
    small = scan(replace(beam, shape=(16, 16)))
    assert ct_reconstruction.find_outside_share(small) > 0.1


def test_a_scale_that_nothing_measured_is_not_said_to_be_measured(model: Model) -> None:
    for held_out, text in ((0.0, "no view was held out"), (0.15, "scaled by held-out views")):
        found = run(scan(PARALLEL), model, QUICK.model_copy(update={"held_out": held_out}))
        assert text in next(each.description for each in found if isinstance(each, ParametricMap))


def test_limits_hold_photons_that_are_stated_too_low() -> None:
    limits = OutputLimits.model_validate(ct_prior.RECIPE.facts["output_limits"])
    few = {"chi-square": 0.02, "chi-square, worst slice": 0.02, "median photons": 0.5}
    for name, value in few.items():
        assert judge_result([Measurement(name, value, "1")], limits).outcome is Outcome.HOLD
    uneven = [Measurement("chi-square", 3.0, "1"), Measurement("chi-square, worst slice", 40.0, "1")]
    assert judge_result(uneven, limits).outcome is Outcome.HOLD
    good = [Measurement("chi-square", 0.32, "1"), Measurement("chi-square, worst slice", 1.5, "1")]
    assert judge_result(good, limits).outcome is Outcome.ACCEPT


def test_an_assumed_orientation_holds_the_result_and_assumed_water_does_not(model: Model) -> None:
    for text, holds in (("orientation: axial", True), ("attenuation of water: 0.0193", False)):
        found = run(replace(scan(PARALLEL), assumptions=(text,)), model)
        assert notes(found)["assumed"].holds_result is holds


def test_views_that_contradict_each_other_do_not_fit(model: Model) -> None:
    projections = scan(PARALLEL)
    order = np.random.default_rng(1).permutation(PARALLEL.views)
    mixed = replace(
        projections, line_integrals=projections.line_integrals[:, order], counts=projections.counts[:, order]
    )
    assert number(run(mixed, model), "chi-square") > 4


def test_an_image_is_no_input(model: Model) -> None:
    volume = Volume(np.zeros((1, 8, 8), np.float32), Grid((1, 8, 8), np.eye(4)))
    with pytest.raises(Refused, match="takes projections, not an image"):
        ct_reconstruction.run(Case({"projections": volume}), model, QUICK, 1, lambda done, step: None)


def test_noise_levels_that_do_not_descend_are_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="is not above sigma_min"):
        ct_inversion.Options(sigma_max=0.005)
