"""How long to wait before something that failed is tried again."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Protocol

__all__ = ["backoff"]


class _Limits(Protocol):
    @property
    def backoff_s(self) -> float: ...
    @property
    def backoff_max_s(self) -> float: ...


def backoff(attempts: int, limits: _Limits, generator: random.Random) -> timedelta:
    """Twice as long after each attempt up to the maximum, and between half and all of that."""
    longest = min(limits.backoff_s * 2.0 ** min(attempts - 1, 30), limits.backoff_max_s)
    return timedelta(seconds=longest * generator.uniform(0.5, 1.0))
