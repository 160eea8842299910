"""Intervals from the errors on validation subjects: exact ranks, coverage of skewed errors, the bundle's settings."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import torch

from dicomnode.cli import main
from model_zoo import pet_intervals
from model_zoo import pet_synthesis as network
from model_zoo.evaluation.pet_intervals import coverage_by_region
from model_zoo.pet_intervals import COMPOSITE, LEVELS, SUBJECTS
from model_zoo.structures import COUNT, STRUCTURES, number
from model_zoo.training import bundle, loop
from model_zoo.training import pet_synthesis as training
from model_zoo.training.pet_intervals import RegionalErrors, calibrate_intervals, measure_errors
from model_zoo.training.recipe import make_simulated_sources

FRONTAL = number("frontal cortex") - 1


def test_the_factors_are_the_order_statistics_of_split_conformal_prediction() -> None:
    z = torch.arange(1.0, 20.0)[torch.randperm(19, generator=torch.Generator().manual_seed(1))]
    z[::2] *= -1
    assert pet_intervals.fit_factors(z) == (16.0, 19.0)  # 19 subjects: ranks 20 * 0.8 and 20 * 0.95
    assert pet_intervals.fit_factors(torch.cat([z, torch.tensor([math.nan])])) == (16.0, 19.0)
    assert pet_intervals.fit_factors(z[:18]) is None


def test_a_reference_region_whose_suvr_is_one_has_no_factors_of_its_own() -> None:
    assert pet_intervals.fit_factors(1e-6 * torch.randn(50)) is None


def test_without_settings_the_errors_count_as_normal() -> None:
    assert pet_intervals.find_factors({}, "PiB", "insula") == pytest.approx((1.2816, 1.9600), abs=1e-4)


def _make_errors(
    count: int, seed: int, tracers: tuple[str, str] = ("florbetapir", "flortaucipir")
) -> list[RegionalErrors]:
    """Return subjects whose errors are skewed (exponential) and twice as large as the sd says."""
    generator = torch.Generator().manual_seed(seed)
    errors = []
    for _ in range(count):
        error = 0.2 * torch.empty(2, COUNT).exponential_(generator=generator)
        mean = torch.full((2, COUNT), 1.5)
        errors.append(RegionalErrors(tracers, mean + error, mean, torch.full((2, COUNT), 0.1)))
    return errors


def test_skewed_errors_are_covered_where_a_normal_density_fails() -> None:
    settings = calibrate_intervals(iter(_make_errors(1000, 1)))
    fresh = _make_errors(4000, 2)
    held, assumed = coverage_by_region(fresh, settings), coverage_by_region(fresh, {})
    for name in ("frontal cortex", "insula"):
        for level in LEVELS:
            assert held["florbetapir", name, level] == pytest.approx(level, abs=0.035)
        assert assumed["florbetapir", name, 0.80] < 0.55
    assert set(settings["interval_factors"]) == {"florbetapir", "flortaucipir"}
    found = settings["interval_factors"]["florbetapir"]
    assert set(found) == {COMPOSITE, SUBJECTS, *(s.name for s in STRUCTURES)}
    assert found[SUBJECTS] == 1000


def test_a_tracer_with_too_few_subjects_has_no_ends_and_its_missing_images_do_not_count() -> None:
    errors = _make_errors(30, 3)
    for each in errors[:15]:
        each.truth[1] = math.nan
    ends = calibrate_intervals(iter(errors))["interval_factors"]
    assert set(ends) == {"florbetapir"}


def test_errors_are_those_of_the_image_by_its_own_reference_region() -> None:
    recipe = training.RECIPE
    c = recipe.configurations["smoke"]
    torch.manual_seed(1)
    net = recipe.make_network(c).eval()
    source = make_simulated_sources(phantom=True).validation
    item = next(training.draw_validation_items(c, source, 1, 1))
    once, twice = measure_errors(net, item), measure_errors(net, replace(item, x0=2 * item.x0))
    assert torch.allclose(once.truth, twice.truth, equal_nan=True, rtol=1e-4)
    reference = network.compute_regional_suvr(
        torch.ones_like(item.x0), item.covariates, network.most_likely_structures(item.conditions.maps[0])
    )
    assert torch.equal(once.truth.isnan(), reference.isnan())
    hidden = measure_errors(net, replace(item, known=(True, False)))
    assert hidden.truth[1].isnan().all()
    assert torch.equal(hidden.truth[0].nan_to_num(), once.truth[0].nan_to_num())


def test_the_bundle_is_calibrated_when_it_is_written_and_can_be_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = training.RECIPE
    sources = make_simulated_sources(phantom=True)
    run = loop.train(recipe, replace(recipe.configurations["smoke"], steps=1), tmp_path / "run", sources=sources)
    made = tmp_path / "bundle"

    def write_and_read() -> dict[str, object]:
        bundle.write(
            recipe, run, made, version="0.0.1", made_on=date(2026, 1, 2), commit="c0ffee", validation=sources.validation
        )
        found: dict[str, object] = json.loads((made / "configs" / "inference.json").read_text())
        return found

    few = write_and_read()
    assert few["interval_factors"] == {}  # two subjects are too few
    monkeypatch.setattr(training, "draw_validation_items", _repeat_items(training.draw_validation_items, 40))
    many = write_and_read()
    assert set(many["interval_factors"]) == {"florbetapir", "flortaucipir"}  # type: ignore[call-overload]
    assert {k: v for k, v in many.items() if k != "interval_factors"} == {
        k: v for k, v in few.items() if k != "interval_factors"
    }


def test_a_bundle_is_calibrated_anew_by_the_command_or_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = training.RECIPE
    sources = make_simulated_sources(phantom=True)
    run = loop.train(recipe, replace(recipe.configurations["smoke"], steps=1), tmp_path / "run", sources=sources)
    made = tmp_path / "bundle"
    bundle.write(recipe, run, made, version="0.0.1", made_on=date(2026, 1, 2), commit="c0ffee")
    settings = made / "configs" / "inference.json"
    before = settings.read_text()
    command = ["train", "pet-synthesis", "--phantom", "--calibrate", str(made), "--version", "0.0.2"]
    assert main(command) == 1
    assert "too few validation subjects" in capsys.readouterr().err
    assert settings.read_text() == before
    monkeypatch.setattr(training, "draw_validation_items", _repeat_items(training.draw_validation_items, 40))
    settings.write_text(json.dumps(json.loads(before) | {"interval_factors": {"PiB": {"insula": [1, 2]}}}))
    assert main([*command[:-1], "0.0.1"]) == 1  # results name the version
    assert "0.0.1 is the version of the bundle as it is" in capsys.readouterr().err
    assert main(command) == 0
    found = json.loads(settings.read_text())["interval_factors"]
    assert set(found) == {"florbetapir", "flortaucipir", "PiB"}  # what has too few subjects stays
    metadata = json.loads((made / "configs" / "metadata.json").read_text())
    assert metadata["version"] == "0.0.2"
    assert metadata["calibrated_on"].startswith("phantom, 20")
    assert main(["train", "mri-prior", "--phantom", "--calibrate", str(made)]) == 1
    assert "nothing to calibrate" in capsys.readouterr().err


def _repeat_items(draw: object, times: int) -> object:
    def repeated(*arguments: object) -> object:
        items = list(draw(*arguments))  # type: ignore[operator]
        return (item for _ in range(times) for item in items)

    return repeated
