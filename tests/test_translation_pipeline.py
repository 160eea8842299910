"""The pipeline ``translate:NAME``: exact scales on the image's grid, refusals, checks, and the acquired target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dicomnode.config import load
from dicomnode.deployment import pipeline_facts, pipeline_names
from dicomnode.errors import ConfigError
from model_zoo import registry, smoke
from model_zoo.bundle import BundleError, Model
from model_zoo.structures import BRAIN
from model_zoo.training import bundle, loop, recipe
from model_zoo.training import translation as training
from model_zoo.translation import network as networks
from model_zoo.translation import plan as plans
from model_zoo.translation.plan import Plan
from pipelines import translation, translation_checks, translation_inputs
from pipelines.contract import (
    Case,
    Covariates,
    Finding,
    Grid,
    Image,
    Measurement,
    Note,
    ParametricMap,
    Refused,
    Sourced,
    Volume,
)
from tests.bundles import phantom, phantom_grid, write_anatomy_bundle
from tests.peers import write_config
from tests.scanner import make_grid
from tests.translation_bundle import SD, write_translation_bundle

CT = plans.parse({
    "name": "ct",
    "spacing_mm": 2.0,
    "covariates": ["age", "sex"],
    "sources": [
        {"name": "t1w", "modality": "MR", "scale": "percentile:99"},
        {"name": "t2w", "modality": "MR", "scale": "percentile:99"},
    ],
    "targets": [
        {"name": "ct", "modality": "CT", "scale": "window:-1024,2000", "unit": "[hnsf'U]", "code": 1},
        {"name": "t2w", "modality": "MR", "scale": "percentile:99", "code": 2},
    ],
})  # fmt: skip
HEAD = plans.parse({
    "name": "head",
    "spacing_mm": 4.0,
    "labels": "structures",
    "sources": [{"name": n, "modality": "MR", "scale": "tissue:white"} for n in ("t1w", "flair")],
    "targets": [{"name": "t2w", "modality": "MR", "scale": "tissue:white", "code": 1}],
})  # fmt: skip


def load_model(folder: Path, plan: Plan, **metadata: Any) -> Model:
    return registry.load_from(registry.read_facts(write_translation_bundle(folder / plan.name, plan, **metadata)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(tmp_path_factory.mktemp("models"), CT)


def make_body(grid: Grid) -> NDArray[np.float32]:
    """Return a smooth body in air of 0, so that resampling changes little."""
    axes = [np.linspace(-1, 1, n) for n in grid.shape]
    k, j, i = np.meshgrid(*axes, indexing="ij")
    values = np.clip(1.2 - (k**2 + j**2 + i**2) ** 0.5 * 1.3, 0, None) * (1 + 0.3 * np.sin(4 * j))
    return np.asarray(900 * values, np.float32)


GRID = make_grid("oblique", (30, 34, 28), (2.0, 2.0, 2.0), (-30, 12, 40))


def make_case(facts: Mapping[str, Any] | None = None, **more: Any) -> Case:
    return Case({"image": Volume(make_body(GRID), GRID), **more}, {"modality": "MR", "te_ms": 3.0, **(facts or {})})


def run(case: Case, model: Model, **options: Any) -> list[Finding]:
    return translation.run(case, model, translation.Options(**options), 1, lambda done, step: None)


def measured(findings: list[Finding]) -> dict[str, float]:
    return {each.name: each.value for each in findings if isinstance(each, Measurement)}


@pytest.mark.parametrize(("orientation", "most_hu"), [("axial", 3.0), ("oblique", 25.0)])
def test_the_result_has_the_target_s_unit_and_the_image_s_grid(orientation: str, most_hu: float, model: Model) -> None:
    grid = make_grid(orientation, GRID.shape, (2.0, 2.0, 2.0), (-30, 12, 40))
    findings = run(Case({"image": Volume(make_body(grid), grid)}, {"modality": "MR"}), model, target="ct")
    (image,) = [each for each in findings if isinstance(each, Image)]
    (sd,) = [each for each in findings if isinstance(each, ParametricMap)]
    assert (image.name, image.volume.unit, image.modality) == ("ct", "[hnsf'U]", "")
    assert image.volume.grid.matches(grid)
    body = make_body(grid)
    level = np.quantile(body[body > 45], 0.99)
    middle = (slice(8, 22),) * 3
    expected = 3024 * np.clip(body / level, 0, 4) - 1024
    assert np.abs(image.volume.data - expected)[middle].mean() < most_hu, "the rest is resampling to LPS and back"
    assert float(image.volume.data[0, 0, 0]) == pytest.approx(-1024, abs=1), "air, also beyond the network's grid"
    assert float(sd.volume.data[15, 15, 15]) == pytest.approx(3024 * SD, rel=0.01)


def test_notes_say_that_it_is_no_acquisition_and_what_was_missing(model: Model) -> None:
    notes = {each.name: each.text for each in run(make_case(), model, target="ct") if isinstance(each, Note)}
    assert "It is not an acquisition" in notes["translation"]
    assert notes["sources"] == "Made without t2w, which this model would take as well"


def test_checks_see_the_same_body_and_its_edges_and_a_bundle_s_limits_exist(model: Model) -> None:
    found = measured(run(make_case(), model, target="ct"))
    assert found["overlap with the source"] > 0.99
    assert found["edges of the source"] > 0.99
    assert set(model.metadata["output_limits"]["hold_below"]) <= set(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "ct makes ct, t2w: the option target has to say which"),
        ({"target": "pd"}, "option target: no target 'pd'; there are: ct, t2w"),
        ({"target": "ct", "source": "pd"}, "option source: no source 'pd'; there are: t1w, t2w"),
        ({"target": "t2w", "source": "t2w"}, "the image is the t2w that is to be made"),
        ({"target": "ct", "evaluate": True}, "no series of the study is the ct to compare with"),
    ],
)
def test_options_that_do_not_fit_are_refused(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        run(make_case(), model, **options)


def test_a_target_that_the_study_has_is_refused_and_compared_on_request(model: Model) -> None:
    grid = make_grid("axial", GRID.shape, (2.0, 2.0, 2.0), (-30, 12, 40))
    body = make_body(grid)
    level = np.quantile(body[body > 45], 0.99)
    acquired = Volume(np.asarray(3024 * np.clip(body / level, 0, 4) - 924, np.float32), grid, "[hnsf'U]")
    facts = {"modality": "MR", "ct": {"modality": "CT", "same_frame": True}}
    case = Case({"image": Volume(body, grid), "ct": acquired}, facts)
    with pytest.raises(Refused, match="the study has the ct that is to be made"):
        run(case, model, target="ct")
    found = measured(run(case, model, target="ct", evaluate=True))
    assert found["mean absolute error"] == pytest.approx(100, rel=0.1)
    assert found["PSNR to the acquired"] == pytest.approx(20 * np.log10(3024 / 100), abs=1.0)
    assert found["within two standard deviations"] == 1.0
    assert 0.5 < found["SSIM to the acquired"] <= 1.0


def test_the_same_series_twice_or_in_another_place_is_refused(model: Model) -> None:
    with pytest.raises(Refused, match="t1w is there twice"):
        run(make_case(t1w=Volume(make_body(GRID), GRID)), model, target="ct")
    elsewhere = make_case({"t2w": {"same_frame": False}}, t2w=Volume(make_body(GRID), GRID))
    with pytest.raises(Refused, match="t2w is of another frame of reference"):
        run(elsewhere, model, target="ct")
    acquired = make_case({"ct": {"modality": "CT", "same_frame": False}}, ct=Volume(make_body(GRID), GRID))
    with pytest.raises(Refused, match="ct is of another frame of reference"):
        run(acquired, model, target="ct", evaluate=True)


def test_a_series_without_a_frame_of_reference_holds_the_result(model: Model) -> None:
    case = make_case({"t2w": {"same_frame": None, "te_ms": 90.0}}, t2w=Volume(make_body(GRID), GRID))
    notes = [each for each in run(case, model, target="ct") if isinstance(each, Note) and each.holds_result]
    assert [note.text for note in notes] == [
        "image or t2w states no frame of reference: whether they show the same place is not known"
    ]


def test_the_image_keeps_to_the_contract_of_what_it_is_said_to_be(model: Model) -> None:
    with pytest.raises(Refused, match=r"t2w: Echo Time .* is 3 ms; ct .* takes 60 to 700 ms"):
        run(make_case(), model, target="ct", source="t2w")


def test_an_empty_image_has_no_scale(model: Model) -> None:
    case = Case({"image": Volume(np.zeros(GRID.shape, np.float32), GRID)}, {"modality": "MR"})
    with pytest.raises(Refused, match="t1w: its percentile 99 is 0: no scale"):
        run(case, model, target="ct")


def test_a_required_source_is_needed(tmp_path: Path) -> None:
    content = CT.model_dump(mode="json")
    content["sources"][1]["required"] = True
    with pytest.raises(Refused, match="the model needs t2w"):
        run(make_case(), load_model(tmp_path, plans.parse(content)), target="ct")


def test_what_the_sources_do_not_hold_is_refused_and_held_where_it_is_accepted(tmp_path: Path) -> None:
    content = CT.model_dump(mode="json") | {"accepted_risk": "a phantom"}
    content["sources"] = [{"name": "fdg", "modality": "PT", "scale": "percentile:99"}]
    content["targets"] = content["targets"][:1]
    model = load_model(tmp_path, plans.parse(content))
    case = make_case({"modality": "PT"})
    with pytest.raises(Refused, match=r"not the anatomy that CT shows; the option accept_risk"):
        run(case, model)
    (risk,) = [n for n in run(case, model, accept_risk=True) if isinstance(n, Note) and n.name == "risk"]
    assert risk.holds_result
    assert risk.text.endswith("The plan: a phantom")


def test_the_sources_of_the_case_have_to_hold_the_target_not_only_those_of_the_plan(tmp_path: Path) -> None:
    content = CT.model_dump(mode="json")
    content["sources"] = [
        {"name": n, "modality": m, "scale": "percentile:99"} for n, m in (("fdg", "PT"), ("t2w", "MR"))
    ]
    content["targets"] = content["targets"][:1]
    model = load_model(tmp_path, plans.parse(content))
    case = make_case({"modality": "PT", "t2w": {"modality": "MR", "te_ms": 90.0}})
    with pytest.raises(Refused, match=r"PET shows uptake.*; the model makes ct with its other sources only"):
        run(case, model, target="ct", accept_risk=True)
    both = Case({**case.inputs, "t2w": Volume(make_body(GRID), GRID)}, case.facts)
    assert run(both, model, target="ct")


def test_covariates_go_in_or_are_unknown(model: Model) -> None:
    known = make_case(covariates=Covariates(age_years=Sourced(60.0, "a header"), sex=Sourced("F", "a header")))
    assert run(known, model, target="ct")
    assert run(make_case(covariates=Covariates()), model, target="ct")


@pytest.fixture(scope="module")
def head_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("head")
    own = load_model(folder, HEAD)
    anatomy = registry.load_from(registry.read_facts(write_anatomy_bundle(folder / "helpers")))
    return Model(**{**vars(own), "helpers": {"anatomy": anatomy}})


def test_a_head_is_segmented_scaled_by_its_white_matter_and_cut_to_it(head_model: Model) -> None:
    values, structure = phantom()
    grid = phantom_grid()
    findings = run(Case({"image": Volume(200 * values, grid)}, {"modality": "MR"}), head_model)
    (image,) = [each for each in findings if isinstance(each, Image)]
    assert (image.name, image.volume.unit) == ("t2w", "1")
    assert "1 is the median of white matter" in image.description
    brain = np.isin(structure, BRAIN)
    assert float(np.median(image.volume.data[structure == 1])) == pytest.approx(1.0, abs=0.15)
    assert float(image.volume.data[structure == 0].max()) < 1.0
    assert float(image.volume.data[0].max()) == 0.0
    assert brain.any()
    assert 0 <= measured(findings)["overlap with the source"] <= 1


def test_further_sources_of_a_head_are_registered(head_model: Model) -> None:
    values, _ = phantom()
    grid = phantom_grid()
    moved = Grid(grid.shape, grid.affine_mm.copy())
    moved.affine_mm[:3, 3] += (6.0, -5.0, 4.0)
    case = Case(
        {"image": Volume(200 * values, grid), "flair": Volume(90 * values, moved)},
        {"modality": "MR", "flair": {"modality": "MR", "ti_ms": 2000.0, "same_frame": False}},
    )
    plan = plans.parse(head_model.settings["plan"])
    examination = translation_inputs.read_examination(case, plan, plan.targets[0], "", head_model, evaluate=False)
    prepared = translation_inputs.prepare_sources(examination, plan, head_model, 1, lambda done, step: None)
    assert prepared.structure is not None
    a, b = (prepared.volumes[name][prepared.structure > 0] for name in ("t1w", "flair"))
    assert float((a - b).abs().median()) < 0.05
    assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) > 0.9


def test_a_bundle_is_a_pipeline_of_this_name_with_the_plan_s_inputs(tmp_path: Path) -> None:
    config = load(write_config(tmp_path / "node"))
    write_translation_bundle(config.models_dir / "ct", CT)
    write_anatomy_bundle(config.models_dir)
    pipeline = pipeline_names.resolve_pipeline("translate:ct", config)
    assert [each.name for each in pipeline.inputs] == ["image", "t1w", "t2w", "ct", "covariates"]
    assert [each.required for each in pipeline.inputs] == [True, False, False, False, False]
    assert "translate:ct" in pipeline_names.list_pipelines(config)
    assert pipeline_names.allows_bundle("translate:ct", "ct")
    assert not pipeline_names.allows_bundle("translate:ct", "anatomy")
    described = pipeline_facts.describe_pipeline("translate:ct", config)
    assert {each["name"] for each in described["options"]} == {"source", "target", "evaluate", "accept_risk"}
    with pytest.raises(ConfigError, match="the pipeline needs the name of its bundle: translate:NAME"):
        pipeline_names.check_pipeline("translate", config)
    with pytest.raises(BundleError, match="has no plan, so it translates nothing"):
        pipeline_names.resolve_pipeline("translate:anatomy", config)


@pytest.mark.parametrize("space", ["3d", "2d", "2.5d:3"])
def test_the_smoke_test_of_an_installation_runs_networks_of_every_space(space: str, tmp_path: Path) -> None:
    plan = plans.parse(training.MR_CONTRASTS.model_dump(mode="json") | {"space": space})
    made = training.make_recipe_of(plan)
    c = replace(made.configurations["smoke"], steps=1, warmup=1)
    run_folder = loop.train(made, c, tmp_path / "run", sources=recipe.make_simulated_sources(phantom=True))
    bundle.write(made, run_folder, tmp_path / "bundle", version="0.1.0", made_on=date(2026, 1, 2), commit="c0ffee")
    assert smoke.run(registry.read_facts(tmp_path / "bundle"), "cpu").device == "cpu"


def test_a_ct_of_a_head_has_no_overlap_because_it_is_cut_to_the_structures(head_model: Model) -> None:
    values, structure = phantom()
    grid, labels, x = phantom_grid(), torch.from_numpy(structure), torch.from_numpy(np.float32(values))
    prepared = translation_inputs.PreparedSources(grid, {"t1w": x}, labels, labels > 0)
    target = plans.PlannedTarget(name="ct", modality="CT", scale="window:-1024,2000", unit="[hnsf'U]", code=2)
    prediction = networks.Prediction(torch.where(labels > 0, 1.0, 0.0), torch.zeros_like(x))
    plan = plans.parse(head_model.settings["plan"])
    found = translation_checks.check_result(prediction, prepared, plan, target, head_model)
    assert [each.name for each in found if isinstance(each, Measurement)] == [
        "edges of the source", "mean standard deviation"
    ]  # fmt: skip
