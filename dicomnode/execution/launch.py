"""The start of workers with the engine of [worker] engine: processes, or actors of Ray.

The rows decide which worker has a job; an engine may die at any moment.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dicomnode.config import Config

__all__ = ["count_local_processes", "run_workers"]


def run_workers(config: Config, *, once: bool, parent: int | None, stop: threading.Event) -> int:
    """Run jobs until ``stop`` is set or the parent process ends; return the number of jobs run in this process.

    With Ray this process only keeps actors running that take jobs, except with ``once``.
    """
    from dicomnode.execution import worker_process

    if parent is not None:
        threading.Thread(target=_stop_with_parent, args=(parent, stop), name="parent watch", daemon=True).start()
    if config.worker.engine == "ray" and not once:
        from dicomnode.execution import ray_actors

        ray_actors.run_actor_pool(config, stop=stop)
        return 0
    return worker_process.run_worker_process(config, once=once, stop=stop)


def count_local_processes(config: Config, requested: int) -> int:
    """Return the number of processes that ``serve`` starts: with Ray at most one, which starts the actors."""
    return min(1, requested) if config.worker.engine == "ray" else requested


def _stop_with_parent(parent: int, stop: threading.Event) -> None:
    while not stop.wait(1.0):
        if os.getppid() != parent:
            stop.set()
