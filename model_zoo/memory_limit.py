"""A limit of memory for a piece of work in this process: what goes beyond it raises, before the system runs out."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["limit_memory"]


@contextmanager
def limit_memory(more_bytes: int) -> Iterator[None]:
    """Let the process take so much more memory than it has now; beyond, allocations raise MemoryError.

    RLIMIT_DATA counts private writable memory, not the address space that drivers of GPUs reserve.
    """
    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = _private_bytes() + more_bytes
    limits = [each for each in (allowed, before, most) if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, most))


def _private_bytes() -> int:
    return int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10
