"""The engine latent of translation: samples of a Gaussian with known posterior, its training, and its results."""

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
from model_zoo.networks.latent_flow import LatentFlow
from model_zoo.networks.mean_and_flow import TIME_FEATURES, encode_time
from model_zoo.training import bundle, checkpoint, loop
from model_zoo.training import translation as recipe
from model_zoo.training.recipe import make_simulated_sources, seeded
from model_zoo.translation import flow, latent
from model_zoo.translation import plan as plans
from model_zoo.translation.network import Conditions, Sampling
from pipelines import translation
from pipelines.contract import Case, Finding, Image, Note, ParametricMap, Refused, Volume
from tests.scanner import make_grid

PLAN: dict[str, Any] = {
    "name": "t2w_latent",
    "engine": "latent",
    "space": "2d",
    "spacing_mm": 4.0,
    "patch": 16,
    "sources": [{"name": "t1w", "modality": "MR", "scale": "percentile:99"}],
    "targets": [{"name": "t2w", "modality": "MR", "scale": "percentile:99", "code": 1}],
}
SOURCES = make_simulated_sources(phantom=True)
SD = 0.3 / 2**0.5
"""Posterior standard deviation of t, N(1, 0.3^2), given s = t + 0.3 n; its mean is (1 + s) / 2."""
LATENT_SD = 0.6
"""Standard deviation of 2 t - 1, by which the toy scales its latents; their mean is 1."""
ONE = Conditions(torch.ones(1, 1), torch.zeros(1, 0), torch.zeros(1, 0, 0))


class _PointwiseLatents(nn.Module):
    """Latents that are the scaled voxels, and a velocity that is linear in z_t and in the source at each time.

    Without its code, the target's mean is the same, and the velocity has a shift of its own to learn.
    """

    factor = 1

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(TIME_FEATURES, 32), nn.SiLU(), nn.Linear(32, 3))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :1, 0], x[:, 1:].flatten(2).amax(2)

    def encode(self, images: Tensor) -> Tensor:
        return (images - 1) / LATENT_SD

    def decode(self, z: Tensor) -> Tensor:
        return z * LATENT_SD + 1

    def velocity(
        self, z_t: Tensor, sources: Tensor, exists: Tensor, time: Tensor, context: Tensor, codes: Tensor
    ) -> Tensor:
        a, b, shift = self.layers(encode_time(time / flow.TIME_STEPS))[:, :, None, None, None].unbind(dim=1)
        output: Tensor = a * z_t + b * sources + shift
        return output


