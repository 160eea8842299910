"""``python -m tests.fuzz.child TARGET``: try one target in this process, with limits that end with it."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import random
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from tests.fuzz import oracle, targets
from tests.fuzz.oracle import Finding
from tests.fuzz.targets import Target

__all__ = ["QUIET", "main"]

_MORE_MB = 768
_ROUND = 500
"""Examples of one round of Hypothesis, which remembers all of a round."""

QUIET = settings(
    deadline=None, database=None, verbosity=Verbosity.quiet, print_blob=False, report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
)  # fmt: skip


def main() -> int:
    """Run the kept inputs, then new ones; return 1 after a finding, whose input lies at ``--out``."""
    options = _parse_options()
    logging.getLogger().addHandler(logging.NullHandler())
    os.environ["OMP_NUM_THREADS"] = "1"
    target = targets.load(options.target)
    oracle.limit_memory(_MORE_MB)
    last = options.out / f"last-{target.name}"
    options.out.mkdir(parents=True, exist_ok=True)
    began, runner = time.process_time(), _Runner(target, last)
    try:
        for path in targets.read_corpus(target.name):
            runner.run(path.read_bytes())
        _try_new(runner, options)
    except Finding as finding:
        kept = options.out / f"{target.name}-{hashlib.sha256(last.read_bytes()).hexdigest()[:8]}"
        last.rename(kept)
        print(f"{finding}\nthe input is {kept}", file=sys.stderr)
        return 1
    last.unlink(missing_ok=True)
    print(f"{target.name}: {runner.count} inputs, {runner.taken} taken, {time.process_time() - began:.1f} s")
    return 0


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=targets.TARGETS)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=0.0, help="go on for so long with new examples")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    return parser.parse_args()


class _Runner:
    """Runs inputs and keeps the last one in a file: a crash of a library ends this process without a word."""

    def __init__(self, target: Target, last: Path) -> None:
        self.target, self._last = target, last
        self.count = self.taken = 0

    def run(self, data: bytes) -> None:
        self._last.write_bytes(data)
        self.count += 1
        self.taken += oracle.check(self.target, data)


def _try_new(runner: _Runner, options: argparse.Namespace) -> None:
    """Try the same examples each time, or other ones for as long as was asked."""
    if not options.seconds:
        return _try_round(runner, options.examples, 1)
    until = time.monotonic() + options.seconds
    while time.monotonic() < until:
        _try_round(runner, _ROUND, random.randrange(2**32))


def _try_round(runner: _Runner, count: int, number: int) -> None:
    @seed(number)
    @settings(QUIET, max_examples=count)
    @given(runner.target.examples)
    def try_one(data: bytes) -> None:
        runner.run(data)

    try_one()


if __name__ == "__main__":
    sys.exit(main())
