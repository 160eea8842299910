"""The simulator of the whole node: no trial has findings, a seed repeats its trial, and planted faults are found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.plan import make_plan
from tests.simulation.planted import FAULTS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TRIALS = 12


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the simulator in a process without other threads, in which no module of the node is imported yet."""
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_plan_follows_from_its_seed() -> None:
    assert make_plan(17) == make_plan(17)
    assert len({make_plan(seed) for seed in range(50)}) == 50


@pytest.mark.timeout(1800)
def test_no_trial_has_findings() -> None:
    done = run("--trials", str(TRIALS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{TRIALS} trials, 0 with findings" in done.stdout


@pytest.mark.timeout(600)
def test_a_seed_repeats_its_trial() -> None:
    first, second = run("--seed", "5"), run("--seed", "5")
    assert "digest of the outcome" in first.stdout, first.stderr
    assert first.stdout == second.stdout


@pytest.mark.timeout(1800)
def test_every_planted_fault_is_found() -> None:
    assert len(FAULTS) >= 20
    done = run("--planted")
    assert done.returncode == 0, done.stdout + done.stderr
