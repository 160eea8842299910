"""PS3.15 Table E.1-1 as data, and the action that a profile with its options takes on an attribute."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from pydicom.tag import BaseTag

from dicomnode.config.deidentify import DeidentifyConfig

__all__ = ["EDITION", "Action", "TableRow", "choose_action", "find_row", "load_rows"]

EDITION = "2026c"
_OPTIONS = ("uids", "device", "institution", "patient", "dates", "descriptors", "structured", "graphics")


class Action(StrEnum):
    """An action on an element: Table E.1-1a, with one action where that leaves a choice."""

    KEEP = "K"
    REMOVE = "X"
    EMPTY = "Z"
    DUMMY = "D"
    UID = "U"
    SHIFT = "C dates"
    CLEAN = "C"


@dataclass(frozen=True)
class TableRow:
    """A row of the table. ``basic``: codes of the Basic Profile, as printed; ``options``: K or C by column name."""

    tag: str
    keyword: str
    basic: str
    options: Mapping[str, str]


@cache
def load_rows() -> Mapping[str, TableRow]:
    """Return the rows by tag: eight digits, with X for any digit in repeating groups."""
    text = files("dicomnode.deidentify").joinpath("table_e1_1.csv").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    row = {}
    for each in csv.DictReader(lines):
        options = {name: each[name] for name in _OPTIONS if each[name]}
        row[each["tag"]] = TableRow(each["tag"], each["keyword"], each["basic"], MappingProxyType(options))
    return MappingProxyType(row)


def find_row(tag: BaseTag) -> TableRow | None:
    """Return the row of an attribute, or None where the table has none."""
    digits = f"{int(tag):08X}"
    for each in (digits, f"{digits[:2]}XX{digits[4:]}", f"{digits[:2]}XXXXXX"):
        if row := load_rows().get(each):
            return row
    return None


def choose_action(row: TableRow, profile: DeidentifyConfig, *, is_sequence: bool) -> Action:
    """Choose the action of a profile on the attribute of a row.

    Options come before the basic profile. Of its alternatives (X/Z, X/D, Z/D, X/Z/D) the last is chosen, which every
    IOD allows, but a sequence is removed rather than filled with a dummy. Content trees are always cleaned.
    """
    options = row.options
    chosen = {"uids": profile.retain_uids, "device": profile.device, "institution": profile.institution,
              "patient": profile.patient_characteristics, "descriptors": profile.clean_descriptors}  # fmt: skip
    codes = {options[name] for name, is_chosen in chosen.items() if is_chosen and name in options}
    if "K" in codes:
        return Action.KEEP
    if profile.dates == "shift" and "dates" in options:
        return Action.SHIFT
    if codes or row.keyword == "ContentSequence":
        return Action.CLEAN
    alternatives = row.basic.replace("*", "").split("/")
    return Action(alternatives[0 if is_sequence and alternatives[-1] == "D" else -1])
