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

__all__ = ["LARGEST_ANSWER", "kept", "pieces", "sent", "whole"]

_pool = Pool()
_kept = Kept(64 << 20)
_budget = Budget(256 << 20)

pieces = _pool.run
"""``pieces(function, *arguments)``: what the function gives, in pieces that can be let go one by one. Raises
InputRefused and NotFound as the function does, InputRefused when it needs too much, NodeBusy."""

sent = _budget.sent
"""Pieces on their way to a client, counted until it has taken them; so many bytes at a time and no more. Raises
NodeBusy."""

atexit.register(_pool.close)


def whole(function: Work, *arguments: object) -> bytes:
    """What the function gives. Raises as ``pieces`` does."""
    return b"".join(_pool.run(function, *arguments))


def kept(function: Work, *arguments: object) -> bytes:
    """The same, of which the last 64 MiB are remembered, and refusals: a file of the spool never changes."""
    return _kept.get((function.__module__, function.__name__, arguments), lambda: whole(function, *arguments))
