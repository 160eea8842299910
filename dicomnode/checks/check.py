"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Check"]


@dataclass(frozen=True)
class Check:
    """The result of one check; only ``failed`` stops work."""

    what: str
    result: Literal["ok", "warning", "failed"]
    detail: str
