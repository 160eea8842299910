"""What runs jobs: processes, or actors of Ray. The rows decide whose a job is; an engine may die at any moment."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dicomnode.config import Config

__all__ = ["local_processes", "run"]


def run(config: Config, *, once: bool, parent: int | None, stop: threading.Event) -> int:
    """Take jobs until told to stop, or until the parent ends; the number of jobs taken in this process.

    With Ray this process only sees to it that there are actors that take them, except with ``once``.
    """
    from dicomnode.execution import process

    if parent is not None:
        threading.Thread(target=_stop_with, args=(parent, stop), name="parent watch", daemon=True).start()
    if config.worker.engine == "ray" and not once:
        from dicomnode.execution import ray_actors

        ray_actors.drive(config, stop=stop)
        return 0
    return process.work(config, once=once, stop=stop)


def local_processes(config: Config, wanted: int) -> int:
    """How many processes ``serve`` starts: of Ray one, which asks for the actors."""
    return min(1, wanted) if config.worker.engine == "ray" else wanted


def _stop_with(parent: int, stop: threading.Event) -> None:
    while not stop.wait(1.0):
        if os.getppid() != parent:
            stop.set()
