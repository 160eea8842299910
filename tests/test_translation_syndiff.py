"""The engine syndiff of translation: its noise, what data without pairs say, its training, and its results."""

from __future__ import annotations

import math
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
from model_zoo.training import bundle, checkpoint, loop, manifest, syndiff_losses
from model_zoo.training import translation as recipe
from model_zoo.training.opponents import AdversarialConfiguration, Opponent, OpponentRun
from model_zoo.training.parallel import World
from model_zoo.training.recipe import Source, make_simulated_sources, seeded
from model_zoo.translation import plan as plans
from model_zoo.translation import syndiff
from model_zoo.translation.network import Sampling
from pipelines import translation
from pipelines.contract import Case, Finding, Grid, Image, Note, ParametricMap, Volume
from tests.nifti_files import write_nifti
from tests.scanner import make_grid

PLAN: dict[str, Any] = {
    "name": "t2w_unpaired",
    "engine": "syndiff",
    "pairing": "unpaired",
    "space": "2d",
    "spacing_mm": 4.0,
    "patch": 16,
    "sources": [{"name": "t1w", "modality": "MR", "scale": "percentile:99"}],
    "targets": [{"name": "t2w", "modality": "MR", "scale": "percentile:99", "code": 1}],
}
SOURCES = make_simulated_sources(phantom=True)
SD = 0.3
"""Standard deviation of the toy's target t, N(1, 0.3^2), and of its source, which is t or 2 - t."""


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_noise_is_that_of_the_corrected_equation(n: int) -> None:
    t = n / syndiff.STEPS
    assert float(syndiff.KEPT[n]) == pytest.approx(math.exp(-0.1 * t - 19.9 * t**2 / 2), rel=1e-5)
    assert 0 < float(syndiff.GAMMA[n]) < 1


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_step_back_from_the_true_image_has_the_noise_of_the_step_before(n: int) -> None:
    generator = seeded(n)
    x0, a, b, c = (torch.randn(100_000, generator=generator) for _ in range(4))
    step = torch.full((100_000,), n)
    x_n = syndiff.step_forward(syndiff.diffuse(x0, step - 1, a), step, b)
    assert float(x_n.std()) == pytest.approx(1.0, abs=0.02), "of a standard normal image"
    back = syndiff.draw_previous(x_n, x0, step, c)
    assert float((back * x0).mean()) == pytest.approx(math.sqrt(syndiff.KEPT[n - 1]), abs=0.02)
    assert float(back.std()) == pytest.approx(1.0, abs=0.02)
    kept = math.sqrt(1 - float(syndiff.GAMMA[n]))
    assert float((back * x_n).mean()) == pytest.approx(kept, abs=0.02), "as x_{n-1} and x_n of the forward process"


class _Coupled:
    """Exact generators of a toy whose source is 1 + sign (t - 1), voxel by voxel; images are 2 t - 1."""

    def __init__(self, sign: float) -> None:
        self.sign = sign

    def translate_to_source(self, target: Tensor) -> Tensor:
        return 1 + self.sign * (target - 1)

    def translate_to_target(self, source: Tensor) -> Tensor:
        return 1 + self.sign * (source - 1)

    def denoise_target(self, x_t: Tensor, source: Tensor, n: Tensor) -> Tensor:
        return self.translate_to_target(source)

    def denoise_source(self, x_t: Tensor, target: Tensor, n: Tensor) -> Tensor:
        return self.translate_to_source(target)


