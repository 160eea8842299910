"""Opponents in training: the form of their losses, what they teach, exact resume, and what a bundle holds of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from model_zoo import training
from model_zoo.registry import WEIGHTS
from model_zoo.training import bundle, checkpoint, loop
from model_zoo.training.opponents import AdversarialConfiguration, Opponent, OpponentRun, Pair, make_judge
from model_zoo.training.parallel import World
from model_zoo.training.recipe import Recipe, make_simulated_sources

RECIPES = ("synthetic-dir", "standard-dose-pet-semi", "translation")
MEANS = (("noise", 0), ("true", 3))


class _Linear(nn.Module):
    """A judge w . x, whose penalty is known."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1.0, size + 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x @ self.weight]


def _start(judge: Callable[[], nn.Module], **settings: Any) -> OpponentRun:
    c = AdversarialConfiguration(steps=1, batch=1, learning_rate=1e-3, adversarial_weight=0.5, **settings)
    opponent = Opponent[AdversarialConfiguration](lambda _: {"one": judge()}, lambda *_: (torch.zeros(()), {}))
    return OpponentRun.start(opponent, c, World(torch.device("cpu")))


def test_the_losses_are_least_squares_and_the_penalty_is_r1() -> None:
    run = _start(lambda: _Linear(3), opponent_penalty=4.0)
    made, true = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.5, 0.0]])
    # D(made) = 1, 3; D(true) = 3, 1; |grad D|^2 = 1 + 4 + 9 everywhere
    loss = float(run.objective({"one": (made, true)}).detach())
    assert loss == pytest.approx(0.5 * (4 + 0) / 2 + 0.5 * (1 + 9) / 2 + 4.0 / 2 * 14)
    assert float(run.compute_network_loss({"one": Pair(made, true)}).detach()) == pytest.approx(0.5 * (0 + 4) / 2)


def test_the_main_network_s_loss_moves_the_images_and_not_the_judges() -> None:
    run = _start(lambda: _Linear(3))
    made = torch.zeros(1, 3, requires_grad=True)
    loss = run.compute_network_loss({"one": Pair(made, torch.ones(1, 3))})
    (gradient,) = torch.autograd.grad(loss, made)
    assert float(gradient[0] @ torch.arange(1.0, 4.0)) < 0  # towards values that the judge takes for true
    assert all(p.requires_grad for p in run.judges.parameters())
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(run.compute_network_loss({"one": Pair(made, made)}), list(run.judges.parameters()))


def test_every_second_step_only() -> None:
    run = _start(lambda: _Linear(3), opponent_every=2)
    before = [p.clone() for p in run.judges.parameters()]
    judged = {"one": Pair(torch.zeros(1, 3), torch.ones(1, 3))}
    run.take_step(judged, 1, 1.0)
    assert all(torch.equal(p, old) for p, old in zip(run.judges.parameters(), before, strict=True))
    run.take_step(judged, 2, 1.0)
    assert not any(torch.equal(p, old) for p, old in zip(run.judges.parameters(), before, strict=True))


def _make_shift_recipe(weight: float) -> tuple[Recipe[Any], AdversarialConfiguration]:
    """Return a network that adds one number to noise, without any other loss, against true numbers about 3."""

    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(()))

    def judge_shift(network: nn.Module, batch: dict[str, Tensor], _: Any) -> tuple[Tensor, dict[str, Pair]]:
        made = batch["noise"] + network.get_parameter("shift")
        return 0.0 * made.sum(), {"one": Pair(made, batch["true"])}

    def make_judges(_: Any) -> dict[str, nn.Module]:
        return {"one": _Values(nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 1)))}

    c = AdversarialConfiguration(
        steps=600, batch=64, learning_rate=0.02, warmup=1, bf16=False, adversarial_weight=weight, opponent_rate=0.01,
        opponent_penalty=0.1, checkpoint_every=600, ema=0.9,
    )  # fmt: skip
    found = Recipe(
        "shift", "shift", {"cpu": c}, lambda _: Shift(),
        lambda c, _, g: {name: mean + torch.randn(c.batch, 1, generator=g) for name, mean in MEANS},
        lambda network, batch, c: judge_shift(network, batch, c)[0],
        lambda network, c, source: {"shift": float(network.get_parameter("shift"))},
        lambda _: {}, {"trained_on": "simulation only"}, opponent=Opponent(make_judges, judge_shift),
    )  # fmt: skip
    return found, c


class _Values(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.network(x)]


