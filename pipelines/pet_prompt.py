"""A sentence such as "a tau image with later stage, MMSE 13" as covariates of another patient (TauPETGen, Jang et al.).

The sentence is read by a strict grammar, not by a language model: what it does not understand is refused. It begins, if
it likes, with "a tau image with" or "an amyloid image with"; items follow, separated by commas:

    MMSE 13 | 70 years | female | male | e4 2 | p-tau217 0.4 | later stage
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from model_zoo.pet_synthesis import TARGETS

__all__ = ["Prompt", "parse_prompt"]

LONGEST = 40
"""Characters of the items, so that the series' description holds them with what they are."""
_HEAD = re.compile(r"(?:an?\s+)?(?:(amyloid|tau)\s+)?(?:image|pet)\s+with\s+", re.IGNORECASE)
_UNDERSTOOD = "MMSE 13, 70 years, female, male, e4 2, p-tau217 0.4, later stage"


@dataclass(frozen=True)
class Prompt:
    """A parsed sentence: tracers that it names, covariates in place of the patient's, and its items in one form."""

    targets: tuple[str, ...]
    covariates: Mapping[str, Any]
    text: str


def _read_mmse(text: str) -> tuple[str, Any, str]:
    score = int(text)
    if score > 30:
        raise ValueError(f"MMSE {score}: there are 0 to 30 points")
    return "mmse", float(score), f"MMSE {score}"


def _read_age(text: str) -> tuple[str, Any, str]:
    age = int(text)
    if not 50 <= age <= 95:
        raise ValueError(f"{age} years: the model knows 50 to 95")
    return "age_years", float(age), f"{age} years"


def _read_ptau217(text: str) -> tuple[str, Any, str]:
    level = float(text)
    if not 0.01 <= level <= 10:
        raise ValueError(f"p-tau217 {text}: needed is 0.01 to 10 pg/ml")
    return "ptau217_pg_ml", level, f"p-tau217 {level:g}"


_ITEMS: tuple[tuple[re.Pattern[str], Callable[[str], tuple[str, Any, str]]], ...] = (
    (re.compile(r"mmse\s+(\d{1,2})"), _read_mmse),
    (re.compile(r"(?:age\s+)?(\d{1,3})(?:\s+years)"), _read_age),
    (re.compile(r"(female|male)"), lambda text: ("sex", {"female": "F", "male": "M"}[text], text)),
    (re.compile(r"(?:apoe\s+)?e4\s+([012])"), lambda text: ("e4", int(text), f"e4 {text}")),
    (re.compile(r"p-tau217\s+(\d+(?:\.\d+)?)"), _read_ptau217),
)


def parse_prompt(sentence: str) -> Prompt:
    """Parse a sentence. Raises ValueError that names the part that is not understood, or said twice."""
    head = _HEAD.match(sentence.strip())
    target = head[1].lower() if head and head[1] else None
    rest = sentence.strip()[head.end() :] if head else sentence.strip()
    found: dict[str, Any] = {}
    texts: list[str] = []
    for part in (each.strip().lower() for each in rest.split(",")):
        if part in ("late stage", "later stage"):  # the only one that the model knows
            continue
        name, value, text = _read_item(part)
        if name in found:
            raise ValueError(f"{part!r}: said twice")
        found[name] = value
        texts.append(text)
    if not found:
        raise ValueError(f"{sentence!r} names no covariate; understood are: {_UNDERSTOOD}")
    if len(text := ", ".join(texts)) > LONGEST:
        raise ValueError(f"{text!r} is longer than {LONGEST} characters: name fewer covariates")
    return Prompt((target,) if target else TARGETS, MappingProxyType(found), text)


def _read_item(part: str) -> tuple[str, Any, str]:
    if part in ("early stage", "earlier stage"):
        raise ValueError(f"{part!r}: the model knows scans of the late window only")
    for pattern, read in _ITEMS:
        if match := pattern.fullmatch(part):
            return read(match[1])
    raise ValueError(f"{part!r} is not understood; understood are: {_UNDERSTOOD}")
