"""The recipe of translation: patches with any part of the sources, the loss and its minimum, tables with gaps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor

from model_zoo.simulate.phantom import make_phantom
from model_zoo.training import manifest
from model_zoo.training import translation as recipe
from model_zoo.training import translation_engines as engines
from model_zoo.training import translation_items as items
from model_zoo.training.recipe import Source, make_simulated_sources, seeded
from model_zoo.translation import network as networks
from model_zoo.translation import plan as plans
from model_zoo.translation.network import Conditions
from model_zoo.translation.plan import Plan
from pipelines.anatomy import NO_MAGNITUDES

SMOKE = recipe.CONFIGURATIONS["smoke"]
SOURCES = make_simulated_sources(phantom=True)
SPACES = ("3d", "2d", "2.5d:3")


def with_plan(**changes: Any) -> recipe.Configuration:
    return replace(SMOKE, plan=plans.parse(recipe.MR_CONTRASTS.model_dump(mode="json") | changes))


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    c = replace(SMOKE, batch=24)
    return recipe.draw_batch(c, SOURCES.train, seeded(0, 3))


def available(batch: Mapping[str, Tensor]) -> Tensor:
    """Return 1 for each source that an item has (b, sources)."""
    return batch["input"][:, 4:].flatten(2).amax(2)


def test_items_see_any_part_of_the_sources_but_never_none_nor_the_target(batch: dict[str, Tensor]) -> None:
    present = available(batch)
    assert set(present.flatten().tolist()) == {0.0, 1.0}
    assert set(present.sum(1).tolist()) == {1.0, 2.0, 3.0}
    assert float((present * batch["target_code"]).sum()) == 0.0, "sources and codes have one order in this plan"
    absent = (1 - present)[..., None, None, None] * batch["input"][:, :4]
    assert float(absent.abs().max()) == 0.0
    brightness = batch["brightness"].reshape(24, 4, -1)
    assert float(((1 - present)[..., None] * brightness).abs().max()) == 0.0


def test_a_step_s_batch_depends_on_its_generator_only() -> None:
    first, again = (recipe.draw_batch(SMOKE, SOURCES.train, seeded(5, 1)) for _ in range(2))
    other = recipe.draw_batch(SMOKE, SOURCES.train, seeded(5, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["input"], other["input"])


@pytest.mark.parametrize("space", SPACES)
def test_every_space_learns_predicts_and_is_described(space: str) -> None:
    c = with_plan(space=space)
    drawn = recipe.draw_batch(c, SOURCES.train, seeded(0, 1))
    torch.manual_seed(0)
    network = recipe.make_network(c)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = recipe.compute_loss(network, drawn, c)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # unknown to the stubs
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    x = drawn["input"][0, :, :1, :1, :1].expand(-1, 10, 18, 22)
    first = Conditions(*(each[:1] for each in (drawn["target_code"], drawn["brightness"], drawn["tokens"])))
    p = networks.predict(network, c.plan, x, first)
    assert p.mean.shape == p.sd.shape == (10, 18, 22)
    assert float(p.sd.min()) > 0
    described = networks.make_network(recipe.describe_inference(c)["network_def"])
    described.load_state_dict(network.state_dict())


def test_windows_and_the_whole_volume_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = recipe.draw_batch(SMOKE, SOURCES.train, seeded(0, 1))
    torch.manual_seed(0)
    network = recipe.make_network(SMOKE)
    x = torch.rand(8, 40, 40, 40, generator=seeded(4))
    c = Conditions(*(each[:1] for each in (drawn["target_code"], drawn["brightness"], drawn["tokens"])))
    whole = networks.predict(network, SMOKE.plan, x, c)
    monkeypatch.setattr(networks, "LARGEST_WHOLE", 0)
    monkeypatch.setattr(networks, "WINDOW", 32)
    parts = networks.predict(network, SMOKE.plan, x, c)
    middle = (slice(18, 22),) * 3
    torch.testing.assert_close(parts.mean[middle], whole.mean[middle], atol=0.02, rtol=0)


class _FixedNetwork(torch.nn.Module):
    """A network of slices that returns fixed channels."""

    def __init__(self, channels: Tensor) -> None:
        super().__init__()
        self.channels = torch.nn.Parameter(channels)

    def forward(self, x: Tensor, time: Tensor, context: Tensor, class_labels: Tensor) -> Tensor:
        return self.channels


def compute_loss(mean: Tensor, log_b: float, batch: dict[str, Tensor]) -> float:
    channels = torch.cat([mean, torch.full_like(mean, log_b)], dim=1)[:, :, 0]
    return float(recipe.compute_loss(_FixedNetwork(channels), batch, with_plan(space="2d")).detach())


def test_the_loss_is_least_at_the_target_and_at_the_scale_of_the_error() -> None:
    drawn = recipe.draw_batch(with_plan(space="2d"), SOURCES.train, seeded(0, 1))
    target = drawn["target"]
    assert compute_loss(target, -3.0, drawn) < compute_loss(target + 0.05, -3.0, drawn)
    off = target + 0.1
    losses = {log_b: compute_loss(off, log_b, drawn) for log_b in (-4.0, float(np.log(0.1)), -1.0)}
    assert min(losses, key=losses.__getitem__) == pytest.approx(np.log(0.1)), "b is the mean error"


def test_a_lesion_weighs_more_than_other_tissue() -> None:
    drawn = recipe.draw_batch(with_plan(space="2d"), SOURCES.train, seeded(0, 1))
    drawn["emphasis"] = torch.zeros_like(drawn["target"])
    drawn["emphasis"][..., :4, :4] = 1.0
    drawn["weight"] = torch.ones_like(drawn["weight"])
    lesion, elsewhere = drawn["target"].clone(), drawn["target"].clone()
    lesion[..., :4, :4] += 0.3
    elsewhere[..., 8:12, 8:12] += 0.3
    assert compute_loss(lesion, -2.0, drawn) > compute_loss(elsewhere, -2.0, drawn) + 0.03


def test_the_simulated_target_is_the_clean_image_in_units_of_white_matter() -> None:
    c = replace(SMOKE, head_shape=(48, 56, 48), batch=1)
    plan = c.plan
    subject = items.draw_subject(c, SOURCES.train, seeded(1, 1))
    for target in plan.targets:
        clean, scan = subject.targets[target.name].float(), subject.sources[target.name].float()
        inside = subject.inside > 0.5
        error = (clean - scan)[inside]
        assert float(error.std()) > 0.01, "the scan has noise"
        assert float(clean[inside].median()) < 3


def write_image(path: Path, values: Tensor) -> str:
    nibabel.Nifti1Image(values.numpy().T.astype(np.float32), np.diag([-4.0, -4.0, 4.0, 1.0])).to_filename(path)
    return path.name


CT_PLAN = plans.parse({
    "name": "ct",
    "spacing_mm": 4.0,
    "patch": 16,
    "covariates": ["age", "sex"],
    "sources": [{"name": n, "modality": "MR", "scale": "percentile:99"} for n in ("t1w", "t2w")],
    "targets": [
        {"name": "ct", "modality": "CT", "scale": "window:-1024,2000", "unit": "[hnsf'U]", "code": 1},
        {"name": "t2w", "modality": "MR", "scale": "percentile:99", "code": 2},
    ],
})  # fmt: skip


def write_table(folder: Path, plan: Plan) -> manifest.Cohort:
    """Write a table of three rows: all series; no CT; T2w and CT."""
    tissue = make_phantom((24, 28, 24), 8.0).tissue.float()
    names = {
        "t1w": write_image(folder / "t1w.nii.gz", 100 * tissue + 1),
        "t2w": write_image(folder / "t2w.nii.gz", 1800 - 90 * tissue),
        "ct": write_image(folder / "ct.nii.gz", 40 * tissue - 1000),
    }
    rows = [
        f"a,train,{names['t1w']},{names['t2w']},{names['ct']},61,F",
        f"b,train,{names['t1w']},{names['t2w']},,,",
        f"c,validation,,{names['t2w']},{names['ct']},70,M",
    ]
    table = folder / "table.csv"
    table.write_text("\n".join(["subject,split,t1w,t2w,ct,age,sex", *rows]) + "\n")
    made = recipe.make_recipe_of(plan)
    return manifest.read(table, made.columns, check_row=made.check_row)


@pytest.fixture
def cohort(tmp_path: Path) -> manifest.Cohort:
    return write_table(tmp_path, CT_PLAN)


def test_rows_with_gaps_give_items_of_what_they_have(cohort: manifest.Cohort) -> None:
    c = replace(SMOKE, plan=CT_PLAN, batch=8)
    train = Source((), cohort=cohort.select_split("train"))
    drawn = [recipe.draw_batch(c, train, seeded(9, n)) for n in range(4)]
    codes = torch.cat([each["target_code"] for each in drawn])
    present = torch.cat([each["input"][:, 2:].flatten(2).amax(2) for each in drawn])
    assert set(codes.argmax(1).tolist()) == {0, 1}
    of_t2w = present[codes[:, 1] == 1]
    assert torch.equal(of_t2w, torch.tensor([1.0, 0.0]).expand_as(of_t2w)), "never from itself"
    known = torch.cat([each["tokens"] for each in drawn])[:, :, 2]
    assert {0.0, 1.0} == set(known.flatten().tolist())
    alone = Source((), cohort=cohort.select_split("validation"))
    assert torch.equal(recipe.draw_batch(c, alone, seeded(1))["target_code"].argmax(1), torch.zeros(8).long())


def test_measured_targets_keep_their_window(cohort: manifest.Cohort) -> None:
    c = replace(SMOKE, plan=CT_PLAN, batch=4)
    drawn = recipe.draw_batch(c, Source((), cohort=cohort.select_split("validation")), seeded(2))
    hounsfield = drawn["target"] * 3024 - 1024
    assert -1001 < float(hounsfield.min()) < float(hounsfield.max()) < 40 * 17 - 990


def test_a_recipe_of_a_plan_has_its_columns_bundle_and_contract() -> None:
    made = recipe.make_recipe_of(CT_PLAN)
    assert made.bundle == "ct"
    assert [(c.name, c.required) for c in made.columns] == [(n, False) for n in ("t1w", "t2w", "ct", "age", "sex")]
    assert {"fact": "te_ms", "between": [60, 700]} in made.facts["input_contract"]["t2w"]
    modality, image_type = made.facts["input_contract"]["image"]
    assert modality == {"fact": "modality", "one_of": ["CT", "MR"]}
    assert image_type["fact"] == "image_type"
    assert frozenset(image_type["none_of"]) == NO_MAGNITUDES


def test_what_the_simulator_does_not_make_needs_a_table() -> None:
    with pytest.raises(ValueError, match="the simulator makes no ct: train with --manifest"):
        recipe.draw_batch(replace(SMOKE, plan=CT_PLAN), SOURCES.train, seeded(0))


def test_a_table_without_a_pair_is_refused(cohort: manifest.Cohort) -> None:
    row = cohort.rows[2]
    alone = replace(cohort, rows=(replace(row, images={"ct": row.images["ct"]}),))
    with pytest.raises(ValueError, match="no row has a target and another series that is a source"):
        recipe.draw_batch(replace(SMOKE, plan=CT_PLAN), Source((), cohort=alone), seeded(0))


def test_a_configuration_keeps_its_plan() -> None:
    c = replace(SMOKE, plan=CT_PLAN)
    assert recipe.Configuration.from_json(c.to_json()) == c
    assert recipe.Configuration.from_json(c.to_json()) != SMOKE


class _PointwiseNetwork(torch.nn.Module):
    """Two layers on each voxel, as a network of slices."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(2, 16, 1), torch.nn.SiLU(), torch.nn.Conv2d(16, 2, 1))

    def forward(self, x: Tensor, time: Tensor, context: Tensor, class_labels: Tensor) -> Tensor:
        output: Tensor = self.layers(x)
        return output


