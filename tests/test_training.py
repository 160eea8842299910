"""The recipe trains, resumes exactly and writes a bundle that the registry accepts or refuses for a stated reason."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
import torch

from model_zoo import registry
from model_zoo.denoisers import Denoiser, training_loss
from model_zoo.networks.local_unet import LocalUNet
from model_zoo.training import bundle, mri_prior

SMOKE = mri_prior.CONFIGURATIONS["smoke"]


@pytest.fixture(scope="module")
def run(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    mri_prior.train(SMOKE, out, data=kit, report=lambda _: None)
    return out


@pytest.fixture
def made(run: Path, tmp_path: Path) -> Path:
    bundle.write_mri_prior(run / "checkpoint.pt", tmp_path / "made", version="9.1.0", made_on=date(2026, 1, 2))
    return tmp_path


def test_a_stopped_and_resumed_run_ends_with_the_same_weights(run: Path, kit: Path, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(line: dict[str, float]) -> None:
        if line["step"] == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        mri_prior.train(SMOKE, tmp_path, data=kit, report=stop)
    resumed = mri_prior.train(SMOKE, tmp_path, data=kit, resume=True, report=lambda _: None)
    unbroken, _, _ = mri_prior.ema_weights(run / "checkpoint.pt")
    again, _, step = mri_prior.ema_weights(resumed)
    assert step == SMOKE.steps
    assert all(torch.equal(unbroken[name], again[name]) for name in unbroken)


def test_a_folder_with_a_run_is_not_overwritten(run: Path, kit: Path) -> None:
    with pytest.raises(FileExistsError, match="holds a run already"):
        mri_prior.train(SMOKE, run, data=kit, report=lambda _: None)


def test_another_configuration_does_not_resume_a_run(run: Path, kit: Path) -> None:
    other = mri_prior.Configuration(**vars(SMOKE) | {"learning_rate": 0.5})
    with pytest.raises(ValueError, match="another configuration"):
        mri_prior.train(other, run, data=kit, resume=True, report=lambda _: None)


def test_a_written_bundle_loads_and_denoises_any_size(made: Path) -> None:
    model = registry.load("mri_prior", root=made)
    assert model.version == "9.1.0"
    assert "simulation only" in model.metadata["trained_on"]
    assert "trained on simulation only" in (made / "made" / "docs" / "README.md").read_text()
    x = torch.randn((2, 37, 50), dtype=torch.complex64)
    out = model.denoiser(x, 0.1)
    assert out.shape == x.shape
    assert out.dtype == torch.complex64


def test_monai_reads_the_bundle_and_builds_the_same_network(made: Path) -> None:
    from monai.bundle import ConfigParser  # MONAI's own parser: the layout is theirs
    from safetensors.torch import load_file

    parser = ConfigParser()
    parser.read_config(made / "made" / "configs" / "inference.json")
    parser.read_meta(made / "made" / "configs" / "metadata.json")
    network = parser.get_parsed_content("network_def")
    weights = load_file(made / "made" / registry.WEIGHTS)
    network.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    assert isinstance(network, LocalUNet)


def test_a_changed_weights_file_is_refused_by_its_digest(made: Path) -> None:
    weights = made / "made" / registry.WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(registry.BundleError, match="SHA-256"):
        registry.load("mri_prior", root=made)


def test_an_unknown_network_is_refused(made: Path) -> None:
    path = made / "made" / "configs" / "inference.json"
    inference = json.loads(path.read_text())
    inference["network_def"]["_target_"] = "os.system"
    path.write_text(json.dumps(inference))
    with pytest.raises(registry.BundleError, match=r"does not know the network 'os\.system'"):
        registry.load("mri_prior", root=made)


def test_a_missing_bundle_is_named_with_what_there_is(made: Path) -> None:
    with pytest.raises(registry.BundleError, match=r"no bundle other; installed: mri_prior@9\.1\.0"):
        registry.find("other", root=made)


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
