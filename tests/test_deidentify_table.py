"""Each row of PS3.15 Table E.1-1, with the basic profile and each option: the element is treated as the row says."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from dicomnode.deidentify import table
from dicomnode.deidentify.cleaning import Cleaner, collect_identifiers
from dicomnode.deidentify.table import TableRow
from tests.identifying import make_deidentifier

UID = "1.2.826.0.1.3680043.8.498.4711"
VALUES: dict[str, Any] = {
    "AE": "SECRETAE", "AS": "056Y", "AT": 0x00471147, "CS": "SECRETCS", "DA": "20250617", "DS": "47.11",
    "DT": "20250617101112", "FD": 47.11, "FL": 47.5, "IS": "4711", "LO": "secretive", "LT": "secretive",
    "OB": b"secret", "OW": b"secret", "PN": "Secret^Secretive", "SH": "secretive", "SL": 4711, "SS": 4711,
    "ST": "secretive", "TM": "101112", "UC": "secretive", "UI": UID, "UL": 4711, "UN": b"secret",
    "UR": "https://secret.example", "US": 4711, "UT": "secretive",
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "uids": {"retain_uids": True},
    "device": {"device": True},
    "institution": {"institution": True},
    "patient": {"patient_characteristics": True},
    "dates": {"dates": "shift"},
    "descriptors": {"clean_descriptors": True},
}
KNOWN = sorted(tag for tag in table.load_rows() if "X" in tag or dictionary_has_tag(int(tag, 16)))


def select_rows(*, option: str = "") -> list[TableRow]:
    """Return the rows of attributes in pydicom's dictionary: the others are removed, whatever the option."""
    return [table.load_rows()[tag] for tag in KNOWN if not option or option in table.load_rows()[tag].options]


def row_tag(row: TableRow) -> int:
    """Return the tag of a row; for repeating groups that of one group."""
    return int(row.tag.replace("XXXXXX", "003000").replace("XX", "00"), 16)


def make_data_set(row: TableRow) -> Dataset:
    """Return a data set with the element and an identifying value in it."""
    ds, tag = Dataset(), row_tag(row)
    vr = dictionary_VR(tag).split(" or ")[0]
    value = VALUES[vr] if vr != "SQ" else Sequence([make_item()])
    ds[tag] = DataElement(tag, vr, value, validation_mode=IGNORE)
    return ds


def make_item() -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "secretive", "99SECRET", "secretive"
    item.ReferencedSOPInstanceUID = UID
    return item


def clean_element(row: TableRow, **options: Any) -> tuple[DataElement, DataElement | None]:
    """Return the element of a row before and after cleaning."""
    ds = make_data_set(row)
    before = make_data_set(row)[row_tag(row)]
    found = make_deidentifier(**options)
    Cleaner(found.profile, found.secret, found.secret.subject(ds), collect_identifiers(ds, found.profile)).clean(ds)
    return before, ds.get(Tag(row_tag(row)))


def find_action(before: DataElement, after: DataElement | None) -> str:
    """Return the code of Table E.1-1a for the action that was taken."""
    if after is None:
        return "X"
    if after.is_empty:
        return "Z"
    if after.VR == "SQ":
        return "U" if after.value[0].get("ReferencedSOPInstanceUID") not in (UID, None) else "K"
    if after.value == before.value:
        return "K"
    return "U" if after.VR == "UI" else "D"


def test_the_table_is_all_there() -> None:
    assert len(table.load_rows()) == 655
    assert {row.basic for row in table.load_rows().values()} == {
        "X", "Z", "D", "U", "Z/D", "X/Z", "X/D", "X/Z/D", "X/Z/U*",
    }  # fmt: skip
    assert table.load_rows()["00100010"].basic == "Z"
    assert table.find_row(Tag(0x60023000)) is table.load_rows()["60XX3000"]
    assert table.find_row(Tag(0x00280010)) is None


@pytest.mark.parametrize("row", select_rows(), ids=lambda row: f"{row.tag} {row.keyword}")
def test_the_basic_profile_does_with_every_attribute_what_its_row_says(row: TableRow) -> None:
    found = find_action(*clean_element(row))
    if row.keyword == "ContentSequence":
        assert found == "U", "a content tree is cleaned (113104) rather than replaced by a dummy"
        return
    allowed = set(row.basic.replace("*", "").split("/"))
    assert found in allowed or (found == "U" and "D" in allowed), f"{row.basic}: {found}"


@pytest.mark.parametrize(
    ("option", "row"),
    [pytest.param(o, row, id=f"{o} {row.tag} {row.keyword}") for o in OPTIONS for row in select_rows(option=o)],
)
def test_an_option_keeps_or_cleans_what_its_column_says(option: str, row: TableRow) -> None:
    before, after = clean_element(row, **OPTIONS[option])
    found = find_action(before, after)
    if row.options[option] == "K":
        assert after is not None
        assert found == "K" or (found == "U" and option != "uids"), "kept; UIDs in it are replaced all the same"
    elif before.VR in ("DA", "DT"):
        assert after is not None
        assert found == "D"
        assert after.value < before.value, "earlier by days"
    elif before.VR in ("TM", "SH") and option == "dates":
        assert found == "K", "times of day stay"
    else:
        assert after is None or "secret" not in str(after.value).casefold().replace("99secret", "").replace(
            "secretive", "" if before.VR == "SQ" else "secretive"
        )


@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "uids"])
def test_no_option_keeps_a_uid(option: str) -> None:
    for row in select_rows():
        if row.basic == "U" and option not in row.options:
            before, after = clean_element(row, **OPTIONS[option])
            assert find_action(before, after) == "U", row.keyword


def test_what_the_table_does_not_know_and_the_dictionary_neither_goes() -> None:
    ds = Dataset()
    ds.add_new(0x00100FFE, "LO", "secretive")
    found = make_deidentifier()
    Cleaner(found.profile, found.secret, found.secret.subject(ds), frozenset()).clean(ds)
    assert len(ds) == 0
