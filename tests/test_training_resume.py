"""Every recipe runs from nothing to a bundle by one command; a second or a resumed run gives the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from model_zoo import registry, training
from model_zoo.training import bundle, checkpoint, loop, recipe, run_log

pytestmark = pytest.mark.training

EVERY = pytest.mark.parametrize(
    "name", sorted(name for name, module in training.RECIPES.items() if find_spec(module) is not None)
)

KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from model_zoo import training
from model_zoo.training import loop, recipe

found = training.load(sys.argv[1])
c = replace(found.configurations["smoke"], checkpoint_every=1)

def die(line):
    if line["step"] == c.steps // 2 + 1:  # logged, its checkpoint not yet written
        os.kill(os.getpid(), signal.SIGKILL)

loop.train(found, c, Path(sys.argv[2]), sources=recipe.make_simulated_sources(phantom=True), report=die)
"""

TOGETHER = """
import sys
from dataclasses import replace
from pathlib import Path
from model_zoo import training
from model_zoo.training import loop, recipe

found = training.load("mri-prior")
c = replace(found.configurations["smoke"], steps=1, bf16=False)
loop.train(found, c, Path(sys.argv[1]), sources=recipe.make_simulated_sources(phantom=True))
"""


def python(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1])


def train(name: str, out: Path, *options: str) -> str:
    """Run the command; return the digest of its bundle's weights."""
    done = python(
        "-m", "dicomnode", "train", name, "--configuration", "smoke", "--phantom", "--out", str(out), *options
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out / "bundle")
    facts = registry.read_facts(out / "bundle")
    registry.verify(facts)
    return facts.digest


def digest_of(found: recipe.Recipe[Any], out: Path, *, resume: bool = False) -> str:
    """Train in this process; return the digest of the bundle's weights."""
    c = found.configurations["smoke"]
    run = loop.train(found, c, out, sources=recipe.make_simulated_sources(phantom=True), resume=resume)
    bundle.write(found, run, out / "bundle", version="0.0.0", made_on=date(2026, 1, 2), commit="c0ffee")
    return registry.read_facts(out / "bundle").digest


@pytest.mark.timeout(1200)  # seconds of work, but the processes share the machine with others
@EVERY
def test_a_killed_and_resumed_run_ends_as_an_unbroken_one_of_another_process(name: str, tmp_path: Path) -> None:
    found = training.load(name)
    digest = train(name, tmp_path / "once")
    killed = python("-c", KILLED, name, str(tmp_path / "killed"))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    steps = found.configurations["smoke"].steps
    assert checkpoint.read(tmp_path / "killed" / checkpoint.NAME).step == steps // 2
    assert digest_of(found, tmp_path / "killed", resume=True) == digest
    log = [json.loads(line)["step"] for line in (tmp_path / "killed" / run_log.NAME).read_text().splitlines()]
    assert log == sorted(set(log))
    assert log[-1] == steps


@pytest.mark.timeout(1200)
def test_the_command_goes_on_from_a_killed_run(tmp_path: Path) -> None:
    killed = python("-c", KILLED, "mri-prior", str(tmp_path / "killed"))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert train("mri-prior", tmp_path / "killed", "--resume") == digest_of(
        training.load("mri-prior"), tmp_path / "once"
    )


def test_a_step_ahead_is_prepared_by_the_network_of_the_last_restart_whatever_happens_meanwhile(tmp_path: Path) -> None:
    """The run is validated at every step, which swaps in averaged weights, stopped in the second part and resumed."""
    found = training.load("anatomy")
    c = replace(found.configurations["smoke"], steps=8, checkpoint_every=8)
    often = replace(c, checkpoint_every=1)
    sources = recipe.make_simulated_sources(phantom=True)

    def stop(progress: loop.Progress) -> None:
        raise InterruptedError(progress.step)

    once = checkpoint.read(loop.train(found, c, tmp_path / "once", sources=sources))
    with pytest.raises(InterruptedError, match="5"):
        loop.train(found, often, tmp_path / "often", sources=sources, progress=stop)
    assert checkpoint.read(tmp_path / "often" / checkpoint.NAME).step == 4
    resumed = checkpoint.read(loop.train(found, often, tmp_path / "often", sources=sources, resume=True))
    assert resumed.step == once.step == 8
    assert all(torch.equal(once.average[name], value) for name, value in resumed.average.items())


@EVERY
def test_a_recipe_s_bundle_loads_and_says_what_it_is(name: str, tmp_path: Path) -> None:
    found = training.load(name)
    sources = recipe.make_simulated_sources(phantom=True)
    tiny = replace(found.configurations["smoke"], steps=1, warmup=1)
    run = loop.train(found, tiny, tmp_path / "run", sources=sources)
    bundle.write(found, run, tmp_path / "bundle", version="0.1.0", made_on=date(2026, 1, 2), commit="c0ffee")
    model = registry.load_from(registry.read_facts(tmp_path / "bundle"))
    assert model.name == found.bundle
    assert sum(p.numel() for p in model.network.parameters()) > 0
    for key in (
        "task",
        "intended_use",
        "network_input",
        "input_contract",
        "units",
        "trained_on",
        "data_licence",
        "licence",
        "metrics",
    ):
        assert model.metadata[key], key
    assert model.metadata["seed"] == tiny.seed
    assert "trained on simulation only" in (tmp_path / "bundle" / "docs" / "README.md").read_text()


@EVERY
def test_a_recipe_s_shipped_configurations_fit_a_bundle(name: str) -> None:
    found = training.load(name)
    assert set(found.configurations) == {"cpu", "gpu", "smoke"}
    for c in found.configurations.values():
        with torch.device("meta"):
            network = found.make_network(c)
        assert 2 * sum(p.numel() for p in network.parameters()) <= bundle.LARGEST_BYTES


@pytest.mark.timeout(1200)
def test_two_processes_train_on_the_mean_of_their_batches_and_stay_the_same(tmp_path: Path) -> None:
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    done = python(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), str(tmp_path / "two")
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    together = checkpoint.read(tmp_path / "two" / checkpoint.NAME)
    assert together.world == 2
    found = training.load("mri-prior")

    def both(c: recipe.Configuration, source: recipe.Source, generator: torch.Generator) -> dict[str, torch.Tensor]:
        other = recipe.seeded(c.seed, 0, 1)
        first, second = found.draw_batch(c, source, generator), found.draw_batch(c, source, other)
        return {key: torch.cat([first[key], second[key]]) for key in first}

    c = replace(found.configurations["smoke"], steps=1, bf16=False)
    run = loop.train(
        replace(found, draw_batch=both), c, tmp_path / "one", sources=recipe.make_simulated_sources(phantom=True)
    )
    alone = checkpoint.read(run)
    for index, state in alone.optimiser["state"].items():
        torch.testing.assert_close(
            together.optimiser["state"][index]["exp_avg"], state["exp_avg"], rtol=1e-3, atol=1e-6
        )


def test_a_run_of_two_processes_is_not_resumed_by_one(tmp_path: Path) -> None:
    found = training.load("mri-prior")
    c = replace(found.configurations["smoke"], steps=1)
    path = loop.train(found, c, tmp_path, sources=recipe.make_simulated_sources(phantom=True))
    replace(checkpoint.read(path), world=2).write(path)
    with pytest.raises(ValueError, match="trained by 2 processes together, now there are 1"):
        loop.train(found, c, tmp_path, sources=recipe.make_simulated_sources(phantom=True), resume=True)