def draw_toy(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return targets and sources (b, 1, 1, 1) of different patients: both are N(1, (2 SD)^2)."""
    x, y = (1 + 2 * SD * torch.randn(count, 1, 1, 1, generator=generator) for _ in range(2))
    return x, y


class _Judge(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 32, 1), nn.SiLU(), nn.Conv2d(32, 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.layers(x)]


def start_opponent() -> OpponentRun:
    inputs = {"target": 1, "source": 1, "denoised_target": 3, "denoised_source": 3}
    c = AdversarialConfiguration(
        steps=1, batch=1, learning_rate=1e-3, adversarial_weight=1.0, opponent_rate=5e-3, opponent_penalty=0.1
    )
    opponent = Opponent[AdversarialConfiguration](
        lambda _: {name: _Judge(count) for name, count in inputs.items()},
        lambda *_: (torch.zeros(()), {}),
        is_logistic=True,
    )
    return OpponentRun.start(opponent, c, World(torch.device("cpu")))


def test_without_pairs_the_right_and_the_inverted_coupling_have_the_same_loss_and_no_spread() -> None:
    """Data of other patients do not say whether a bright source is a bright or a dark target."""
    x, y = draw_toy(100_000, seeded(1))
    weight = torch.ones_like(x)
    torch.manual_seed(0)
    opponent = start_opponent()
    losses = {}
    for sign in (1.0, -1.0):
        torch.manual_seed(1)
        cycle, judged = syndiff_losses.compute_cycle_loss(_Coupled(sign), x, y, weight, weight)
        assert float(cycle) == pytest.approx(0, abs=1e-6)
        losses[sign] = float(opponent.compute_network_loss(judged).detach())
        assert float(judged["target"].made.std()) == pytest.approx(2 * SD, rel=0.02)
    assert losses[1.0] == pytest.approx(losses[-1.0], rel=0.01)
    source = torch.full((1, 1, 8, 8), 1 + 2 * SD)
    right, inverted = (
        syndiff.draw_samples(_Coupled(sign).denoise_target, source, Sampling(4, 4, torch.Generator().manual_seed(0)), 8)
        for sign in (1.0, -1.0)
    )
    torch.testing.assert_close(right, torch.full_like(right, 1 + SD))
    torch.testing.assert_close(inverted, torch.full_like(inverted, 1 - SD))


class _Linear(nn.Module):
    """Generators that are linear in their inputs less 1, voxel by voxel; those of x_0 at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.guesses = nn.Parameter(torch.tensor([[0.3, 0.3]] * 2))
        self.steps = nn.Parameter(0.3 * torch.randn(2, syndiff.STEPS, 3))

    def translate_to_target(self, source: Tensor) -> Tensor:
        return self.guesses[0, 0] * (source - 1) + self.guesses[0, 1]

    def translate_to_source(self, target: Tensor) -> Tensor:
        return self.guesses[1, 0] * (target - 1) + self.guesses[1, 1]

    def _denoise(self, which: int, x_t: Tensor, other: Tensor, n: Tensor) -> Tensor:
        a, b, shift = self.steps[which][n - 1][..., None, None].unbind(dim=1)
        output: Tensor = a[:, None] * x_t + b[:, None] * (other - 1) + shift[:, None]
        return output

    def denoise_target(self, x_t: Tensor, source: Tensor, n: Tensor) -> Tensor:
        return self._denoise(0, x_t, source, n)

    def denoise_source(self, x_t: Tensor, target: Tensor, n: Tensor) -> Tensor:
        return self._denoise(1, x_t, target, n)


def train_on_toy(steps: int = 500) -> _Linear:
    """Train generators against four judges."""
    torch.manual_seed(0)
    network, generator = _Linear(), seeded(2)
    opponent = start_opponent()
    optimiser = torch.optim.Adam(network.parameters(), 1e-2, betas=(0.5, 0.99))
    for step in range(steps):
        x, y = draw_toy(128, generator)
        weight = torch.ones_like(x)
        cycle, judged = syndiff_losses.compute_cycle_loss(network, x, y, weight, weight)
        loss = 0.5 * cycle + opponent.compute_network_loss(judged)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # unknown to the stubs
        rate = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.param_groups[0]["lr"] = 1e-2 * rate
        optimiser.step()
        opponent.take_step(judged, step, rate)
    return network


@pytest.mark.slow
def test_trained_on_the_toy_made_targets_are_distributed_as_true_ones_and_samples_of_one_source_are_equal() -> None:
    network = train_on_toy()
    source = draw_toy(4096, seeded(3))[1]
    found = syndiff.draw_samples(network.denoise_target, source, Sampling(4, 4, torch.Generator().manual_seed(0)), 1)
    assert float(found.mean()) == pytest.approx(1.0, abs=0.05)
    assert float(found.std()) == pytest.approx(SD, rel=0.15)
    correlation = torch.corrcoef(torch.stack([found[0].flatten(), source.flatten()]))[0, 1]
    assert abs(float(correlation)) > 0.95, "the cycle ties a target to its source, with either sign"
    assert float(found.std(dim=0).mean()) < 0.1 * SD, "the samples of one source are all the same"


def write_table(folder: Path) -> manifest.Cohort:
    """Write a table whose patients have a T1w or a T2w, one of each split; nobody has both."""
    grid = Grid((24, 28, 24), np.diag([4.0, 4.0, 4.0, 1.0]))
    lines, random = ["subject,split,t1w,t2w"], np.random.default_rng(1)
    for n, (split, name) in enumerate((each, name) for each in ("train", "validation") for name in ("t1w", "t2w")):
        values = random.uniform(100, 900, grid.shape).astype(np.float32)
        cells = {"t1w": "", "t2w": "", name: write_nifti(folder / f"{n}.nii.gz", values, grid).name}
        lines.append(f"s{n},{split},{cells['t1w']},{cells['t2w']}")
    table = folder / "table.csv"
    table.write_text("\n".join(lines) + "\n")
    made = recipe.make_recipe_of(plans.parse(PLAN))
    return manifest.read(table, made.columns, check_row=made.check_row)


def make_small_recipe(**changes: Any) -> tuple[Any, recipe.Configuration]:
    made = recipe.make_recipe_of(plans.parse(PLAN | changes))
    return made, replace(made.configurations["smoke"], bf16=False, validate_every=100, opponent_channels=4)


@pytest.mark.parametrize("space", ["2d", pytest.param("3d", marks=pytest.mark.slow)])
def test_every_space_learns_from_rows_without_any_pair(space: str, tmp_path: Path) -> None:
    cohort = write_table(tmp_path)
    made, c = make_small_recipe(space=space)
    train = Source((), cohort=cohort.select_split("train"))
    drawn = made.draw_batch(c, train, seeded(0, 1))
    assert drawn["input"].shape[1:] == (2, *c.patch_shape)
    torch.manual_seed(0)
    network = made.make_network(c)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        torch.manual_seed(1)
        loss, judged = made.opponent.compute_loss(network, drawn, c)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]
    judges = made.opponent.make_judges(c)
    assert set(judged) == set(judges)
    assert all(judges[name](pair.made)[-1].isfinite().all() for name, pair in judged.items())
    found = made.validate(network.eval(), c, Source((), cohort=cohort.select_split("validation")))
    assert set(found) == {"cycle_mae", "made_mean_difference", "made_sd_ratio"}, "nothing that needs pairs"


