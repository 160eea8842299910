"""Text of results that fits into its attribute, cut between words."""

from __future__ import annotations

__all__ = ["LONGEST_LO", "cut_words"]

LONGEST_LO = 64
"""Longest value of LO, in characters (PS3.5 6.2)."""
_LOOSE_ENDS = frozenset({"a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"})
"""Words that do not end a phrase."""


def cut_words(text: str, most: int = LONGEST_LO) -> str:
    """Return the text, or as many of its whole words as fit into ``most`` characters; a longer word is cut."""
    if len(text) <= most:
        return text
    words = text[: most + 1].rsplit(" ", 1)[0].split()
    while len(words) > 1 and words[-1].strip(",;:(").lower() in _LOOSE_ENDS:
        words.pop()
    return " ".join(words)[:most].rstrip(" ,;:(-")
