"""Facts on the patient of a NIfTI file by BIDS: the row of its subject in ``participants.tsv``.

BIDS 1.10, participants file: a row for each ``participant_id``, ``n/a`` for what is not known; age in years.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dicomnode.errors import InputRefused
from dicomnode.nifti.facts import KEYWORDS, parse_value

__all__ = ["FACTS", "TABLE", "Participant", "read_participant"]

TABLE = "participants.tsv"
FACTS = MappingProxyType({"age": "age_years", "sex": "sex", "weight": "weight_kg"})
"""Facts on a patient by their columns."""
_SUBJECT = re.compile(r"(?:^|_)(sub-[A-Za-z0-9]+)(?=_)")
_DEPTH = 4
"""Folders from the one of the file upwards that may hold the table: DATASET/sub-X/ses-Y/anat."""
_UNKNOWN = ("", "n/a")
_SEX = MappingProxyType({"male": "M", "m": "M", "female": "F", "f": "F", "other": "O", "o": "O"})
_UNITS = MappingProxyType({"age": ("year", "years", "yr"), "weight": ("kg", "kilogram", "kilograms")})


@dataclass(frozen=True)
class Participant:
    """Facts on the subject of a file, by keyword of DICOM, and why others that the table has are not stated."""

    values: Mapping[str, Any] = field(default_factory=dict)
    unclear: Mapping[str, str] = field(default_factory=dict)


def read_participant(path: Path) -> Participant:
    """Return what the table above a NIfTI file states about its subject.

    Nothing where the file's name has no ``sub-``, or no table has the subject. An age such as ``89+`` is not stated.
    A cell that is no value, another unit, several rows of the subject or a table that cannot be read make facts
    unclear: many pipelines read none of them.
    """
    subject = _SUBJECT.search(path.name)
    table = next((folder / TABLE for folder in list(path.parents)[:_DEPTH] if (folder / TABLE).is_file()), None)
    if subject is None or table is None:
        return Participant()
    try:
        row, units = _find_row(table, subject[1]), _find_other_units(table)
    except InputRefused as error:
        return Participant(unclear={KEYWORDS[fact]: str(error) for fact in FACTS.values()})
    values, unclear = {}, {}
    for column, fact in FACTS.items():
        value = row.get(column, "").strip()
        if value in _UNKNOWN or value.endswith("+"):
            continue
        try:
            values[KEYWORDS[fact]] = _convert(column, value, units.get(column, ""))
        except (ValueError, OverflowError) as error:
            unclear[KEYWORDS[fact]] = f"{table.name}: {column} of {subject[1]} is {value[:40]!r}: {error}"
    return Participant(values, unclear)


def _find_row(table: Path, subject: str) -> Mapping[str, str]:
    """Return the row of the subject; quotation marks have no meaning but around a whole cell."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            lines = [
                [_unquote(cell) for cell in line] for line in csv.reader(file, "excel-tab", quoting=csv.QUOTE_NONE)
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputRefused(f"{table.name}: it is no table of text") from error
    rows = [dict(zip(lines[0], line, strict=False)) for line in lines[1:]]
    found = [row for row in rows if row.get("participant_id") == subject]
    if len(found) > 1:
        raise InputRefused(f"{table.name} has {len(found)} rows of {subject}")
    return found[0] if found else {}


def _unquote(cell: str) -> str:
    return cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def _find_other_units(table: Path) -> Mapping[str, str]:
    """Return the units that the file beside the table states by column, where they are others than those of BIDS."""
    sidecar = table.with_suffix(".json")
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() else {}
    except ValueError as error:
        raise InputRefused(f"{sidecar.name}: it is no JSON") from error
    described = content if isinstance(content, dict) else {}
    units = {
        column: str(described[column].get("Units", allowed[0]))
        for column, allowed in _UNITS.items()
        if isinstance(described.get(column), dict)
    }
    return {column: unit for column, unit in units.items() if unit.casefold() not in _UNITS[column]}


def _convert(column: str, value: str, other_unit: str) -> Any:
    """Return the value as the attribute of DICOM holds it; an age is cut to whole years. Raises ValueError."""
    if other_unit:
        raise ValueError(f"{column} is in {other_unit}; needed is {_UNITS[column][-1]}")
    text = _SEX.get(value.casefold(), value) if column == "sex" else value
    if column == "age":
        text = str(math.floor(float(value)))
    return parse_value(FACTS[column], text)