def test_a_row_without_either_series_is_refused_by_its_line(tmp_path: Path) -> None:
    write_table(tmp_path)
    table = tmp_path / "table.csv"
    table.write_text(table.read_text() + "x,test,,\n")
    made = recipe.make_recipe_of(plans.parse(PLAN))
    with pytest.raises(manifest.ManifestError) as refused:
        manifest.read(table, made.columns, check_row=made.check_row)
    assert list(refused.value.problems) == ["line 6: it has neither t1w nor t2w"]


def test_a_table_with_one_kind_only_is_refused(tmp_path: Path) -> None:
    cohort = write_table(tmp_path).select_split("train")
    made, c = make_small_recipe()
    alone = replace(cohort, rows=tuple(row for row in cohort.rows if "t2w" in row.images))
    with pytest.raises(ValueError, match="no row of this split has t1w"):
        made.draw_batch(c, Source((), cohort=alone), seeded(0))


def test_what_cannot_teach_is_refused() -> None:
    made, c = make_small_recipe()
    with pytest.raises(ValueError, match="learns from its opponents: adversarial_weight has to be above 0"):
        made.make_network(replace(c, adversarial_weight=0.0))
    with pytest.raises(ValueError, match="needs a patch that is a multiple of 2, not 15"):
        made.make_network(replace(c, patch=15))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, c = make_small_recipe()
    return loop.train(made, c, tmp_path_factory.mktemp("syndiff"), sources=SOURCES)


@pytest.mark.slow
def test_a_resumed_run_ends_as_an_unbroken_one_with_its_four_judges(run: Path, tmp_path: Path) -> None:
    made, c = make_small_recipe()

    def stop(line: dict[str, float]) -> None:
        if line["step"] == 4:
            raise KeyboardInterrupt

    often = replace(c, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        loop.train(made, often, tmp_path, sources=SOURCES, report=stop)
    resumed = checkpoint.read(loop.train(made, often, tmp_path, sources=SOURCES, resume=True))
    once = checkpoint.read(run)
    assert once.opponent is not None
    assert resumed.opponent is not None
    assert {name.partition(".")[0] for name in once.opponent["judges"]} == set(made.opponent.make_judges(c))
    pairs = [(once.average, resumed.average), (once.opponent["judges"], resumed.opponent["judges"])]
    assert all(torch.equal(value, after[name]) for before, after in pairs for name, value in before.items())


@pytest.fixture(scope="module")
def model(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    made, _ = make_small_recipe()
    folder = tmp_path_factory.mktemp("bundle")
    bundle.write(made, run, folder, version="0.1.0", made_on=date(2026, 1, 2), commit="c0ffee")
    facts = registry.read_facts(folder)
    assert smoke.run(facts, "cpu").device == "cpu"
    assert translation.make_pipeline(facts).options_type is translation.SamplingOptions
    assert {"t2w_psnr_db", "cycle_mae"} <= set(facts.metadata["metrics"]), "the simulator has pairs to compare with"
    return registry.load_from(facts)


def make_findings(model: Model, seed: int = 1) -> list[Finding]:
    grid = make_grid("axial", (5, 14, 20), (4.0, 4.0, 4.0), (0, 0, 0))
    values = np.random.default_rng(0).uniform(50, 400, grid.shape).astype(np.float32)
    case = Case({"image": Volume(values, grid)}, {"modality": "MR"})
    options = translation.SamplingOptions(samples=3, sample=True)
    return translation.run(case, model, options, seed, lambda done, step: None)


def test_a_result_says_that_it_was_trained_without_pairs(model: Model) -> None:
    findings = make_findings(model)
    mean, sample = (each for each in findings if isinstance(each, Image))
    (sd,) = [each for each in findings if isinstance(each, ParametricMap)]
    assert (mean.name, sample.name, sd.image_name) == ("t2w", "sample of t2w", "t2w")
    assert mean.volume.grid.shape == (5, 14, 20)
    assert float(sd.volume.data.min()) > 0
    notes = {each.name: each.text for each in findings if isinstance(each, Note)}
    assert "Trained without pairs" in notes["translation"]
    again, other = make_findings(model), make_findings(model, seed=2)
    assert np.array_equal(next(each for each in again if isinstance(each, Image)).volume.data, mean.volume.data)
    assert not np.array_equal(next(each for each in other if isinstance(each, Image)).volume.data, mean.volume.data)
