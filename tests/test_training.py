"""The loop trains, refuses settings that would spoil a run, and makes a bundle that the registry accepts or refuses."""

from __future__ import annotations

import fcntl
import json
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import torch

from model_zoo import registry
from model_zoo.bundle import BundleError
from model_zoo.denoisers import Denoiser, training_loss
from model_zoo.networks.local_unet import LocalUNet
from model_zoo.training import bundle, checkpoint, loop, mri_prior, recipe, run_log

RECIPE = mri_prior.RECIPE
SMOKE = RECIPE.configurations["smoke"]
PHANTOM = recipe.make_simulated_sources(phantom=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    loop.train(RECIPE, SMOKE, out, sources=PHANTOM)
    return out


@pytest.fixture
def bundles(run: Path, tmp_path: Path) -> Path:
    checkpoint_path = run / checkpoint.NAME
    bundle.write(RECIPE, checkpoint_path, tmp_path / "made", version="9.1.0", made_on=date(2026, 1, 2), commit="c0ffee")
    return tmp_path


def averaged(out: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(out / checkpoint.NAME).merge_average()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_the_loop_draws_and_learns_what_the_recipe_s_first_weights_were_made_with(kit: Path, tmp_path: Path) -> None:
    loop.train(RECIPE, SMOKE, tmp_path, sources=recipe.make_simulated_sources(kit))
    last = json.loads((tmp_path / run_log.NAME).read_text().splitlines()[-1])
    assert last["loss"] == pytest.approx(1.28281, abs=2e-3)  # the loop that trained mri_prior 1.0.0, same seed
    assert last["denoising_psnr_0.1_db"] == pytest.approx(17.3376, abs=0.02)


@pytest.mark.slow
def test_another_seed_ends_with_other_weights(run: Path, tmp_path: Path) -> None:
    loop.train(RECIPE, replace(SMOKE, seed=7), tmp_path, sources=PHANTOM)
    assert not same(averaged(run), averaged(tmp_path))


@pytest.mark.slow
def test_batches_drawn_ahead_by_a_worker_are_the_same(run: Path, tmp_path: Path) -> None:
    loop.train(RECIPE, replace(SMOKE, workers=1), tmp_path, sources=PHANTOM)
    assert same(averaged(run), averaged(tmp_path))


@pytest.mark.slow
def test_a_folder_with_a_run_is_not_overwritten(run: Path) -> None:
    with pytest.raises(FileExistsError, match="holds a run already"):
        loop.train(RECIPE, SMOKE, run, sources=PHANTOM)


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(FileExistsError, match="another process trains there"):
            loop.train(RECIPE, SMOKE, tmp_path, sources=PHANTOM)
    assert not (tmp_path / checkpoint.NAME).exists()


def test_another_configuration_does_not_resume_a_run(run: Path) -> None:
    with pytest.raises(ValueError, match="another configuration"):
        loop.train(RECIPE, replace(SMOKE, learning_rate=0.5), run, sources=PHANTOM, resume=True)


def test_other_data_do_not_resume_a_run(run: Path) -> None:
    with pytest.raises(ValueError, match="trained on other data: phantom, not simulation"):
        loop.train(RECIPE, SMOKE, run, sources=recipe.make_simulated_sources(), resume=True)


def test_another_recipe_does_not_resume_a_run(run: Path) -> None:
    with pytest.raises(ValueError, match="a run of the recipe mri-prior"):
        loop.train(replace(RECIPE, name="other"), SMOKE, run, sources=PHANTOM, resume=True)


def test_a_damaged_checkpoint_is_named_and_not_trained_over(run: Path, tmp_path: Path) -> None:
    path = tmp_path / checkpoint.NAME
    path.write_bytes((run / checkpoint.NAME).read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a checkpoint"):
        loop.train(RECIPE, SMOKE, tmp_path, sources=PHANTOM, resume=True)
    assert path.stat().st_size == 1000


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    def diverging(network: torch.nn.Module, batch: dict[str, torch.Tensor], c: mri_prior.Configuration) -> torch.Tensor:
        loss = RECIPE.compute_loss(network, batch, c)
        return loss * float("nan") if float(batch["sigma"][0]) == fourth else loss

    fourth = float(RECIPE.draw_batch(SMOKE, PHANTOM.train, recipe.seeded(SMOKE.seed, 3))["sigma"][0])
    with pytest.raises(FloatingPointError, match="not finite at step"):
        loop.train(replace(RECIPE, compute_loss=diverging), SMOKE, tmp_path, sources=PHANTOM)
    saved = checkpoint.read(tmp_path / checkpoint.NAME)
    assert saved.step == 3
    assert all(bool(torch.isfinite(value).all()) for value in saved.network.values())


def test_a_resumed_log_tells_every_step_once(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    with (tmp_path / "run" / run_log.NAME).open("a") as log:
        log.write('{"step": 9, "loss": 1}\n{"step": 12, "lo')  # written after the checkpoint, then torn by a kill
    loop.train(RECIPE, SMOKE, tmp_path / "run", sources=PHANTOM, resume=True)
    lines = (tmp_path / "run" / run_log.NAME).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6]


def test_the_learning_rate_warms_up_and_ends_near_zero() -> None:
    c = replace(SMOKE, steps=100, warmup=10, learning_rate=1.0)
    rates = [loop.learning_rate(c, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[-1] < 0.01


def test_the_learning_rate_begins_again_at_a_restart() -> None:
    c = replace(SMOKE, steps=100, warmup=10, learning_rate=1.0, restarts=(60,))
    rates = [loop.learning_rate(c, step) for step in range(100)]
    assert rates[:60] == [loop.learning_rate(replace(c, steps=60, restarts=()), step) for step in range(60)]
    assert rates[60:] == [loop.learning_rate(replace(c, steps=40, restarts=()), step) for step in range(40)]


def test_the_step_s_draws_depend_on_seed_step_and_rank_only() -> None:
    keys = [(2026, 0), (2026, 1), (2027, 0), (2026, 0, 1), (2026, 1, 1)]
    draws = [float(torch.rand(1, generator=recipe.seeded(*key))) for key in keys]
    assert len(set(draws)) == len(draws)
    assert draws[0] == float(torch.rand(1, generator=recipe.seeded(*keys[0])))


def test_the_log_goes_to_tensorboard_where_it_is_installed(run: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [3, 6]


def test_a_bundle_tells_where_it_is_from(bundles: Path) -> None:
    metadata = json.loads((bundles / "made" / "configs" / "metadata.json").read_text())
    assert metadata["recipe"] == "mri-prior"
    assert metadata["commit"] == "c0ffee"
    assert metadata["seed"] == 2026
    assert metadata["steps"] == SMOKE.steps
    assert metadata["units"]
    assert metadata["input_contract"]
    assert metadata["metrics"]["denoising_psnr_0.1_db"] > 10
    assert "Apache" in (bundles / "made" / "LICENSE").read_text()


@pytest.mark.slow
def test_weights_too_large_for_a_bundle_are_refused(tmp_path: Path) -> None:
    large = replace(RECIPE, make_network=lambda c: LocalUNet(channels=(320, 320), blocks=1))
    tiny = replace(SMOKE, steps=1, batch=1, patch=16)
    run = loop.train(replace(large, validate=lambda *_: {}), tiny, tmp_path / "run", sources=PHANTOM)
    with pytest.raises(ValueError, match=r"MB; a bundle's may take 16 MB"):
        bundle.write(large, run, tmp_path / "made", version="1.0.0", made_on=date(2026, 1, 2))


def test_a_written_bundle_loads_and_denoises_any_size(bundles: Path) -> None:
    model = registry.load("mri_prior", root=bundles)
    assert model.version == "9.1.0"
    assert "simulation only" in model.metadata["trained_on"]
    assert "trained on simulation only" in (bundles / "made" / "docs" / "README.md").read_text()
    x = torch.randn((2, 37, 50), dtype=torch.complex64)
    out = model.denoiser(x, 0.1)
    assert out.shape == x.shape
    assert out.dtype == torch.complex64


def test_monai_reads_the_bundle_and_builds_the_same_network(bundles: Path) -> None:
    from monai.bundle import ConfigParser  # MONAI's own parser: the layout is theirs
    from safetensors.torch import load_file

    parser = ConfigParser()
    parser.read_config(bundles / "made" / "configs" / "inference.json")
    parser.read_meta(bundles / "made" / "configs" / "metadata.json")
    network = parser.get_parsed_content("network_def")
    weights = load_file(bundles / "made" / registry.WEIGHTS)
    network.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    assert isinstance(network, LocalUNet)


def test_a_changed_weights_file_is_refused_by_its_digest(bundles: Path) -> None:
    weights = bundles / "made" / registry.WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(BundleError, match="SHA-256"):
        registry.load("mri_prior", root=bundles)


def test_an_unknown_network_is_refused(bundles: Path) -> None:
    path = bundles / "made" / "configs" / "inference.json"
    inference = json.loads(path.read_text())
    inference["network_def"]["_target_"] = "os.system"
    path.write_text(json.dumps(inference))
    with pytest.raises(BundleError, match=r"does not know the network 'os\.system'"):
        registry.load("mri_prior", root=bundles)


def test_a_missing_bundle_is_named_with_what_there_is(bundles: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle other; installed: mri_prior@9\.1\.0"):
        registry.find("other", root=bundles)


def test_the_shipped_bundle_is_whole_and_says_what_it_was_trained_on() -> None:
    facts = registry.find("mri_prior")
    registry.verify(facts)
    assert (facts.path / registry.WEIGHTS).stat().st_size < 16 * 2**20
    card = (facts.path / "docs" / "README.md").read_text()
    assert "trained on simulation only" in card
    assert facts.metadata["metrics"]


def test_at_zero_network_the_denoiser_is_the_wiener_filter_of_white_data() -> None:
    class Zero(torch.nn.Module):
        def forward(self, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x)

    D = Denoiser(Zero(), sigma_data=0.5, stride=1)
    x = torch.ones((1, 4, 4), dtype=torch.complex64)
    assert torch.allclose(D(x, 0.5), 0.5 * x)


def test_the_loss_of_an_untrained_denoiser_is_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    network = LocalUNet(channels=(16, 32), blocks=1)
    for parameter in network.last[2].parameters():
        torch.nn.init.zeros_(parameter)
    D = Denoiser(network, 0.3, network.stride)
    x0 = 0.3 * torch.randn((8, 2, 32, 32), generator=generator)
    sigma = torch.exp(torch.linspace(-4, 2, 8))
    loss = training_loss(D, x0, sigma, torch.randn(x0.shape, generator=generator))
    assert torch.allclose(loss, torch.ones(8), atol=0.2)


def test_the_network_commutes_with_shifts_of_its_stride() -> None:
    torch.manual_seed(0)
    network = LocalUNet(channels=(16, 32), blocks=1).eval()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.05)
    x = torch.zeros((1, 2, 64, 64))
    x[:, :, 20:28, 20:28] = torch.randn((1, 2, 8, 8))
    c_noise = torch.tensor([-0.5])
    shifted = network(torch.roll(x, (8, 8), (2, 3)), c_noise)
    expected = torch.roll(network(x, c_noise), (8, 8), (2, 3))
    inside = (slice(None), slice(None), slice(24, 48), slice(24, 48))
    assert torch.allclose(shifted[inside], expected[inside], atol=1e-4)
