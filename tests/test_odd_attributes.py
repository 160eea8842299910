"""Odd optional attributes: the instance is stored, and a value that no row can hold is logged by its tag alone."""

from __future__ import annotations

import logging
import random
import struct
import warnings
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from db.models import Series, Study
from dicomnode.datasets import headers
from dicomnode.datasets.character_sets import find_encodings
from dicomnode.datasets.encoding import Window, open_source, walk
from dicomnode.errors import CannotUnderstand
from dicomnode.monitoring import log_lines
from tests.receivers import Receiver, an_instance, make_instances, receiver, start
from tests.sending import Encoded, store_all

__all__ = ["an_instance", "receiver", "start"]  # fixtures

_LONG = (b"OB", b"OW", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_RANDOM = random.Random(19)


class _Bytes:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, at: int, count: int) -> bytes:
        return self._content[at : at + count]


def _make_element(tag: int, vr: bytes, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    length = struct.pack("<HL", 0, len(value)) if vr in _LONG else struct.pack("<H", len(value))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr + length + value


def _with_element(each: Encoded, tag: int, vr: bytes, value: bytes) -> Encoded:
    """Return the data set with one element added or replaced; elements stay in their order."""
    content, found = each.data_set, []
    for element in walk(Window(_Bytes(content), 0, len(content)), ExplicitVRLittleEndian):
        header = 12 if element.vr in ("OB", "OW") else 8
        found.append((element.tag, content[element.at - header : element.at + element.length]))
    elements = [(known, encoded) for known, encoded in found if known != tag] + [(tag, _make_element(tag, vr, value))]
    return each.with_changes(data_set=b"".join(encoded for _, encoded in sorted(elements)))


_REPEATING = {
    "overlay, rows": (0x60000010, b"US", b"\x10\0"),
    "overlay, label": (0x60021500, b"LO", b"Region"),
    "overlay data": (0x60003000, b"OW", bytes(32)),
    "curve, dimensions": (0x50000005, b"US", b"\2\0"),
    "curve, label": (0x50022500, b"LO", b"R wave"),
    "source image IDs": (0x00203101, b"CS", b"ABC"),
    "variable pixel data": (0x7F020010, b"OW", bytes(4)),
    "variable coefficients": (0x7F000020, b"OW", bytes(4)),
    "escape triplet": (0x10000010, b"US", b"\1\0"),
    "zonal map": (0x10100010, b"US", b"\1\0"),
    "transform label": (0x00280400, b"LO", b"x"),
    "rows for nth order coefficients": (0x00280400 | 0x20, b"US", b"\1\0"),
}


def test_an_element_of_a_repeating_group_does_not_cost_the_series(receiver: Receiver, tmp_path: Path) -> None:
    sent = [
        _with_element(each, *element)
        for at, element in enumerate(_REPEATING.values())
        for each in make_instances(tmp_path / f"{at}", 2, series_uid=f"1.2.3.{at}")
    ]
    assert {answer.Status for answer in store_all(receiver.port, sent, tmp_path / "out")} == {0}
    assert [receiver.data_set(row) for row in receiver.rows()] == [each.data_set for each in sent]
    for series in receiver.rows(Series):
        assert series.attributes["Rows"] == 16
        assert not [keyword for keyword in series.attributes if keyword.startswith(("Overlay", "Curve"))]


_UNUSABLE = {
    "longer than an index takes": (0x00100020, b"LO", bytes(_RANDOM.choices(range(33, 126), k=3000)), "(0010,0020)"),
    "longer in UTF-8 than it was": (0x00100010, b"PN", b"\xe4\xfc" * 500, "(0010,0010)"),
    "infinite": (0x00180050, b"FD", struct.pack("<d", float("inf")), "(0018,0050)"),
    "half a number": (0x00200013, b"SL", b"\1\0", "(0020,0013)"),
}


def test_what_no_row_can_hold_is_stored_and_named(
    receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = [make_instances(tmp_path / name, 1, series_uid=f"1.2.3.{at}")[0] for at, name in enumerate(_UNUSABLE)]
    sent = [
        _with_element(each, tag, vr, value) for each, (tag, vr, value, _) in zip(plain, _UNUSABLE.values(), strict=True)
    ]
    assert {answer.Status for answer in store_all(receiver.port, sent, tmp_path / "out")} == {0}
    assert [receiver.data_set(row) for row in receiver.rows()] == [each.data_set for each in sent]
    lines = [record.getMessage() for record in caplog.records if "not indexed" in record.getMessage()]
    assert [line.rpartition(" ")[2] for line in lines] == [text for *_, text in _UNUSABLE.values()]


_TAKEN = {
    "NUL in text": (0x00081030, b"LO", b"a\0b\0c", "StudyDescription", "abc"),
    "digits without end": (0x00200011, b"IS", b"9" * 1000, "SeriesNumber", "9" * 1000),
    "more than a number says": (0x00200011, b"IS", b"12345678901234567890", "SeriesNumber", "12345678901234567890"),
    "a power of ten": (0x00200011, b"IS", b"1e300", "SeriesNumber", "1e300"),
    "no whole number": (0x00200011, b"IS", b"1.5", "SeriesNumber", "1.5"),
    "an underscore in a number": (0x00180050, b"DS", b"1_0", "SliceThickness", "1_0"),
    "not a number": (0x00180050, b"DS", b"NaN", "SliceThickness", "NaN"),
    "whole after all": (0x00200011, b"IS", b"+7.0", "SeriesNumber", 7),
    "the VR of another": (0x0008103E, b"US", b"\7\0", "SeriesDescription", 7),
    "UN of a known element": (0x0008103E, b"UN", b"AX FLAIR", "SeriesDescription", "AX FLAIR"),
    "control characters": (0x0008103E, b"LO", b"a\r\nb\x1b[31m", "SeriesDescription", "a\r\nb\x1b[31m"),
}


def test_an_odd_value_is_kept_as_far_as_it_can_be(receiver: Receiver, tmp_path: Path) -> None:
    plain = [make_instances(tmp_path / name, 1, series_uid=f"1.2.3.{at}")[0] for at, name in enumerate(_TAKEN)]
    sent = [_with_element(each, *element[:3]) for each, element in zip(plain, _TAKEN.values(), strict=True)]
    assert {answer.Status for answer in store_all(receiver.port, sent, tmp_path / "out")} == {0}
    for series, (_, _, _, keyword, value) in zip(receiver.rows(Series), _TAKEN.values(), strict=True):
        assert series.attributes.get(keyword) == value


_CHARACTER_SETS = [
    *(
        "unicode_escape",
        "raw_unicode_escape",
        "utf_7",
        "utf_16",
        "idna",
        "punycode",
        "base64",
        "rot13",
        "cp037",
        "mbcs",
    ),
    *("undefined", "ISO_IR 999", "ISO 2022 IR 999", "ISO IR 100", "ISO_IR 192\\ISO 2022 IR 87", "\\\\\\\\", "\xff\xfe"),
    *("GBK", "GB18030", "ISO_IR 13", "ISO 2022 IR 149", "ISO_IR 192\n2026 ERROR forged"),
]


def test_a_character_set_that_is_none_costs_no_instance(
    receiver: Receiver, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sent = []
    for at, character_set in enumerate(_CHARACTER_SETS):
        (each,) = make_instances(tmp_path / f"{at}", 1, study_uid=f"1.2.3.{at}", series_uid=f"1.2.3.{at}.1")
        odd = _with_element(each, 0x00080005, b"CS", character_set.encode("latin-1"))
        sent.append(_with_element(odd, 0x00100010, b"PN", b"Muster^\\ud800\xfc\xff"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        answers = store_all(receiver.port, sent, tmp_path / "out")
    assert {answer.Status for answer in answers} == {0}
    assert all(study.patient_name.startswith("Muster^") for study in receiver.rows(Study))
    assert "forged" not in "".join(capfd.readouterr())


def test_a_codec_of_python_is_no_character_set() -> None:
    assert find_encodings("unicode_escape") == ("iso8859",)
    assert find_encodings("ISO_IR 100\\utf_7") == ("latin_1", "iso8859")


def test_of_two_values_neither_is_taken(an_instance: Encoded) -> None:
    at = an_instance.data_set.index(b"\x10\0\x20\0LO")
    doubled = an_instance.data_set[:at] + _make_element(0x00100020, b"LO", b"OTHER") + an_instance.data_set[at:]
    facts = headers.read_facts(
        open_source(_Bytes(doubled), 0, len(doubled), ExplicitVRLittleEndian), ExplicitVRLittleEndian
    )
    assert facts.patient_id == ""
    assert headers.list_unindexed(facts) == ["(0010,0020)"]


def test_of_two_uids_neither_places_the_object(an_instance: Encoded) -> None:
    at = an_instance.data_set.index(b"\x20\0\x0d\0UI")
    doubled = an_instance.data_set[:at] + _make_element(0x0020000D, b"UI", b"1.2.3") + an_instance.data_set[at:]
    with pytest.raises(CannotUnderstand, match="StudyInstanceUID"):
        headers.read_facts(
            open_source(_Bytes(doubled), 0, len(doubled), ExplicitVRLittleEndian), ExplicitVRLittleEndian
        )


def test_code_extensions_are_honoured(an_instance: Encoded) -> None:
    """The Japanese name of PS3.5 H.3.1."""
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    raw = b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B"
    each = _with_element(an_instance, 0x00080005, b"CS", b"\\ISO 2022 IR 87")
    content = _with_element(each, 0x00100010, b"PN", raw).data_set
    facts = headers.read_facts(
        open_source(_Bytes(content), 0, len(content), ExplicitVRLittleEndian), ExplicitVRLittleEndian
    )
    assert facts.patient_name == name


def test_a_log_line_is_one_line_and_a_warning_keeps_its_words_to_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record = logging.LogRecord("x", logging.INFO, "", 1, "said: %s", ("a\nERROR forged\x1b[1m\u2028",), None)
    line = log_lines.TextLines().format(record)
    assert line.endswith("said: a\\nERROR forged\\x1b[1m\\u2028")
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    log_lines.set_up_logging()
    log_category = warnings.showwarning  # catch_warnings sets Python's own again
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG, "dicomnode.monitoring.log_lines"):
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", log_category)
        warnings.warn("patient\nforged", stacklevel=1)
    assert "UserWarning" in caplog.text
    assert "forged" not in caplog.text
