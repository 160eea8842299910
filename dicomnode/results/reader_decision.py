"""The decision of a reader on a result, without the packages that write it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

__all__ = ["READERS_WORDS", "ReaderDecision"]

READERS_WORDS = "Reader's words: "
"""Beginning of the line of free text in a note; de-identification removes such lines."""


@dataclass(frozen=True)
class ReaderDecision:
    """Decision of a reader with initials ``who`` on a result, and when."""

    is_accepted: bool
    who: str
    reason: str
    at: datetime
