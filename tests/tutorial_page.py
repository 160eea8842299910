"""The commands of a tutorial with their expected output, and a shell that runs them as they stand."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Step", "matches", "read_steps", "run_steps"]

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_MARK = "==== end of step"
_PRELUDE = "set -e\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n"
"""Stop at the first command that fails, and leave no program running."""


@dataclass(frozen=True)
class Step:
    """One ``sh`` block of a page; ``expected``: the ``text`` block that follows it, or None."""

    command: str
    expected: str | None = None


def read_steps(page: str) -> list[Step]:
    """Return the steps of a page in their order. ``text`` blocks are the output of the ``sh`` block before them."""
    steps: list[Step] = []
    for kind, body in _BLOCK.findall(page):
        if kind == "sh":
            steps.append(Step(body))
        elif kind == "text":
            steps[-1] = Step(steps[-1].command, body)
    return steps


def run_steps(steps: Sequence[Step], folder: Path, ports: Mapping[str, int], *, timeout_s: float) -> list[str]:
    """Run the steps in one shell, with other ports in place of the page's, and return what each printed on stdout.

    Raises AssertionError with all of the output where a step fails or takes too long.
    """
    script = _PRELUDE + "".join(f"{step.command}\nprintf '\\n%s\\n' '{_MARK}'\n" for step in steps)
    for shown, free in ports.items():
        script = re.sub(rf"\b{shown}\b", str(free), script)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
    }
    program = subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = program.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        output, errors = program.communicate()
        raise AssertionError(f"the tutorial takes longer than {timeout_s:g} s:\n{output}\n{errors}") from None
    printed = output.split(f"\n{_MARK}\n")[:-1]
    assert program.returncode == 0, f"step {len(printed) + 1} failed:\n{output}\n{errors}"
    return printed


def matches(expected: str, printed: str, ports: Mapping[str, int]) -> bool:
    """Return whether the output is the expected one. ``…`` stands for any text in a line, alone for any lines.

    The width of spaces and rules does not count, because it depends on the values in a table.
    """
    pattern = "".join(_line_pattern(line) for line in _normalize(expected).splitlines())
    for shown, free in ports.items():
        pattern = re.sub(rf"\b{shown}\b", str(free), pattern)
    return re.fullmatch(pattern, _normalize(printed)) is not None


def _line_pattern(line: str) -> str:
    if line == "…":
        return r"(?:.*\n)*?"
    return ".*".join(re.escape(part.strip()) for part in line.split("…")) + "\n"


def _normalize(text: str) -> str:
    lines = (re.sub(r"─+", "─", " ".join(line.split())) for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines if line)
