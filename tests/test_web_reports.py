"""Structured reports of any sender as a page: readable, complete and harmless."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian

from dicomnode import results
from dicomnode.config.results import ResultsConfig
from dicomnode.errors import InputRefused
from dicomnode.web import sr_page, sr_tree
from pipelines.codes import MEAN, SUV_BW, SUV_BW_UNIT
from pipelines.contract import Code, Measurement, Note
from pipelines.quality import Outcome, Verdict
from tests.findings import NOW, PROVENANCE, save, source
from tests.web_node import Web, web

__all__ = ["web"]

LIVER = Code("10200004", "SCT", "Liver")
EVIL = '<script>alert(1)</script><img src="http://evil.example/x" onerror="alert(1)">&"\''
TAGS = {
    "html", "head", "meta", "title", "style", "body", "p", "h1", "h2", "h3", "h4", "h5", "dl", "dt", "dd", "main",
    "section", "span", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "a",
}  # fmt: skip
URL = "/dicom-web/studies/1.2.3/series/1.2.3.1/instances/1.2.3.4/rendered"


class Page(HTMLParser):
    """Parser for tags, their attributes, the text, and the rows of tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.rows: list[list[str]] = []
        self.text = ""
        self._in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.rows[-1][-1] += data


def _make_code(value: str, meaning: str, scheme: str = "99TEST") -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _make_item(kind: str, meaning: str = "Something", *children: Dataset, **values: Any) -> Dataset:
    item = Dataset()
    item.ValueType, item.RelationshipType, item.ConceptNameCodeSequence = kind, "CONTAINS", [_make_code("1", meaning)]
    if children:
        item.ContentSequence = list(children)
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _write_document(folder: Path, *children: Dataset, title: str = "A report", **values: Any) -> Path:
    """Write a report of another sender."""
    ds = _make_item("CONTAINER", title, *children)
    del ds.RelationshipType
    ds.SOPClassUID, ds.SOPInstanceUID = ComprehensiveSRStorage, "1.2.3.4"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    ds.SpecificCharacterSet, ds.Modality = "ISO_IR 192", "SR"
    ds.PatientName, ds.PatientID = "Müller^Jörg", "4711"
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return save(ds, folder, "sr.dcm")


def _render_page(path: Path) -> Page:
    return Page(bytes(sr_page.report_response(path).body).decode())


def _make_number(value: str, unit: str, *children: Dataset) -> Dataset:
    measured = Dataset()
    measured.NumericValue, measured.MeasurementUnitsCodeSequence = (
        value,
        [_make_code(unit, f"meaning of {unit}", "UCUM")],
    )
    return _make_item("NUM", "Diameter", *children, MeasuredValueSequence=[measured])


@pytest.mark.slow
def test_a_report_of_the_node_is_read_in_a_browser(tmp_path: Path) -> None:
    suv = Measurement("SUVmean", 2.5, SUV_BW_UNIT, "Of the liver", "liver", LIVER, SUV_BW, derivation=MEAN)
    held = Verdict(Outcome.HOLD, ("x is 3",))
    config = ResultsConfig(key_object=False)
    (report,) = results.write([suv, Note("age", "72 years")], [source("mr")], PROVENANCE, config, NOW, held)
    page = _render_page(save(report, tmp_path))
    assert page.text.index("SYNTHETIC - RESEARCH USE ONLY") < page.text.index("Müller^Jörg")
    (row,) = [row for row in page.rows if row[0].startswith("SUVbw")]
    quantity, value, unit, further = (" ".join(cell.split()) for cell in row)
    assert (quantity, value) == ("SUVbw (DCM 126401)", "2.5")
    assert unit == "Standardized Uptake Value body weight (UCUM g/ml{SUVbw})"
    assert "Mean (SCT 373098007)" in further
    assert "SUVmean: Of the liver" in further
    for words in ("UNVERIFIED", "PRELIMINARY", "Held for a person's decision", "x is 3", "72 years", "liver"):
        assert words in page.text, words


def test_rendered_answers_with_the_page_by_default(web: Web, tmp_path: Path) -> None:
    path = _write_document(tmp_path, _make_item("TEXT", "Impression", TextValue="No change."))
    assert web.store([path]).status_code == 200
    for accept in ("*/*", "text/html", "text/html,application/xhtml+xml,image/avif,*/*;q=0.8", "text/*"):
        answer = web.get(URL, accept)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8"), accept
        assert "No change." in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "script-src" not in answer.headers["content-security-policy"]
    refused = web.get(URL, "image/png")
    assert (refused.status_code, refused.text.strip()) == (406, "a structured report comes as text/html")


def _values_of(item: Dataset) -> list[str]:
    """Return every value of the content tree in the file."""
    own = [str(item.get(keyword, "")) for keyword in ("TextValue", "UID", "PersonName", "Date")]
    own += [code.CodeMeaning for code in item.get("ConceptCodeSequence", [])]
    own += [str(each.NumericValue) for each in item.get("MeasuredValueSequence", [])]
    return [value for value in own if value] + [
        value for child in item.get("ContentSequence", []) for value in _values_of(child)
    ]


@pytest.mark.parametrize("name", ["highdicom-test-files/sr_document.dcm", "pydicom-test-files/test-SR.dcm"])
def test_reports_of_others_are_shown_whole(kit: Path, name: str) -> None:
    path = kit / "dicom" / name
    page, words = _render_page(path), _values_of(dcmread(path))
    assert len(words) > 5
    text = " ".join(page.text.split())
    assert [value for value in words if " ".join(value.split()) not in text] == []
    assert "SYNTHETIC" not in page.text


