"""The bounded part of the fuzzing: kept inputs and a few new ones of each kind, in a process with limits."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import strategies as st

from dicomnode.errors import InputRefused
from tests.fuzz import oracle, targets
from tests.fuzz.oracle import Finding
from tests.fuzz.targets import Target

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
MOST_CORPUS_BYTES = 200_000
EXAMPLES = 20


@pytest.mark.parametrize("name", targets.TARGETS)
def test_every_input_is_taken_or_refused_by_name(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.child", name, "--examples", str(EXAMPLES), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split(": ")[-1].split()[0]) >= EXAMPLES + len(targets.read_corpus(name))


def test_the_corpus_is_small_and_of_known_targets() -> None:
    files = [path for path in targets.CORPUS.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert {path.parent.name for path in files} <= set(targets.TARGETS)
    assert sum(path.stat().st_size for path in files) < MOST_CORPUS_BYTES


def make_target(run: object) -> Target:
    return Target("sample", run, (InputRefused,), st.binary())  # type: ignore[arg-type]


def refuse(_: bytes) -> None:
    raise InputRefused("no")


def test_what_is_taken_or_refused_is_no_finding() -> None:
    assert oracle.check(make_target(len), b"x")
    assert not oracle.check(make_target(refuse), b"x")


def fail(_: bytes) -> None:
    raise KeyError("x")


def take_time(_: bytes) -> None:
    until = time.process_time() + 3 * oracle.MOST_CPU_S
    while time.process_time() < until:
        pass


def take_time_and_hide_it(_: bytes) -> None:
    try:
        take_time(_)
    except Exception:
        return


@pytest.mark.parametrize("run", [fail, take_time, take_time_and_hide_it])
def test_another_error_and_endless_work_are_findings(run: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "MOST_CPU_S", 0.2)
    with pytest.raises(Finding):
        oracle.check(make_target(run), b"x")


def test_memory_beyond_the_limit_is_a_finding() -> None:
    code = (
        "from tests import test_fuzz as t; from tests.fuzz import oracle\n"
        "oracle.limit_memory(100)\n"
        "oracle.check(t.make_target(lambda data: bytearray(200 << 20)), b'x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "Finding: sample: MemoryError" in done.stderr


def test_errors_in_threads_and_logs_are_recorded() -> None:
    code = (
        "import logging, threading; from tests.fuzz.oracle import recorded_errors\n"
        "with recorded_errors() as found:\n"
        "    logging.getLogger('dicomnode.x').error('one'); logging.getLogger('pynetdicom').error('two')\n"
        "    thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()\n"
        "print(found)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "['dicomnode.x: one', 'a thread ended with ZeroDivisionError: division by zero']"
