"""Commands of this program as processes that end with the night."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dicomnode.errors import NodeError

__all__ = ["Commands", "OutOfTime"]

_INTERRUPTED = 130
"""Status of a command that Ctrl-C ends."""
_LOOK_S = 0.5
"""Seconds between two looks at a process."""


class OutOfTime(Exception):
    """The night is over, or this process is to stop; the next night goes on."""


@dataclass(frozen=True)
class Commands:
    """Commands with one configuration. ``left_s``: seconds that are left; ``lock``: file that stays open meanwhile."""

    config: Path
    left_s: Callable[[], float]
    lock: int

    def check_time(self) -> None:
        """Raise OutOfTime where nothing is left."""
        if self.left_s() <= 0:
            raise OutOfTime("the hours of this night are over")

    def run(
        self,
        words: Sequence[str],
        *,
        log: Path,
        output: Path | None = None,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        """Run a command to its end; ``watch`` is called meanwhile. Messages go to ``log``, other output to ``output``.

        Raises OutOfTime where a signal ended the process, as at the end of the night or without memory, NodeError with
        the last line of a failure.
        """
        self.check_time()
        with ExitStack() as stack:
            messages = stack.enter_context(log.open("a"))
            printed = messages if output is None else stack.enter_context(output.open("w"))
            process = stack.enter_context(self._start(words, printed, messages))
            try:
                self._wait(process, watch)
            finally:
                process.kill()
        if process.returncode < 0 or process.returncode == _INTERRUPTED:
            raise OutOfTime(f"{words[0]} was ended by a signal (status {process.returncode})")
        if process.returncode:
            self.check_time()
            raise NodeError(f"{words[0]} ended with status {process.returncode}: {_read_last_line(log)}")

    def _start(self, words: Sequence[str], printed: IO[str], messages: IO[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "dicomnode", "--config", str(self.config), *words],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=messages,
            env={"OMP_WAIT_POLICY": "PASSIVE"} | os.environ,
            pass_fds=[self.lock],
        )

    def _wait(self, process: subprocess.Popen[bytes], watch: Callable[[], None]) -> None:
        while True:
            try:
                process.wait(max(0.05, min(_LOOK_S, self.left_s())))
                return
            except subprocess.TimeoutExpired:
                watch()
                self.check_time()


def _read_last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("dicomnode: ") if lines else "no message"
