"""Exponential back-off with jitter between attempts."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Protocol

__all__ = ["draw_backoff"]


class _Limits(Protocol):
    @property
    def backoff_s(self) -> float: ...
    @property
    def backoff_max_s(self) -> float: ...


def draw_backoff(attempts: int, limits: _Limits, generator: random.Random) -> timedelta:
    """Return a random wait after ``attempts`` failures: between half and all of backoff_s 2^(attempts - 1), bounded."""
    longest = min(limits.backoff_s * 2.0 ** min(attempts - 1, 30), limits.backoff_max_s)
    return timedelta(seconds=longest * generator.uniform(0.5, 1.0))
