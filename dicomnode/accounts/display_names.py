"""Names in forms and records of decisions: no two accounts have the same, so that nobody signs as another person."""

from __future__ import annotations

import hashlib
import unicodedata

from sqlalchemy.orm import Session

from db import accounts
from dicomnode.errors import LoginRefused

__all__ = ["NODE_TOKEN_NAME", "choose", "is_taken"]

NODE_TOKEN_NAME = "node token"
"""Name of whoever has the node's token."""
_LONGEST, _DIGITS = 40, 8


def choose(session: Session, name: str, proposed: str) -> str:
    """Return the display name of the account ``name``: the proposed one, with digits of its own where another has that.

    The digits stay when the other account gives the name up: its records stay under it. A provider's name has no
    parentheses, so that nobody can take one with digits. Raises LoginRefused where that one is taken as well.
    """
    digits = hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]
    marked = f"{proposed[: _LONGEST - _DIGITS - 3].strip()} ({digits})"
    account = accounts.find(session, name)
    if (account is None or account.display_name != marked) and not is_taken(session, proposed, by_other_than=name):
        return proposed
    if is_taken(session, marked, by_other_than=name):
        raise LoginRefused(f"the log-in was refused: other accounts have the names {proposed} and {marked}")
    return marked


def is_taken(session: Session, proposed: str, *, by_other_than: str = "") -> bool:
    """Return whether a name, in whatever spelling, is one of another account or of the node's token."""
    others = [each for each in accounts.list_accounts(session) if each.name != by_other_than]
    names = {_fold(text) for each in others for text in (each.name, each.display_name)}
    return _fold(proposed) in names | {_fold(NODE_TOKEN_NAME)}


def _fold(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