def draw_pair(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return an input (b, 2, 1, j, i) and its target (b, 1, j, i)."""
    target = 1 + 0.3 * torch.randn(32, 1, 8, 8, generator=generator)
    source = target + 0.3 * torch.randn(target.shape, generator=generator)
    return torch.cat([2 * source - 1, torch.ones_like(source)], dim=1)[:, :, None], target


@pytest.fixture(scope="module")
def gaussian() -> _PointwiseLatents:
    """Return a flow of latents trained on the Gaussian."""
    torch.manual_seed(0)
    network, generator = _PointwiseLatents(), seeded(1)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 500)
    for _ in range(500):
        x, target = draw_pair(generator)
        loss = latent.compute_latent_error(network, x, target, ONE.repeat(32)).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # unknown to the stubs
        optimiser.step()
        schedule.step()
    return network


@pytest.mark.parametrize("steps", [4, 16, 32])
def test_on_gaussians_samples_have_the_posterior_mean_and_the_sd_that_euler_gives(
    steps: int, gaussian: _PointwiseLatents
) -> None:
    factor = flow.euler_sd_factor(steps, 1.0, 2 * SD / LATENT_SD)
    for source in (0.7, 1.3):
        x = torch.stack([torch.full((1, 16, 16), 2 * source - 1), torch.ones(1, 16, 16)])[None]
        found = latent.draw_samples(gaussian, x, ONE, Sampling(16, steps, torch.Generator().manual_seed(2)), 16)
        assert float(found.mean()) == pytest.approx((1 + source) / 2, abs=0.03)
        assert float(found.std()) == pytest.approx(factor * SD, abs=0.1 * SD)


def test_windows_and_the_whole_image_give_the_same_sample(gaussian: _PointwiseLatents) -> None:
    x = torch.rand(2, 2, 1, 32, 32, generator=seeded(3))
    x[:, 1] = 1.0
    whole, parts = (
        latent.draw_samples(gaussian, x, ONE, Sampling(1, 3, torch.Generator().manual_seed(2)), window)
        for window in (32, 16)
    )
    assert whole.shape == (1, 2, 32, 32)
    torch.testing.assert_close(parts, whole)


def test_guidance_goes_on_beyond_what_the_conditions_say() -> None:
    class Shifted(_PointwiseLatents):
        def velocity(self, z_t: Tensor, sources: Tensor, exists: Tensor, *more: Tensor) -> Tensor:
            return 0 * z_t + more[-1][:, None, None, None]

    x = torch.ones(1, 2, 1, 16, 16)
    plain, guided = (
        latent.draw_samples(Shifted(), x, ONE, Sampling(1, 4, torch.Generator().manual_seed(2), weight), 16)
        for weight in (1.0, 2.5)
    )
    torch.testing.assert_close(guided - plain, torch.full_like(plain, 1.5 * LATENT_SD / 2))


def make_small_recipe(**changes: Any) -> tuple[Any, recipe.Configuration]:
    made = recipe.make_recipe_of(plans.parse(PLAN | changes))
    return made, replace(made.configurations["smoke"], bf16=False, validate_every=100)


@pytest.mark.slow
def test_the_velocity_trains_on_the_autoencoder_as_it_was_and_a_resumed_run_ends_as_an_unbroken_one(
    tmp_path: Path,
) -> None:
    made, c = make_small_recipe()
    saved: dict[int, checkpoint.Checkpoint] = {}

    def keep(line: dict[str, float]) -> None:
        if (tmp_path / checkpoint.NAME).exists():
            at = checkpoint.read(tmp_path / checkpoint.NAME)
            saved[at.step] = at
        if line["step"] == 5:
            raise KeyboardInterrupt

    once = checkpoint.read(loop.train(made, c, tmp_path / "once", sources=SOURCES))
    often = replace(c, checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        loop.train(made, often, tmp_path, sources=SOURCES, report=keep)
    resumed = checkpoint.read(loop.train(made, often, tmp_path, sources=SOURCES, resume=True))
    assert all(torch.equal(value, resumed.merge_average()[name]) for name, value in once.merge_average().items())
    (restart,) = c.restarts
    changed = {name for name, value in once.network.items() if not torch.equal(value, saved[restart].network[name])}
    assert changed
    assert all(name.startswith("unet.") for name in changed)
    assert int(once.network["latent_steps"]) == restart


def test_the_scale_of_the_latents_is_that_of_the_training_images() -> None:
    made, c = make_small_recipe()
    torch.manual_seed(0)
    network = latent.as_latent(made.make_network(c))
    images = torch.randn(64, 1, 16, 16, generator=seeded(4))
    for part in torch.split(images, 8):
        network.reconstruct(part)
    with torch.no_grad():
        z = network.eval().encode(images).movedim(1, 0).flatten(1)
    torch.testing.assert_close(z.mean(dim=1), torch.zeros(2), atol=0.05, rtol=0)
    torch.testing.assert_close(z.std(dim=1), torch.ones(2), atol=0.05, rtol=0)


@pytest.mark.parametrize("space", ["2d", "2.5d:3", "3d"])
def test_every_space_learns(space: str) -> None:
    made, c = make_small_recipe(space=space, covariates=["age"])
    drawn = made.draw_batch(replace(c, plan=plans.parse(PLAN | {"space": space})), SOURCES.train, seeded(0, 1))
    drawn["tokens"] = torch.tensor([[[1.0, 1.0, 0.5]]]).expand(2, -1, -1)
    torch.manual_seed(0)
    network = made.make_network(c)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    losses: dict[float, list[float]] = {0.0: [], 0.9: []}
    for progress, found in losses.items():
        drawn["progress"] = torch.tensor(progress)
        for _ in range(25):
            torch.manual_seed(1)
            loss = made.compute_loss(network, drawn, c)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            found.append(float(loss.detach()))
    assert all(found[-1] < 0.8 * found[0] for found in losses.values()), losses


def test_a_patch_that_the_network_cannot_take_is_refused() -> None:
    made, c = make_small_recipe(patch=20)
    with pytest.raises(ValueError, match="the engine latent needs a patch that is a multiple of 8, not 20"):
        made.make_network(replace(c, patch=0))


def load_model(folder: Path, **changes: Any) -> Model:
    """Train six steps and return the model of the bundle, which has been tried out as an installation does."""
    made, c = make_small_recipe(**changes)
    run = loop.train(made, c, folder / "run", sources=SOURCES)
    bundle.write(made, run, folder / "bundle", version="0.1.0", made_on=date(2026, 1, 2), commit="c0ffee")
    facts = registry.read_facts(folder / "bundle")
    assert smoke.run(facts, "cpu").device == "cpu"
    assert translation.make_pipeline(facts).options_type is translation.LatentOptions
    return registry.load_from(facts)


def make_findings(model: Model, seed: int = 1, **options: Any) -> list[Finding]:
    grid = make_grid("axial", (5, 14, 20), (4.0, 4.0, 4.0), (0, 0, 0))
    values = np.random.default_rng(0).uniform(50, 400, grid.shape).astype(np.float32)
    case = Case({"image": Volume(values, grid)}, {"modality": "MR"})
    chosen = translation.LatentOptions(samples=3, steps=2, **options)
    return translation.run(case, model, chosen, seed, lambda done, step: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(tmp_path_factory.mktemp("latent"))


def test_a_result_has_mean_and_sd_of_the_samples_and_says_what_may_be_invented(model: Model) -> None:
    assert isinstance(model.network, LatentFlow)
    findings = make_findings(model, sample=True)
    mean, sample = (each for each in findings if isinstance(each, Image))
    (sd,) = [each for each in findings if isinstance(each, ParametricMap)]
    assert (mean.name, sample.name, sd.image_name) == ("t2w", "sample of t2w", "t2w")
    assert mean.volume.grid.shape == (5, 14, 20)
    assert float(sd.volume.data.min()) > 0
    notes = {each.name: each.text for each in findings if isinstance(each, Note)}
    assert "may be invented where t1w does not determine it" in notes["translation"]
    lost = model.metadata["metrics"]["autoencoder_psnr_db"]
    assert f"autoencoder alone: {lost:.1f} dB on the validation data" in notes["autoencoder"]
    assert "guidance" not in notes
    (again,) = [each for each in make_findings(model) if isinstance(each, Image)]
    assert np.array_equal(again.volume.data, mean.volume.data), "the seed determines the samples"
    (other,) = [each for each in make_findings(model, seed=2) if isinstance(each, Image)]
    assert not np.array_equal(other.volume.data, mean.volume.data)


def test_guidance_needs_something_to_weigh(model: Model) -> None:
    with pytest.raises(Refused, match="option guidance: t2w_latent has one target and no covariates"):
        make_findings(model, guidance=2.0)


@pytest.mark.slow
def test_guidance_changes_the_result_of_a_model_with_several_targets_and_is_stated(tmp_path: Path) -> None:
    series = [{"name": n, "modality": "MR", "scale": "percentile:99"} for n in ("t1w", "t2w", "pd")]
    targets = [each | {"code": code} for code, each in enumerate(series[1:], start=1)]
    model = load_model(tmp_path, sources=series[:1], targets=targets, space="3d", patch=8)
    plain, guided = (make_findings(model, target="pd", guidance=weight) for weight in (1.0, 3.0))
    images = [next(each for each in found if isinstance(each, Image)) for found in (plain, guided)]
    assert not np.array_equal(images[0].volume.data, images[1].volume.data)
    notes = {each.name: each.text for each in guided if isinstance(each, Note)}
    assert notes["guidance"].startswith("Guidance 3: the samples are more alike than what is known")
