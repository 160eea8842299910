"""Values that name people, left out of pages where ``[web] mask_names`` is set."""

from __future__ import annotations

from dataclasses import replace

from dicomnode.routing.routing import RouteExplanation

__all__ = ["is_hidden", "mask_names"]

_HIDDEN_WORDS = ("Patient", "Name", "Address", "Telephone", "Accession", "Comments", "InstanceUID", "ReferenceUID")
"""Words of keywords whose values no page lists: they name people, or no route needs them."""
_MASK = "hidden"


def mask_names(found: RouteExplanation) -> RouteExplanation:
    """Return an explanation without the values of attributes that name people."""
    why, answers = found.why, []
    for each in found.answers:
        if each.value not in (None, "") and is_hidden(each.keyword):
            why = why.replace(f"{each.keyword} is {each.value!r}", f"{each.keyword} is {_MASK}")
            each = replace(each, value=_MASK)
        answers.append(each)
    return replace(found, why=why, answers=tuple(answers))


def is_hidden(keyword: str) -> bool:
    return any(part in keyword for part in _HIDDEN_WORDS)
