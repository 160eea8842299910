"""The order of two values of one number: which is better."""

from __future__ import annotations

import math

__all__ = ["is_better"]

_HIGHER, _LOWER = ("dice", "psnr", "gain"), ("mae", "rmse", "bias")
"""Words in the names of numbers of which more, or less, is better."""


def is_better(name: str, new: float, old: float) -> bool | None:
    """Return whether the new value is better; None where more is neither better nor worse, or both are equal."""
    if new == old or not math.isfinite(new + old):
        return None
    if any(part in name for part in _HIGHER):
        return new > old
    return new < old if any(part in name for part in _LOWER) else None
