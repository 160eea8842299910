"""The engine flow of translation: samples of a Gaussian with known posterior, its training, and its results."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model_zoo import registry, smoke
from model_zoo.bundle import Model
from model_zoo.networks.mean_and_flow import TIME_FEATURES, MeanAndFlow
from model_zoo.training import bundle, checkpoint, loop
from model_zoo.training import translation as recipe
from model_zoo.training.recipe import make_simulated_sources, seeded
from model_zoo.translation import flow
from model_zoo.translation import plan as plans
from model_zoo.translation.network import Conditions
from pipelines import translation
from pipelines.contract import Case, Finding, Image, ParametricMap, Volume
from tests.scanner import make_grid

PLAN = plans.parse({
    "name": "t2w_samples",
    "engine": "flow",
    "spacing_mm": 4.0,
    "patch": 16,
    "sources": [{"name": "t1w", "modality": "MR", "scale": "percentile:99"}],
    "targets": [{"name": "t2w", "modality": "MR", "scale": "percentile:99", "code": 1}],
})  # fmt: skip
SD = 0.3 / 2**0.5
"""Posterior standard deviation of t, N(1, 0.3^2), given s = t + 0.3 n; its mean is (1 + s) / 2."""
KAPPA = 0.25


class _PointwiseFlow(nn.Module):
    """The exact mean, and a velocity that is linear in the distance from it, at each voxel by itself."""

    stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1 + TIME_FEATURES, 32), nn.SiLU(), nn.Linear(32, 2))

    def mean(self, x: Tensor, embedding: Tensor, tokens: Tensor | None) -> Tensor:
        source = (x[:, :1] + 1) / 2
        return torch.cat([(1 + source) / 2, torch.zeros_like(source)], dim=1)

    def velocity(self, x: Tensor, embedding: Tensor, tokens: Tensor | None) -> Tensor:
        time = embedding[:, 1:, None, None, None].expand(-1, -1, *x.shape[2:])
        slope, shift = self.layers(torch.cat([x[:, :1], time], dim=1).movedim(1, -1)).movedim(-1, 1).chunk(2, dim=1)
        output: Tensor = slope * (x[:, 3:4] - x[:, 2:3]) + shift
        return output


def draw_pair(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    target = 1 + 0.3 * torch.randn(32, 1, 1, 6, 6, generator=generator)
    source = target + 0.3 * torch.randn(target.shape, generator=generator)
    return torch.cat([2 * source - 1, torch.ones_like(source)], dim=1), target


@pytest.fixture(scope="module")
def gaussian() -> _PointwiseFlow:
    """Return a flow trained on the Gaussian."""
    torch.manual_seed(0)
    network, generator = _PointwiseFlow(), seeded(1)
    c = Conditions(torch.ones(32, 1), torch.zeros(32, 0), torch.zeros(32, 0, 0))
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 600)
    for _ in range(600):
        x, target = draw_pair(generator)
        loss = flow.compute_flow_error(network, x, target, c, KAPPA).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # unknown to the stubs
        optimiser.step()
        schedule.step()
    return network


@pytest.mark.parametrize("steps", [1, 4, 8, 32])
def test_on_gaussians_samples_have_the_posterior_mean_and_the_sd_that_euler_gives(
    steps: int, gaussian: _PointwiseFlow
) -> None:
    c = Conditions(torch.ones(1, 1), torch.zeros(1, 0), torch.zeros(1, 0, 0))
    for source in (0.7, 1.3):
        x = torch.stack([torch.full((8, 8, 8), 2 * source - 1), torch.ones(8, 8, 8)])
        mean = torch.full((8, 8, 8), (1 + source) / 2)
        found = flow.draw_samples(
            gaussian, x, mean, c, kappa=KAPPA, steps=steps, samples=4, generator=torch.Generator().manual_seed(2)
        )
        assert float(found.mean()) == pytest.approx((1 + source) / 2, abs=0.03)
        assert float(found.std()) == pytest.approx(flow.euler_sd_factor(steps, KAPPA, SD) * SD, abs=0.15 * SD)


def test_many_steps_of_euler_give_the_whole_sd_and_one_none() -> None:
    factors = [round(flow.euler_sd_factor(steps, 1.0, 1.0), 2) for steps in (1, 4, 8, 16, 1000)]
    assert factors == [0.0, 0.72, 0.85, 0.92, 1.0]


def make_small_recipe() -> tuple[Any, recipe.Configuration]:
    made = recipe.make_recipe_of(PLAN)
    return made, replace(made.configurations["smoke"], bf16=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, c = make_small_recipe()
    out = tmp_path_factory.mktemp("flow")
    return loop.train(made, c, out, sources=make_simulated_sources(phantom=True))


def test_the_mean_stays_as_it_was_when_the_velocity_began_and_a_resumed_run_ends_as_an_unbroken_one(
    run: Path, tmp_path: Path
) -> None:
    made, c = make_small_recipe()
    saved: dict[int, checkpoint.Checkpoint] = {}

    def keep(line: dict[str, float]) -> None:
        if (tmp_path / checkpoint.NAME).exists():
            at = checkpoint.read(tmp_path / checkpoint.NAME)
            saved[at.step] = at
        if line["step"] == 5:
            raise KeyboardInterrupt

    often = replace(c, checkpoint_every=1)
    sources = make_simulated_sources(phantom=True)
    with pytest.raises(KeyboardInterrupt):
        loop.train(made, often, tmp_path, sources=sources, report=keep)
    resumed = checkpoint.read(loop.train(made, often, tmp_path, sources=sources, resume=True))
    once = checkpoint.read(run)
    assert all(torch.equal(once.average[name], value) for name, value in resumed.average.items())
    (restart,) = c.restarts
    before = saved[restart].network
    changed = {name for name, value in once.network.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("velocity.") for name in changed)


def test_a_flow_without_its_restart_is_refused() -> None:
    made, c = make_small_recipe()
    drawn = made.draw_batch(c, make_simulated_sources(phantom=True).train, seeded(0))
    drawn["progress"] = torch.tensor(0.5)
    with pytest.raises(ValueError, match="the engine flow needs one restart between 0 and 6"):
        made.compute_loss(made.make_network(c), drawn, replace(c, restarts=()))


@pytest.fixture(scope="module")
def model(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    made, _ = make_small_recipe()
    folder = tmp_path_factory.mktemp("bundle")
    bundle.write(made, run, folder, version="0.1.0", made_on=date(2026, 1, 2), commit="c0ffee")
    facts = registry.read_facts(folder)
    assert smoke.run(facts, "cpu").device == "cpu"
    assert translation.make_pipeline(facts).options_type is translation.FlowOptions
    return registry.load_from(facts)


def make_findings(model: Model, seed: int = 1, **options: Any) -> list[Finding]:
    grid = make_grid("axial", (12, 14, 16), (4.0, 4.0, 4.0), (0, 0, 0))
    values = np.random.default_rng(0).uniform(50, 400, grid.shape).astype(np.float32)
    case = Case({"image": Volume(values, grid)}, {"modality": "MR"})
    return translation.run(
        case, model, translation.FlowOptions(samples=3, steps=2, **options), seed, lambda done, step: None
    )


def test_a_result_has_the_mean_the_sd_of_the_samples_and_on_request_one_of_them(model: Model) -> None:
    assert isinstance(model.network, MeanAndFlow)
    findings = make_findings(model, sample=True)
    mean, sample = (each for each in findings if isinstance(each, Image))
    (sd,) = [each for each in findings if isinstance(each, ParametricMap)]
    assert (mean.name, sample.name, sd.image_name) == ("t2w", "sample of t2w", "t2w")
    assert "may be invented" in sample.description
    assert float(sd.volume.data.min()) > 0
    assert not np.array_equal(mean.volume.data, sample.volume.data)
    again, other = make_findings(model, sample=True), make_findings(model, seed=2)
    (same,) = [each for each in again if isinstance(each, Image) and each.name == sample.name]
    assert np.array_equal(same.volume.data, sample.volume.data), "the seed determines the samples"
    (other_mean,) = [each for each in other if isinstance(each, Image)]
    assert np.array_equal(other_mean.volume.data, mean.volume.data), "the mean has no seed"
