"""Facts on the patient of a NIfTI file by BIDS: the row of its subject in ``participants.tsv``.

BIDS 1.10, participants file: a row for each ``participant_id``, ``n/a`` for what is not known; age in years.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dicomnode.errors import InputRefused
from dicomnode.nifti.facts import KEYWORDS, parse_value

__all__ = ["FACTS", "TABLE", "read_participant"]

TABLE = "participants.tsv"
FACTS = MappingProxyType({"age": "age_years", "sex": "sex", "weight": "weight_kg"})
"""Facts on a patient by their columns."""
_SUBJECT = re.compile(r"(?:^|_)(sub-[A-Za-z0-9]+)(?=_)")
_DEPTH = 4
"""Folders from the one of the file upwards that may hold the table: DATASET/sub-X/ses-Y/anat."""
_UNKNOWN = ("", "n/a")
_SEX = MappingProxyType({"male": "M", "m": "M", "female": "F", "f": "F", "other": "O", "o": "O"})
_UNITS = MappingProxyType({"age": ("year", "years", "yr"), "weight": ("kg", "kilogram", "kilograms")})


def read_participant(path: Path) -> dict[str, Any]:
    """Return what the table above a NIfTI file states about its subject, by keyword of DICOM.

    Nothing where the file's name has no ``sub-``, or no table has the subject. An age such as ``89+`` is not stated.
    Raises InputRefused for a table with several rows of the subject, other units, or a value that is none.
    """
    subject = _SUBJECT.search(path.name)
    table = next((folder / TABLE for folder in list(path.parents)[:_DEPTH] if (folder / TABLE).is_file()), None)
    if subject is None or table is None:
        return {}
    row = _find_row(table, subject[1])
    _refuse_other_units(table, row)
    known = {column: (row.get(column) or "").strip() for column in FACTS}
    return {
        KEYWORDS[FACTS[column]]: _convert(table, subject[1], column, value)
        for column, value in known.items()
        if value not in _UNKNOWN and not value.endswith("+")
    }


def _find_row(table: Path, subject: str) -> Mapping[str, str]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.DictReader(file, delimiter="\t") if row.get("participant_id") == subject]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputRefused(f"{table.name}: it is no table of text") from error
    if len(rows) > 1:
        raise InputRefused(f"{table.name} has {len(rows)} rows of {subject}")
    return rows[0] if rows else {}


def _refuse_other_units(table: Path, row: Mapping[str, str]) -> None:
    """Raise InputRefused where the file beside the table states another unit for a column than BIDS does."""
    sidecar = table.with_suffix(".json")
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() else {}
    except ValueError as error:
        raise InputRefused(f"{sidecar.name}: it is no JSON") from error
    for column, allowed in _UNITS.items():
        description = content.get(column) if isinstance(content, dict) and column in row else None
        unit = description.get("Units", allowed[0]) if isinstance(description, dict) else allowed[0]
        if str(unit).casefold() not in allowed:
            raise InputRefused(f"{sidecar.name}: {column} is in {unit}; needed is {allowed[-1]}")


def _convert(table: Path, subject: str, column: str, value: str) -> Any:
    """Return the value as the attribute of DICOM holds it; an age is cut to whole years."""
    text = _SEX.get(value.casefold(), value) if column == "sex" else value
    try:
        if column == "age":
            text = str(math.floor(float(value)))
        return parse_value(FACTS[column], text)
    except (ValueError, OverflowError) as error:
        raise InputRefused(f"{table.name}: {column} of {subject} is {value!r}: {error}") from None
