"""De-identification of the node's own results.

Their text was written by the node and states that they are synthetic: it stays, without what it may quote of the
patient, and without what a reader wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydicom.dataset import Dataset

from dicomnode.config.deidentify import DeidentifyConfig
from dicomnode.deidentify.values import OLDEST_YEARS, remove_words
from dicomnode.reading import covariates
from dicomnode.results import provenance
from dicomnode.results.reader_decision import READERS_WORDS

__all__ = ["KEPT_DESCRIPTORS", "clean_record", "clean_text", "is_own_result", "remove_characteristics"]

KEPT_DESCRIPTORS = frozenset(
    {"SeriesDescription", "DerivationDescription", "ImageComments", "FrameComments", "ContributionDescription"}
)
"""Keywords of the descriptors that hold the marks of a result."""
_CHARACTERISTICS = frozenset({"sex", "age_years", "weight_kg", "size_m", "covariates"})
_COVARIATE_TITLES = frozenset(item.title for item in covariates.ITEMS.values())
_CHARACTERISTIC_WORDS = re.compile(r"\b(age[ds]?|years?|sex|male|female|weight|kg|mmse|apoe|p-tau\w*)\b", re.IGNORECASE)
_CLAUSES = re.compile(r"(?<=[.;:]) |\r?\n")
_YEARS = re.compile(r"\b\d+(\.\d+)?(?= years?\b)")


def is_own_result(ds: Dataset) -> bool:
    """Return whether the node made the object."""
    try:
        return ds.get("SyntheticData") == "YES" and bool(provenance.read_record(ds))
    except (KeyError, ValueError, AttributeError):
        return False


def clean_text(text: str, profile: DeidentifyConfig) -> str:
    """Remove a reader's words and the clauses that name characteristics of the patient; where these stay, ages above 89
    become 90.
    """
    if READERS_WORDS in text:
        text = "\r\n".join(line for line in text.splitlines() if not line.startswith(READERS_WORDS))
    if profile.patient_characteristics:
        return _YEARS.sub(lambda found: _cap_years(found.group()), text)
    lines = []
    for line in text.splitlines():
        clauses = [clause for clause in _CLAUSES.split(line) if not _CHARACTERISTIC_WORDS.search(clause)]
        lines.append(" ".join(clauses))
    return "\r\n".join(line for line in lines if line)


def clean_record(ds: Dataset, profile: DeidentifyConfig, identifiers: frozenset[str]) -> None:
    """Clean the provenance record: remove the patient's characteristics, the job's name on this node, and
    ``identifiers`` from all that comes from the input."""
    block = ds.private_block(0x0099, provenance.PRIVATE_CREATOR)
    content = provenance.read_record(ds)
    for part in ("acquisition", "parameters", "measurements"):
        recorded = content.get(part, {})
        remaining = recorded if profile.patient_characteristics else remove_characteristics(recorded)
        content[part] = _clean_value(remaining, profile, identifiers)
    content["node"] = content.get("node", {}) | {"job": ""}
    block[0x01].value = json.dumps(content, sort_keys=True)


def remove_characteristics(value: Any) -> Any:
    """Return parameters or measurements of a record without the patient's characteristics, covariates among them."""
    if isinstance(value, Mapping):
        omitted = _CHARACTERISTICS | _COVARIATE_TITLES
        return {key: remove_characteristics(each) for key, each in value.items() if key not in omitted}
    return [remove_characteristics(each) for each in value] if isinstance(value, list) else value


def _clean_value(value: Any, profile: DeidentifyConfig, identifiers: frozenset[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _clean_entry(key, each, profile, identifiers) for key, each in value.items()}
    if isinstance(value, list):
        return [_clean_value(each, profile, identifiers) for each in value]
    return remove_words(value, identifiers) if isinstance(value, str) else value


def _clean_entry(key: str, value: Any, profile: DeidentifyConfig, identifiers: frozenset[str]) -> Any:
    if key == "age_years" and isinstance(value, int | float):
        return min(float(value), OLDEST_YEARS + 1.0)
    if key in _COVARIATE_TITLES and isinstance(value, str):
        return remove_words(clean_text(value, profile), identifiers)
    return _clean_value(value, profile, identifiers)


def _cap_years(years: str) -> str:
    return str(OLDEST_YEARS + 1) if float(years) > OLDEST_YEARS else years
