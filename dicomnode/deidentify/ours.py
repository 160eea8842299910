"""The node's own results: their words were written by the node and say that they are synthetic, so they stay, without
what they may quote of the patient."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydicom.dataset import Dataset

from dicomnode.config.deidentify import DeidentifyConfig
from dicomnode.deidentify.values import OLDEST_YEARS, without
from dicomnode.reading import covariates
from dicomnode.results import provenance

__all__ = ["KEPT_WORDS", "clean_record", "clean_words", "is_ours"]

KEPT_WORDS = frozenset({"SeriesDescription", "DerivationDescription", "ImageComments", "ContributionDescription"})
"""Descriptors that the marks of a result are made of."""
_CHARACTERISTICS = frozenset({"sex", "age_years", "weight_kg", "size_m", "covariates"})
_TITLES = frozenset(item.title for item in covariates.ITEMS.values())
_QUOTED = re.compile(r"\b(age[ds]?|years?|sex|male|female|weight|kg|mmse|apoe|p-tau\w*)\b", re.IGNORECASE)
_CLAUSES = re.compile(r"(?<=[.;:]) |\r?\n")
_YEARS = re.compile(r"\b\d+(\.\d+)?(?= years?\b)")


def is_ours(ds: Dataset) -> bool:
    """Whether the node made it."""
    try:
        return ds.get("SyntheticData") == "YES" and bool(provenance.recorded(ds))
    except (KeyError, ValueError, AttributeError):
        return False


def clean_words(text: str, profile: DeidentifyConfig) -> str:
    """Clause by clause without what tells of the patient's characteristics; ages above 89 as 90 where they stay."""
    if profile.patient_characteristics:
        return _YEARS.sub(lambda found: _years(found.group()), text)
    lines = []
    for line in text.splitlines():
        clauses = [clause for clause in _CLAUSES.split(line) if not _QUOTED.search(clause)]
        lines.append(" ".join(clauses))
    return "\r\n".join(line for line in lines if line)


def clean_record(ds: Dataset, profile: DeidentifyConfig, words: frozenset[str]) -> None:
    """The record of how it was made, without the patient's characteristics, the job's name on this node, and ``words``
    in what comes from the input."""
    block = ds.private_block(0x0099, provenance.PRIVATE_CREATOR)
    content = provenance.recorded(ds)
    for part in ("acquisition", "parameters", "measurements"):
        content[part] = _cleaned(content.get(part, {}), profile, words)
    content["node"] = content.get("node", {}) | {"job": ""}
    block[0x01].value = json.dumps(content, sort_keys=True)


def _cleaned(value: Any, profile: DeidentifyConfig, words: frozenset[str]) -> Any:
    if isinstance(value, Mapping):
        left_out = frozenset() if profile.patient_characteristics else _CHARACTERISTICS | _TITLES
        return {key: _one(key, each, profile, words) for key, each in value.items() if key not in left_out}
    if isinstance(value, list):
        return [_cleaned(each, profile, words) for each in value]
    return without(value, words) if isinstance(value, str) else value


def _one(key: str, value: Any, profile: DeidentifyConfig, words: frozenset[str]) -> Any:
    if key == "age_years" and isinstance(value, int | float):
        return min(float(value), OLDEST_YEARS + 1.0)
    if key in _TITLES and isinstance(value, str):
        return without(clean_words(value, profile), words)
    return _cleaned(value, profile, words)


def _years(stated: str) -> str:
    return str(OLDEST_YEARS + 1) if float(stated) > OLDEST_YEARS else stated