def draw_gaussian_batch(generator: torch.Generator) -> dict[str, Tensor]:
    """Draw t of N(1, 0.3^2) and a source t + 0.3 n: the posterior is N((1 + s) / 2, 0.3^2 / 2)."""
    target = 1 + 0.3 * torch.randn(4, 1, 1, 24, 24, generator=generator)
    source = target + 0.3 * torch.randn(target.shape, generator=generator)
    ones = torch.ones_like(target)
    return {
        "input": torch.cat([2 * source - 1, ones], dim=1),
        "target": target,
        "weight": ones,
        "emphasis": 0 * ones,
        "target_code": torch.ones(4, 1),
        "brightness": torch.zeros(4, 0),
        "tokens": torch.zeros(4, 0, 0),
        "span": torch.ones(4),
    }


def test_on_gaussians_regression_finds_the_posterior_mean_and_1_13_times_its_sd() -> None:
    """A Laplace scale b = mean |e| of a Gaussian error gives sqrt(2) b = 2 / sqrt(pi) standard deviations."""
    torch.manual_seed(0)
    network, generator = _PointwiseNetwork(), seeded(3)
    c = replace(SMOKE, ssim_weight=0.0, laplace_weight=1.0)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 400)
    for _ in range(400):
        loss = recipe.compute_loss(network, draw_gaussian_batch(generator), c)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # unknown to the stubs
        optimiser.step()
        schedule.step()
    source = torch.linspace(0.4, 1.6, 9)
    x = torch.stack([2 * source - 1, torch.ones(9)])[None, :, None, None]
    c_one = Conditions(torch.ones(1, 1), torch.zeros(1, 0), torch.zeros(1, 0, 0))
    mean, log_b = networks.split_output(networks.apply_network(network, x, c_one).detach())
    torch.testing.assert_close(mean.flatten(), (1 + source) / 2, atol=0.03, rtol=0)
    sd = 2**0.5 * log_b.exp().flatten() / (0.3 / 2**0.5)
    torch.testing.assert_close(sd, torch.full((9,), 1.128), atol=0.12, rtol=0)


