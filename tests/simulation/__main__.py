"""Trials from the command line: ``python -m tests.simulation --trials 300``, or ``--seed 17`` for one trial."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.simulation import loading
from tests.simulation.plan import make_plan
from tests.simulation.planted import FAULTS

if TYPE_CHECKING:
    from tests.simulation.trial import Simulator

_MEMORY = Path("/dev/shm")


def main() -> int:
    """Run what the arguments say; return 1 where a trial has findings, or a planted fault is not found."""
    arguments = _parse_arguments()
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of a trial
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"PYTHONHASHSEED": "0"})
    loading.install()
    logging.disable()
    from tests.simulation.trial import Simulator

    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        simulator = Simulator(Path(folder) / "trial")
        simulator.warm_up(make_plan(0))
        if arguments.planted:
            return _run_planted(simulator)
        if arguments.seed is not None:
            return _run_one(simulator, arguments.seed)
        return _run_many(simulator, range(arguments.first, arguments.first + arguments.trials))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="seed of the first trial")
    parser.add_argument("--seed", type=int, help="run this one trial, and print its plan and its trace")
    parser.add_argument(
        "--planted",
        action="store_true",
        help="plant each fault in turn, and run the seeds that find it; without, they find nothing",
    )
    return parser.parse_args()


def _run_one(simulator: Simulator, seed: int) -> int:
    verdict = simulator.run(make_plan(seed))
    print(verdict.plan, *verdict.outside.trace, *verdict.findings, sep="\n")
    print(f"digest of the outcome: {verdict.digest}")
    return int(bool(verdict.findings))


def _run_many(simulator: Simulator, seeds: range) -> int:
    failed, began = 0, time.monotonic()
    for seed in seeds:
        failed += _has_findings(simulator, seed)
    seconds = (time.monotonic() - began) / max(1, len(seeds))
    print(f"{len(seeds)} trials, {failed} with findings, {seconds:.2f} s each")
    return int(bool(failed))


def _has_findings(simulator: Simulator, seed: int) -> bool:
    """Run a trial, and print its findings."""
    verdict = simulator.run(make_plan(seed))
    if verdict.findings:
        print(f"seed {seed} at {_read_commit()}: " + "; ".join(verdict.findings), flush=True)
    return bool(verdict.findings)


def _run_planted(simulator: Simulator) -> int:
    seeds = sorted({seed for fault in FAULTS.values() for seed in fault.seeds})
    if any(_has_findings(simulator, seed) for seed in seeds):  # each without a planted fault
        return 1
    missed = 0
    for name, fault in FAULTS.items():
        simulator.planted = fault
        found = [finding for seed in fault.seeds for finding in simulator.run(make_plan(seed)).findings]
        findings = [finding for finding in found if "ends with status" not in finding]  # the fault was not planted
        missed += not findings
        print(f"{name}: {findings[0] if findings else 'NOT FOUND'}", flush=True)
    print(f"{len(FAULTS) - missed} of {len(FAULTS)} planted faults are found")
    return int(bool(missed))


def _read_commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "an unknown commit"


if __name__ == "__main__":
    sys.exit(main())
