"""Work on received files that may take memory or time without limit, or end the process: done in processes of its own.

Decoders are C code that is fed what strangers send, and a header of a kilobyte can announce gigabytes. The serving
process asks here, by function and arguments, and gets bytes; each child has a limit of memory and of time, and when it
dies only the answer is lost. What waits is bounded too: more is refused with NodeBusy while the node goes on.
"""

from __future__ import annotations

import atexit

from dicomnode.decoding.budget import Budget
from dicomnode.decoding.kept import Kept
from dicomnode.decoding.pool import LARGEST_ANSWER, Pool, Work

__all__ = ["LARGEST_ANSWER", "kept", "pieces", "received", "sent", "whole"]

_pool, _receiving = Pool(), Pool(children=1)
_kept = Kept(64 << 20)
_budget = Budget(256 << 20)

pieces = _pool.run
"""``pieces(function, *arguments)``: what the function gives, in pieces that can be let go one by one. Raises
InputRefused and NotFound as the function does, InputRefused when it needs too much, NodeBusy."""

sent = _budget.sent
"""Pieces on their way to a client, counted until it has taken them; so many bytes at a time and no more. Raises
NodeBusy."""

atexit.register(_pool.close)
atexit.register(_receiving.close)


def whole(function: Work, *arguments: object) -> bytes:
    """What the function gives. Raises as ``pieces`` does."""
    return b"".join(_pool.run(function, *arguments))


def received(function: Work, *arguments: object) -> bytes:
    """The same for reception, in a child of its own: no sender waits for those who look at pictures."""
    return b"".join(_receiving.run(function, *arguments))


def kept(function: Work, *arguments: object) -> bytes:
    """The same, of which the last 64 MiB are remembered, and refusals: a file of the spool never changes."""
    return _kept.get((function.__module__, function.__name__, arguments), lambda: whole(function, *arguments))
