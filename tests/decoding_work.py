"""Work for the child processes that decode. They import this module alone, not the tests with their libraries."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["find_process_id", "state_process_id_and_sleep"]


def find_process_id(request: str = "") -> bytes:
    """Return the number of the process that runs this.

    ``request`` is any word: the pool refuses a first argument that ended a child before, whatever the function.
    """
    return str(os.getpid()).encode()


def state_process_id_and_sleep(path: Path, seconds: float) -> bytes:
    """Write the number of the process to a file, whole at once, and be at work for a time."""
    part = path.with_suffix(".part")
    part.write_bytes(find_process_id())
    part.rename(path)
    time.sleep(seconds)
    return b""
