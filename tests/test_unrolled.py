"""The supervised peer of the reconstruction: data consistency, learning, exact resume, and its commands."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import reconstruction, unrolled
from benchmarks.unrolled_network import UnrolledNetwork
from benchmarks.unrolled_scans import SCANS, USES, draw_problem
from model_zoo.operators import Fourier, magnitude
from model_zoo.training import checkpoint, loop
from model_zoo.training.recipe import Source, make_simulated_sources, seeded

pytestmark = pytest.mark.training

SMOKE = unrolled.CONFIGURATIONS["smoke"]
PHANTOM = make_simulated_sources(phantom=True)


def draw_image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))


def make_operator(sets: int, mask: torch.Tensor) -> Fourier:
    """Return an operator of three coils and orthonormal sets of maps on a grid of 22 x 27."""
    vectors = torch.linalg.qr(draw_image(22, 27, 3, 3))[0][..., :sets]
    maps = vectors.permute(3, 2, 0, 1)[None]
    return Fourier(maps[:, 0] if sets == 1 else maps, mask)


def make_network() -> UnrolledNetwork:
    """Return a network whose U-Net changes its input."""
    torch.manual_seed(2)
    network = UnrolledNetwork(2, (8, 16), 1)
    with torch.no_grad():
        for p in network.network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network.eval()


@pytest.mark.parametrize("sets", [1, 2])
@torch.no_grad()
def test_complete_samples_without_noise_give_the_image_whatever_the_unet_says(sets: int) -> None:
    A = make_operator(sets, torch.ones(1, 22, 27, dtype=torch.bool))
    x = draw_image(1, 22, 27) if sets == 1 else draw_image(1, 2, 22, 27)
    found = make_network()(A, A(x), torch.tensor([1e-4]))
    assert found.shape == x.shape
    assert float((found - x).abs().max()) < 1e-3
    noisy = make_network()(A, A(x), torch.tensor([1.0]))
    assert float((noisy - x).abs().max()) > 0.1  # where noise hides the samples, the U-Net decides


@torch.no_grad()
def test_two_sets_of_maps_are_reconstructed_as_two_images() -> None:
    mask = torch.zeros(1, 22, 27, dtype=torch.bool)
    mask[:, :, ::2] = True
    A, network = make_operator(2, mask), make_network()
    x = draw_image(1, 2, 22, 27)
    swapped = Fourier(A.maps.flip(1), mask)
    torch.testing.assert_close(
        network(swapped, A(x), torch.tensor([0.05])), network(A, A(x), torch.tensor([0.05])).flip(1)
    )


def test_steps_on_one_problem_lower_its_loss() -> None:
    batch = unrolled.RECIPE.draw_batch(SMOKE, PHANTOM.train, seeded(1))
    torch.manual_seed(3)
    network = unrolled.RECIPE.make_network(SMOKE)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-4)
    losses = []
    for _ in range(4):
        loss = unrolled.RECIPE.compute_loss(network, batch, SMOKE)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        assert len(gradients) > 10
        assert all(bool(torch.isfinite(g).all()) for g in gradients)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True), losses


def test_problems_keep_the_scan_and_change_the_sampling() -> None:
    first, again, other = (
        draw_problem(replace(PHANTOM.train, step=step), 5, step, seeded(5, step))[0]
        for step in (0, SCANS, SCANS * USES)
    )
    assert torch.equal(first.A.maps, again.A.maps)
    assert not torch.equal(first.A.mask, again.A.mask)
    assert first.A.maps.shape != other.A.maps.shape or not torch.equal(first.A.maps, other.A.maps)
    for p in (first, again, other):
        assert not bool((p.y.abs().sum(dim=1)[~p.A.mask] > 0).any())
        assert 1.5 < p.A.mask.numel() / int(p.A.mask.sum()) < 10


def test_subjects_of_the_tables_are_in_no_training_problem() -> None:
    from model_zoo.simulate import anatomy

    assert not set(make_simulated_sources().train.subjects) & set(anatomy.TEST)


def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_weights(tmp_path: Path) -> None:
    c = replace(SMOKE, steps=3)

    def stop(line: dict[str, float]) -> None:
        if line["step"] == 2:
            raise KeyboardInterrupt

    loop.train(unrolled.RECIPE, c, tmp_path / "whole", sources=PHANTOM)
    with pytest.raises(KeyboardInterrupt):
        loop.train(unrolled.RECIPE, c, tmp_path / "parts", sources=PHANTOM, report=stop)
    loop.train(unrolled.RECIPE, c, tmp_path / "parts", sources=PHANTOM, resume=True)
    whole, parts = (checkpoint.read(tmp_path / name / checkpoint.NAME) for name in ("whole", "parts"))
    assert parts.step == 3
    for name, value in whole.merge_average().items():
        assert torch.equal(value, parts.merge_average()[name]), name


def test_the_command_trains_a_network_that_reconstructs(tmp_path: Path) -> None:
    words = ["train", "--configuration", "smoke", "--phantom", "--out", str(tmp_path), "--steps", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.unrolled", *words], capture_output=True, text=True,
        cwd=Path(__file__).parents[1], env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 steps" in done.stdout
    p, reference = draw_problem(Source(("phantom",), phantom=True), 7, 0, seeded(7))
    x = magnitude(p.in_units(unrolled.reconstruct(p, unrolled.load(tmp_path))))
    assert x.shape == reference.shape
    error = (x - reference).square().mean() / reference.square().mean()
    assert float(error) < 0.5


def test_the_tables_refuse_the_network_where_it_was_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reconstruction", "--method", "unrolled"])
    with pytest.raises(SystemExit):
        reconstruction.main()
    assert "python -m benchmarks.unrolled train" in capsys.readouterr().err