def test_the_engine_adversarial_has_its_weight_and_judges_the_target_with_its_input() -> None:
    made = recipe.make_recipe_of(with_plan(engine="adversarial").plan)
    c = made.configurations["smoke"]
    assert c.adversarial_weight == engines.ADVERSARIAL_WEIGHT > 0
    assert recipe.RECIPE.configurations["smoke"].adversarial_weight == 0
    assert made.opponent is not None
    drawn = recipe.draw_batch(c, SOURCES.train, seeded(0, 1))
    _, judged = made.opponent.compute_loss(made.make_network(c), drawn, c)
    pair = judged["target"]
    assert torch.equal(pair.true[:, :8], drawn["input"])
    assert torch.equal(pair.true[:, 8:], drawn["target"])
    assert pair.made[:, 8:].requires_grad
    assert made.opponent.make_judges(c)["target"](pair.true)[-1].isfinite().all()


def test_a_row_that_teaches_nothing_is_refused_by_its_line(tmp_path: Path) -> None:
    write_table(tmp_path, CT_PLAN)
    table = tmp_path / "table.csv"
    table.write_text(
        table.read_text() + "d,test,,,ct.nii.gz,,\ne,test,t1w.nii.gz,,,,\nf,test,t1w.nii.gz,,ct.nii.gz,,\n"
    )
    made = recipe.make_recipe_of(CT_PLAN)
    with pytest.raises(manifest.ManifestError) as refused:
        manifest.read(table, made.columns, check_row=made.check_row)
    assert [problem.partition(":")[0] for problem in refused.value.problems] == ["line 5", "line 6"]
    assert "no target with another series that is a source" in refused.value.problems[0]