def _make_evil_items() -> list[Dataset]:
    measured = _make_number("1", EVIL)
    measured.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeMeaning = EVIL
    image = Dataset()
    image.ReferencedSOPInstanceUID, image.ReferencedSOPClassUID = EVIL, EVIL
    return [
        _make_item("TEXT", EVIL, TextValue=EVIL),
        _make_item("CODE", EVIL, ConceptCodeSequence=[_make_code(EVIL, EVIL, EVIL)]),
        _make_item("PNAME", EVIL, PersonName=EVIL), measured, _make_item("IMAGE", EVIL, ReferencedSOPSequence=[image]),
        _make_item("SCOORD3D", EVIL, GraphicType=EVIL, GraphicData=[1.0, 2.0, 3.0]), _make_item(EVIL, EVIL),
        _make_item("CONTAINER", EVIL, _make_item("TEXT", EVIL, TextValue=EVIL)),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_what_a_sender_wrote_is_shown_and_never_run(tmp_path: Path) -> None:
    page = _render_page(
        _write_document(tmp_path, *_make_evil_items(), title=EVIL, PatientName=EVIL, PatientID=EVIL, Manufacturer=EVIL)
    )
    assert page.tags <= TAGS
    assert {name for name, _ in page.attributes} <= {"lang", "charset", "name", "content", "class", "id", "href"}
    assert all(value.startswith("#i") for name, value in page.attributes if name == "href")
    assert page.text.count(EVIL) > 10


def test_characters_that_turn_or_hide_text_do_not_come_through(tmp_path: Path) -> None:
    page = _render_page(
        _write_document(tmp_path, _make_item("TEXT", TextValue="no\u202e tumour\x07 seen\nsecond line"))
    )
    assert "no  tumour  seen\nsecond line" in page.text


def test_a_value_that_is_missing_is_said_to_be_with_its_reason(tmp_path: Path) -> None:
    empty = _make_item(
        "NUM", "Diameter", NumericValueQualifierCodeSequence=[_make_code("114000", "Not a number", "DCM")]
    )
    page = _render_page(_write_document(tmp_path, empty, _make_number("12.5", "mm")))
    assert [row[1] for row in page.rows[1:]] == ["no value", "12.5"]
    assert "Not a number" in page.rows[1][3]


def test_who_verified_a_report_is_told(tmp_path: Path) -> None:
    observer = Dataset()
    observer.VerifyingObserverName, observer.VerifyingOrganization = "House^Gregory", "Princeton"
    observer.VerificationDateTime = "20260102030405"
    page = _render_page(_write_document(tmp_path, VerificationFlag="VERIFIED", VerifyingObserverSequence=[observer]))
    assert "House^Gregory, Princeton, 20260102030405" in page.text


def test_an_item_by_reference_leads_to_the_item(tmp_path: Path) -> None:
    reference = _make_item("", ReferencedContentItemIdentifier=[1, 1])
    del reference.ValueType, reference.ConceptNameCodeSequence
    page = _render_page(
        _write_document(tmp_path, _make_item("TEXT", TextValue="first"), _make_number("1", "mm", reference))
    )
    assert {("href", "#i1.1"), ("id", "i1.1")} <= page.attributes


def test_a_contour_of_thousands_of_points_is_told_by_its_first(tmp_path: Path) -> None:
    page = _render_page(
        _write_document(
            tmp_path, _make_item("SCOORD", GraphicType="POLYLINE", GraphicData=[float(n) for n in range(90)])
        )
    )
    assert "POLYLINE 0, 1, 2" in page.text
    assert "and 60 further numbers" in page.text


def _nest_items(depth: int) -> Dataset:
    item = _make_item("TEXT", TextValue="deepest")
    for _ in range(depth):
        item = _make_item("CONTAINER", "Level", item)
    return item


def _encode_nested(depth: int, document: bytes) -> bytes:
    """Nest Content Sequences of undefined lengths, deeper than writers do."""
    begin = b"\x40\x00\x30\xa7SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\x00\x00\x00\x00\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    return document + begin * depth + end * depth


@pytest.mark.parametrize("depth", [sr_tree.DEEPEST + 1, 1500])
def test_a_report_that_is_nested_too_deeply_is_refused(depth: int, tmp_path: Path) -> None:
    assert "deepest" in _render_page(_write_document(tmp_path, _nest_items(sr_tree.DEEPEST - 1))).text
    deep = tmp_path / "deep.dcm"
    deep.write_bytes(_encode_nested(depth, _write_document(tmp_path).read_bytes()))
    with pytest.raises(InputRefused, match=r"more than 50 levels|RecursionError"):
        sr_page.report_response(deep)


@pytest.mark.slow
def test_a_report_of_too_many_items_is_refused(tmp_path: Path) -> None:
    items = [_make_item("TEXT", TextValue="x")] * sr_tree.MOST_ITEMS  # the root is one more
    with pytest.raises(InputRefused, match=f"more than {sr_tree.MOST_ITEMS} content items"):
        sr_page.report_response(_write_document(tmp_path, *items))


def test_a_report_of_too_many_characters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=f"more than {sr_tree.MOST_CHARACTERS} characters"):
        sr_page.report_response(_write_document(tmp_path, _make_item("TEXT", TextValue="x" * sr_tree.MOST_CHARACTERS)))


@pytest.mark.filterwarnings("ignore")
def test_what_is_no_tree_is_refused_in_one_sentence(web: Web, tmp_path: Path) -> None:
    path = _write_document(tmp_path)
    ds = dcmread(path)
    ds.add_new("ContentSequence", "LO", "no sequence")
    ds.save_as(path)
    assert web.store([path]).status_code == 200
    answer = web.get(URL, "text/html")
    assert answer.status_code == 406
    assert answer.text.startswith("this is no structured report that can be shown")