@pytest.mark.slow
def test_a_network_learns_from_its_opponent_alone_what_true_images_are(tmp_path: Path) -> None:
    sources = make_simulated_sources(phantom=True)
    found, c = _make_shift_recipe(1.0)
    learned = checkpoint.read(loop.train(found, c, tmp_path / "with", sources=sources)).metrics["shift"]
    assert learned == pytest.approx(3.0, abs=0.4)
    found, c = _make_shift_recipe(0.0)
    assert checkpoint.read(loop.train(found, c, tmp_path / "without", sources=sources)).metrics["shift"] == 0.0


def _train(name: str, out: Path, *, stop_at: int | None = None, resume: bool = False, **settings: Any) -> Path:
    """Train the smoke configuration; ``stop_at``: end with an error before the checkpoint of that step is written."""

    def stop(line: dict[str, float]) -> None:
        if line["step"] == stop_at:
            raise KeyboardInterrupt

    found = training.load(name)
    c = replace(found.configurations["smoke"], opponent_channels=4, **settings)
    return loop.train(found, c, out, sources=make_simulated_sources(phantom=True), resume=resume, report=stop)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_run_ends_as_an_unbroken_one_with_its_opponent(name: str, tmp_path: Path) -> None:
    once = checkpoint.read(_train(name, tmp_path / "once", adversarial_weight=0.1))
    with pytest.raises(KeyboardInterrupt):
        _train(
            name, tmp_path / "twice", adversarial_weight=0.1, checkpoint_every=2, stop_at=4
        )  # the semi's second stage
    twice = checkpoint.read(_train(name, tmp_path / "twice", adversarial_weight=0.1, checkpoint_every=2, resume=True))
    assert once.opponent is not None
    assert twice.opponent is not None
    assert _flatten(once.opponent["judges"]).equal(_flatten(twice.opponent["judges"]))
    assert _flatten(once.average).equal(_flatten(twice.average))
    alone = checkpoint.read(_train(name, tmp_path / "alone"))
    assert alone.opponent is None
    assert not _flatten(once.average).equal(_flatten(alone.average))


@pytest.mark.slow
def test_a_checkpoint_without_its_opponent_is_not_resumed(tmp_path: Path) -> None:
    name = "standard-dose-pet-semi"
    with pytest.raises(KeyboardInterrupt):
        _train(name, tmp_path, adversarial_weight=0.1, stop_at=6)
    path = tmp_path / checkpoint.NAME
    replace(checkpoint.read(path), opponent=None).write(path)
    with pytest.raises(ValueError, match="holds no opponent"):
        _train(name, tmp_path, adversarial_weight=0.1, resume=True)


TOGETHER = """
import sys
from dataclasses import replace
from pathlib import Path
from model_zoo import training
from model_zoo.training import loop, recipe

found = training.load("synthetic-dir")
c = replace(found.configurations["smoke"], steps=2, bf16=False, adversarial_weight=0.1, opponent_channels=4)
loop.train(found, c, Path(sys.argv[1]), sources=recipe.make_simulated_sources(phantom=True))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_train_together_against_one_opponent(tmp_path: Path) -> None:
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "two")], capture_output=True, text=True, env=environment,
        cwd=Path(__file__).parents[1], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    together = checkpoint.read(tmp_path / "two" / checkpoint.NAME)
    assert (together.world, together.step) == (2, 2)
    assert together.opponent is not None
    assert _flatten(together.opponent["judges"]).isfinite().all()


def _flatten(state: Any) -> Tensor:
    return torch.cat([value.float().flatten() for value in state.values()])


@pytest.mark.slow
def test_the_bundle_holds_the_main_network_only(tmp_path: Path) -> None:
    name = "synthetic-dir"
    run = _train(name, tmp_path / "run", adversarial_weight=0.1)
    bundle.write(
        training.load(name), run, tmp_path / "made", version="0.0.1", made_on=date(2026, 1, 2), commit="c0ffee"
    )
    weights = load_file(tmp_path / "made" / WEIGHTS)
    c = training.load(name).configurations["smoke"]
    assert set(weights) == set(training.load(name).make_network(c).state_dict())


def test_a_judge_s_values_do_not_depend_on_the_rest_of_the_batch() -> None:
    torch.manual_seed(1)
    judge = make_judge(4, 1).eval()
    x = torch.randn(2, 1, 48, 48, 48)
    both, alone = judge(x)[-1], judge(x[:1])[-1]
    assert torch.allclose(both[:1], alone, atol=1e-5)
    assert judge(torch.randn(1, 1, 16, 16, 16))[-1].shape[2:] == (2, 2, 2)