ADC_PLAN = plans.parse({
    "name": "adc",
    "sources": [{"name": n, "modality": "MR", "scale": "percentile:99"} for n in ("t1w", "t2w", "dwi")],
    "targets": [
        {"name": "adc", "modality": "MR", "scale": "window:0,3000", "unit": "um2/s", "code": 1},
        {"name": "t2w", "modality": "MR", "scale": "percentile:99", "code": 2},
    ],
})  # fmt: skip


def make_subject(*names: str) -> items.PreparedSubject:
    one = torch.ones(16, 16, 16)
    volumes = dict.fromkeys(names, one)
    sources = {name: x for name, x in volumes.items() if name != "adc"}
    targets = {name: x for name, x in volumes.items() if name in ("adc", "t2w")}
    return items.PreparedSubject(sources, targets, one, 0 * one, torch.zeros(0), {})


def test_no_item_has_sources_that_do_not_hold_its_target() -> None:
    c = replace(SMOKE, plan=ADC_PLAN)
    subject = make_subject("t1w", "t2w", "dwi", "adc")
    drawn = [items.draw_patch(c, subject, seeded(4, n)) for n in range(60)]
    adc = [each for each in drawn if each["target_code"][0] == 1]
    assert {float(each["input"][5].max()) for each in adc} == {1.0}, "the third source is the DWI"
    assert {float(each["input"][3].max()) for each in adc} == {0.0, 1.0}
    without = [items.draw_patch(c, make_subject("t1w", "t2w", "adc"), seeded(4, n)) for n in range(10)]
    assert {float(each["target_code"][0]) for each in without} == {0.0}, "no ADC without the DWI"
    accepted = replace(c, plan=ADC_PLAN.model_copy(update={"accepted_risk": "to show it"}))
    drawn = [items.draw_patch(accepted, subject, seeded(4, n)) for n in range(40)]
    assert 0.0 in {float(each["input"][5].max()) for each in drawn if each["target_code"][0] == 1}
