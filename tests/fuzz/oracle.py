"""What one input may do: be taken or refused by name, within two seconds of processor time and bounded memory."""

from __future__ import annotations

import faulthandler
import logging
import resource
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fuzz.targets import Target

__all__ = ["MOST_CPU_S", "Finding", "check", "limit_memory", "recorded_errors"]

MOST_CPU_S = 2.0
MOST_WALL_S = 200.0
"""Time after which a run that waits for something ends the process, with the places of its threads."""


_LOGGERS = ("dicomnode", "db", "uvicorn", "asyncio")
"""Errors of pynetdicom are none of the node's: the node hides them, because they quote messages."""


class Finding(Exception):
    """An input that the program neither takes nor refuses by name."""


class _TooSlow(BaseException):
    """The processor time is over; no handler of ``Exception`` in the program can take it."""


def check(target: Target, data: bytes) -> bool:
    """Give the input to the program; return whether it was taken. Raises Finding."""
    try:
        return _run(target, data)
    except _TooSlow:
        pass  # once, where the program imported what it needs
    try:
        return _run(target, data)
    except _TooSlow:
        raise Finding(f"{target.name}: more than {MOST_CPU_S:g} s of processor time") from None


def _run(target: Target, data: bytes) -> bool:
    began = time.process_time()
    try:
        with _limited_time(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of libraries about odd values are no fault
            target.run(data)
        is_taken = True
    except target.refusals:
        is_taken = False
    except Exception as error:
        raise Finding(f"{target.name}: {type(error).__name__}: {error}") from error
    if time.process_time() - began > MOST_CPU_S:  # in a call that no signal interrupts
        raise _TooSlow
    return is_taken


@contextmanager
def _limited_time() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGPROF, stop)
    faulthandler.dump_traceback_later(MOST_WALL_S, exit=True)
    signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)


def limit_memory(more_mb: int) -> None:
    """Let this process take so much more memory than it has now, to its end: beyond, an allocation raises."""
    now_kb = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0])
    most = (now_kb << 10) + (more_mb << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class _ErrorLog(logging.Handler):
    def __init__(self, records: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(_LOGGERS):
            self._records.append(f"{record.name}: {record.getMessage()}")


@contextmanager
def recorded_errors() -> Iterator[list[str]]:
    """Yield a list of the errors that a server logs and of the exceptions that end its threads."""
    found: list[str] = []

    def keep(args: Any) -> None:
        found.append(f"a thread ended with {args.exc_type.__name__}: {args.exc_value}")

    handler, before = _ErrorLog(found), threading.excepthook
    logging.getLogger().addHandler(handler)
    threading.excepthook = keep
    try:
        yield found
    finally:
        threading.excepthook = before
        logging.getLogger().removeHandler(handler)
