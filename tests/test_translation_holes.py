"""Plans with holes: the plan's rules, the cubic fill, what training hides, and a network that begins as the spline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

import model_zoo
from model_zoo.training import translation as recipe
from model_zoo.training.recipe import make_simulated_sources, seeded
from model_zoo.training.translation_holes import draw_measured
from model_zoo.translation import holes
from model_zoo.translation import network as networks
from model_zoo.translation import plan as plans
from model_zoo.translation.plan import PlanError

pytestmark = pytest.mark.fast

PLAN = plans.read(Path(model_zoo.__path__[0]) / "translation" / "slice_repair.toml")
SMOKE = recipe.make_recipe_of(PLAN).configurations["smoke"]
SOURCES = make_simulated_sources(phantom=True)


def change(**changes: Any) -> plans.Plan:
    return plans.parse(PLAN.model_dump(mode="json") | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": "3d"}, "2.5d:5"),
        ({"space": "2.5d:3"}, "2.5d:5"),
        ({"labels": "structures"}, "no labels"),
        ({"covariates": ["age"]}, "no covariates"),
        ({"targets": [{"name": "t2w", "modality": "MR", "scale": "percentile:99", "code": 1}]}, "of one name"),
        ({"holes": 1.5}, "holes"),
        ({"holes": 0.0}, "only source is itself"),
    ],
)
def test_a_plan_with_holes_repairs_one_series_from_slices_on_both_sides(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        change(**changes)


def test_windows_leave_measured_slices_beside_the_gap_and_differ_in_its_length() -> None:
    plan, generator = change(holes=0.9), seeded(1)
    lengths = set()
    for _ in range(400):
        measured = draw_measured(plan, generator)
        missing = [n for n, each in enumerate(measured) if not each]
        holes.check_gaps([n + 2 for n in missing], plan.slices + 4, plan.most_missing)
        assert not missing or plan.slices // 2 in missing
        lengths.add(len(missing))
    assert {0, 1, 2, 3} <= lengths


def test_the_fill_is_the_spline_through_measured_slices_and_keeps_them() -> None:
    window = torch.rand(9, 4, 5, generator=seeded(2))
    measured = [True, True, True, True, False, False, True, True, True]
    filled = holes.fill_by_spline(torch.where(torch.tensor(measured)[:, None, None], window, torch.nan), measured)
    at = np.flatnonzero(measured)
    expected = CubicSpline(at, window.numpy()[at])([4, 5])
    np.testing.assert_allclose(filled[4:6], expected, atol=1e-5)
    assert torch.equal(filled[at], window[at])


@pytest.mark.parametrize(
    ("missing", "message"),
    [([4, 5, 6, 7], "4 neighbouring slices"), ([1], "1 measured slices on one side"), ([4, 6], "1 measured slices")],
)
def test_gaps_that_training_does_not_cover_are_refused(missing: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        holes.check_gaps(missing, 20, 3)


def test_the_untrained_network_gives_the_spline_and_training_changes_it() -> None:
    c = replace(SMOKE, batch=6)
    batch = recipe.draw_batch(c, SOURCES.train, seeded(0, 1))
    torch.manual_seed(0)
    network = recipe.make_network(c)
    middle = (batch["input"][:, :1, 4:5] + 1) / 2
    torch.testing.assert_close(network(batch["input"])[:, :1], middle)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        loss = recipe.compute_loss(network, batch, c)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # unknown to the stubs
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    described = networks.make_network(recipe.describe_inference(c)["network_def"])
    described.load_state_dict(network.state_dict())


def test_the_target_is_the_scan_and_its_hidden_slice_is_not_in_the_input() -> None:
    batch = recipe.draw_batch(replace(SMOKE, batch=8), SOURCES.train, seeded(0, 4))
    assert float(batch["input"][:, 1, 4].abs().max()) == 0.0, "the middle slice is never measured where holes is 1"
    shown = (batch["input"][:, 0, 4] + 1) / 2
    assert float((shown - batch["target"][:, 0, 0]).abs().mean()) > 1e-3


def test_missing_slices_of_a_volume_come_in_their_order_from_other_slices_only() -> None:
    network = recipe.make_network(SMOKE)
    image = torch.rand(16, 13, 10, generator=seeded(3))
    p = holes.predict_missing(network, PLAN, image, [9, 5])
    assert p.mean.shape == p.sd.shape == (2, 13, 10)
    changed = image.clone()
    changed[[5, 9]] = 7.0
    assert torch.equal(holes.predict_missing(network, PLAN, changed, [9, 5]).mean, p.mean)
    expected = CubicSpline(np.delete(np.arange(1, 10), [4, 8]), np.delete(image[1:10].numpy(), [4, 8], axis=0))(5)
    np.testing.assert_allclose(p.mean[1], expected.clip(0, 4), atol=1e-5)
