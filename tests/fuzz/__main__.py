"""``python -m tests.fuzz --minutes N [TARGET ...]``: try every kind of input for its share of the time."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys

from tests.fuzz.targets import TARGETS

__all__ = ["main"]


def main() -> int:
    """Run each target in a process of its own; return 1 where one has a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all targets together")
    options = parser.parse_args()
    chosen = options.targets or list(TARGETS)
    engines = ["child", "guided"] if importlib.util.find_spec("atheris") else ["child"]
    seconds = max(1, round(60 * options.minutes / len(chosen) / len(engines)))
    codes = [_run(engine, name, seconds) for name in chosen for engine in engines]
    return 1 if any(codes) else 0


def _run(engine: str, name: str, seconds: int) -> int:
    arguments = [name, str(seconds)] if engine == "guided" else [name, "--seconds", str(seconds)]
    return subprocess.run([sys.executable, "-m", f"tests.fuzz.{engine}", *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
