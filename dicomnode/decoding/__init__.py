"""Child processes for work on received files that may take memory or time without limit, or end the process.

Decoders are C code that reads untrusted input, and a header of a kilobyte can announce gigabytes. The serving process
submits a function and its arguments, and gets bytes. Each child has a limit of memory and of time; when it dies, only
the answer is lost. The queue is limited, too: further work is refused with NodeBusy while the node goes on.
"""

from __future__ import annotations

import atexit

from dicomnode.decoding.budget import Budget
from dicomnode.decoding.cache import AnswerCache
from dicomnode.decoding.pool import LARGEST_ANSWER, Pool, Work

__all__ = [
    "LARGEST_ANSWER",
    "general_pool",
    "reception_pool",
    "run",
    "run_cached",
    "run_for_reception",
    "run_in_pieces",
    "stream",
]

general_pool, reception_pool = Pool(), Pool(children=1)
"""The pools of the node: ``reception_pool`` for reception only, so that no sender waits for the web's pictures."""

_cache = AnswerCache(64 << 20)
_budget = Budget(256 << 20)

stream = _budget.stream
"""``stream(pieces)``: iterator of pieces to a client, counted until it has taken them, within a limit of bytes for all
clients together. Raises NodeBusy."""

atexit.register(general_pool.close)
atexit.register(reception_pool.close)


def run_in_pieces(function: Work, *arguments: object) -> list[bytes]:
    """Return the result of the function, in pieces that can be freed one by one.

    Raises InputRefused and NotFound as the function does, InputRefused where it needs too much, and NodeBusy.
    """
    return general_pool.run(function, *arguments)


def run(function: Work, *arguments: object) -> bytes:
    """Return the result of the function. Raises as ``run_in_pieces`` does."""
    return b"".join(general_pool.run(function, *arguments))


def run_for_reception(function: Work, *arguments: object) -> bytes:
    """Return the result of the function, run in a child of ``reception_pool``."""
    return b"".join(reception_pool.run(function, *arguments))


def run_cached(function: Work, *arguments: object) -> bytes:
    """Return the result from a cache of 64 MiB, which keeps refusals, too: spooled files never change."""
    return _cache.get((function.__module__, function.__name__, arguments), lambda: run(function, *arguments))
