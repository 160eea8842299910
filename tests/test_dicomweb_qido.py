"""QIDO-RS: searches return exactly the matches, page by page, and name unsupported parameters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from db import catalogue
from db.catalogue import Level
from tests.findings import grid, make_findings, write_objects
from tests.peers.files import write_instance
from tests.web_node import Web, web

__all__ = ["web"]

ROOT = "1.2.826.0.1.3680043.8.498"
PATIENTS = (
    ("Müller^Jörg", "A-1", "20260101", "080000", "MR"),
    ("Muster^Anna", "A-2", "20260215", "120000", "CT"),
    ("Yamada^Tarou=山田^太郎=やまだ^たろう", "B-1", "20251231", "235900", "PT"),
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """Yield a node with three studies of two series of two instances each, shared by all tests."""
    tmp_path = tmp_path_factory.mktemp("held")
    paths = []
    for study, (name, patient, date, time, modality) in enumerate(PATIENTS, 1):
        for series in (1, 2):
            for number in (1, 2):
                paths.append(tmp_path / f"{study}{series}{number}.dcm")
                item = Dataset()
                item.ScheduledProcedureStepID, item.RequestedProcedureID = f"STEP{study}", f"PROC{series}"
                write_instance(
                    paths[-1], study_uid=f"{ROOT}.{study}", series_uid=f"{ROOT}.{study}.{series}", PatientName=name,
                    PatientID=patient, StudyDate=date, StudyTime=time, Modality="SR" if series == 2 else modality,
                    SeriesNumber=series, InstanceNumber=number, StudyDescription=f"Study {study}", StudyID=str(study),
                    SOPInstanceUID=f"{ROOT}.{study}.{series}.{number}", RequestAttributesSequence=[item],
                )  # fmt: skip
    with Web(tmp_path / "node") as web:
        assert web.store(paths).status_code == 200
        yield web


def tag(keyword: str) -> str:
    return f"{tag_for_keyword(keyword):08X}"


def value(row: dict[str, Any], keyword: str) -> Any:
    return (row[tag(keyword)].get("Value") or [None])[0]


def search(node: Web, query: str, path: str = "/studies") -> list[dict[str, Any]]:
    answer = node.get(f"/dicom-web{path}?{query}")
    if answer.status_code == 204:
        return []
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom+json"
    return list(answer.json())


def find_studies(node: Web, query: str) -> set[int]:
    """Return the numbers of the studies that a query finds."""
    return {int(value(row, "StudyID")) for row in search(node, query)}


@pytest.mark.slow
def test_dicomweb_client_finds_what_is_held(node: Web) -> None:
    client = node.dicomweb
    assert len(client.search_for_studies()) == 3
    assert len(client.search_for_series()) == 6
    assert len(client.search_for_instances()) == 12
    assert len(client.search_for_series(f"{ROOT}.1")) == 2
    assert len(client.search_for_instances(f"{ROOT}.1")) == 4
    assert len(client.search_for_instances(f"{ROOT}.1", f"{ROOT}.1.2")) == 2
    (found_one,) = client.search_for_studies(search_filters={"PatientID": "A-1"}, fields=["PatientName"])
    assert value(found_one, "StudyInstanceUID") == f"{ROOT}.1"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {1, 2, 3}),
        ("PatientID=A-*", {1, 2}),
        ("PatientID=?-1", {1, 3}),
        ("00100020=B-1", {3}),
        ("PatientName=m*", {1, 2}),
        ("PatientName=Müller^Jörg", {1}),
        ("PatientName=*山田*", {3}),
        ("PatientName=jörg&fuzzymatching=true", {1}),
        ("PatientName=jörg", set()),
        ("StudyDate=20260101", {1}),
        ("StudyDate=20260101-", {1, 2}),
        ("StudyDate=-20260101", {1, 3}),
        ("StudyDate=20251201-20260131", {1, 3}),
        ("StudyDate=20251231-20260101&StudyTime=235900-100000", {1, 3}),
        ("StudyDate=20251231-20260101&StudyTime=235930-100000", {1}),
        ("ModalitiesInStudy=PT", {3}),
        ("ModalitiesInStudy=SR", {1, 2, 3}),
        (f"StudyInstanceUID={ROOT}.1,{ROOT}.3", {1, 3}),
        (f"StudyInstanceUID={ROOT}.1%5C{ROOT}.3", {1, 3}),
        ("StudyDescription=Study%202", {2}),
        ("PatientID=", {1, 2, 3}),
        ("PatientID=*", {1, 2, 3}),
        ("PatientID=nobody", set()),
        ("PatientID=%20A-1%20", {1}),
        ("PatientName=+Muster*+", {2}),
        ("PatientName='%20or%201=1--", set()),
        ("PatientName=%25", set()),
    ],
)
def test_studies_are_matched(node: Web, query: str, expected: set[int]) -> None:
    assert find_studies(node, query) == expected


def test_series_and_instances_are_matched_across_the_levels(node: Web) -> None:
    assert len(search(node, "Modality=SR", "/series")) == 3
    assert len(search(node, "Modality=SR&PatientID=A-*", "/series")) == 2
    assert len(search(node, "InstanceNumber=2&Modality=CT", "/instances")) == 1
    assert len(search(node, "SeriesNumber=1", f"/studies/{ROOT}.1/series")) == 1
    assert len(search(node, f"SOPInstanceUID={ROOT}.1.2.1", f"/studies/{ROOT}.1/instances")) == 1
    assert search(node, f"SeriesInstanceUID={ROOT}.2.1", f"/studies/{ROOT}.1/series") == []


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("RequestAttributesSequence.ScheduledProcedureStepID=STEP1", 2),
        ("00400275.00401001=PROC1", 3),
        ("00400275.00400009=STEP?&RequestAttributesSequence.RequestedProcedureID=PROC2", 3),
        ("00400275.00400009=STEP9", 0),
        ("ModalitiesInStudy=CT", 2),
        ("ModalitiesInStudy=CT,PT", 0),
        ("ModalitiesInStudy=CT%5CPT", 4),
    ],
)
def test_series_are_matched_by_their_request_and_their_study(node: Web, query: str, count: int) -> None:
    assert len(search(node, query, "/series")) == count
    assert len(search(node, query, "/instances")) == 2 * count


def test_a_series_is_told_with_its_request(node: Web) -> None:
    (row,) = search(node, "SeriesNumber=2", f"/studies/{ROOT}.1/series")
    (item,) = row[tag("RequestAttributesSequence")]["Value"]
    assert value(item, "ScheduledProcedureStepID") == "STEP1"
    assert value(item, "RequestedProcedureID") == "PROC2"


RESOURCES: tuple[tuple[Level, str], ...] = (
    ("STUDY", "/studies"), ("SERIES", "/series"), ("IMAGE", "/instances"), ("SERIES", f"/studies/{ROOT}.1/series"),
    ("IMAGE", f"/studies/{ROOT}.1/instances"), ("IMAGE", f"/studies/{ROOT}.1/series/{ROOT}.1.1/instances"),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("level", "path"), RESOURCES)
def test_every_key_can_be_asked_for_at_every_resource(node: Web, level: Level, path: str) -> None:
    fixed = [name for name in ("StudyInstanceUID", "SeriesInstanceUID") if path.count(f"/{ROOT}.1") > (name[1] == "e")]
    for keyword in sorted(catalogue.supported_keywords(level)):
        for query in ("", "*") if keyword not in fixed else (f"{ROOT}.1",):
            if query == f"{ROOT}.1" and keyword == "SeriesInstanceUID":
                query = f"{ROOT}.1.1"
            answer = node.get(f"/dicom-web{path}?{keyword}={query}&limit=1")
            assert answer.status_code == 200, (keyword, answer.text)
            assert "." in keyword or tag(keyword) in answer.json()[0], keyword


def test_a_study_is_told_with_everything_that_must_be(node: Web) -> None:
    (row,) = search(node, "PatientID=B-1")
    assert value(row, "PatientName") == {
        "Alphabetic": "Yamada^Tarou",
        "Ideographic": "山田^太郎",
        "Phonetic": "やまだ^たろう",
    }
    assert row[tag("ModalitiesInStudy")]["Value"] == ["PT", "SR"]
    assert value(row, "NumberOfStudyRelatedSeries") == 2
    assert value(row, "NumberOfStudyRelatedInstances") == 4
    assert value(row, "InstanceAvailability") == "ONLINE"
    assert value(row, "RetrieveURL") == f"{node.address}/dicom-web/studies/{ROOT}.3"
    required = (
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "ReferringPhysicianName",
        "PatientBirthDate",
        "PatientSex",
        "StudyID",
    )
    assert all(tag(keyword) in row for keyword in required)


def test_series_and_instances_are_told_with_everything_that_must_be(node: Web) -> None:
    (series,) = search(node, "SeriesNumber=1", f"/studies/{ROOT}.1/series")
    assert value(series, "NumberOfSeriesRelatedInstances") == 2
    assert value(series, "SeriesNumber") == 1
    assert value(series, "Modality") == "MR"
    assert node.client.get(value(series, "RetrieveURL")).status_code == 200
    (instance,) = search(node, "InstanceNumber=2", f"/studies/{ROOT}.1/series/{ROOT}.1.1/instances")
    assert value(instance, "SOPInstanceUID") == f"{ROOT}.1.1.2"
    assert (value(instance, "Rows"), value(instance, "Columns"), value(instance, "BitsAllocated")) == (16, 16, 16)
    assert node.client.get(value(instance, "RetrieveURL")).status_code == 200


def test_more_is_told_where_it_is_asked_for(node: Web) -> None:
    path = f"/studies/{ROOT}.1/series"
    assert tag("PatientName") not in search(node, "", path)[0]
    assert tag("PatientName") in search(node, "includefield=PatientName", path)[0]
    assert tag("PatientName") in search(node, "includefield=00100010,StudyDate", path)[0]
    assert tag("PatientName") in search(node, "includefield=all", path)[0]
    assert tag("StudyDate") in search(node, "includefield=PatientName&includefield=StudyDate", path)[0]


def test_pages_meet_without_gap_or_overlap(node: Web) -> None:
    pages = [
        [value(row, "SOPInstanceUID") for row in search(node, f"limit=5&offset={at}", "/instances")]
        for at in (0, 5, 10, 15)
    ]
    assert [len(page) for page in pages] == [5, 5, 2, 0]
    assert len({uid for page in pages for uid in page}) == 12


def test_nothing_found_is_204(node: Web) -> None:
    answer = node.get("/dicom-web/studies?PatientID=nobody")
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize(
    ("query", "warned"),
    [
        ("PatientWeight=70", "PatientWeight"),
        ("Nonsense=1", "Nonsense"),
        ("0010=1", "0010"),
        ("a.b.c=1", "a.b.c"),
        ("includefield=Nonsense", "Nonsense"),
        ("emptyvaluematching=true", "emptyvaluematching"),
        ("multiplevaluematching=true", "multiplevaluematching"),
        ("NumberOfStudyRelatedInstances=99", "NumberOfStudyRelatedInstances"),
        ("00201206=99", "00201206"),
        ("%3Cscript%3E=1", "others"),
        ("a%0d%0aSet-Cookie:%20b=1", "others"),
        (f"{'x' * 3000}=1", "others"),
        ("&".join(f"x{number}=1" for number in range(100)), "others"),
    ],
)
def test_what_is_not_supported_is_ignored_and_said_in_a_warning(node: Web, query: str, warned: str) -> None:
    """PS3.18 8.3.1: an origin server ignores parameters that it does not support."""
    answer = node.get(f"/dicom-web/studies?PatientID=A-1&{query}")
    assert [value(row, "PatientID") for row in answer.json()] == ["A-1"]
    assert answer.headers["warning"].startswith('299 dicomnode: "these parameters are not supported')
    assert warned in answer.headers["warning"]
    assert len(answer.headers["warning"]) < 300
    assert "<" not in answer.headers["warning"]
    assert "set-cookie" not in answer.headers


def test_what_is_done_in_any_case_needs_no_warning(node: Web) -> None:
    query = "emptyvaluematching=false&multiplevaluematching=false"
    assert "warning" not in node.get(f"/dicom-web/studies?{query}").headers


@pytest.mark.parametrize(
    "query",
    [
        "limit=x", "limit=-1", "offset=1.5", "fuzzymatching=maybe", "PatientID=1&PatientID=2", "limit=1&limit=2",
        "PatientID=1&00100020=2", "StudyDate=tomorrow", "StudyDate=20260101-x", f"limit={'9' * 40}",
        f"limit={'9' * 5000}", f"offset={'9' * 5000}", "limit=%D9%A1", "PatientName=%FF", "%FF=1", "PatientID=a%00b",
        f"PatientName={'a+' * 1000}&fuzzymatching=true", f"PatientID={'x' * 2000}", f"PatientID={'x' * 20_000}",
        "&".join(f"x{number}=1" for number in range(300)), "includefield=" + ",".join(["Rows"] * 600),
        f"ModalitiesInStudy={'%5C'.join(['MR'] * 200)}", "PatientID=*a*b*c*d*e*f*g*", "PatientName=*a*b*c*d*e*f*g*",
    ],
)  # fmt: skip
def test_what_is_not_understood_is_400(node: Web, query: str) -> None:
    answer = node.get(f"/dicom-web/studies?{query}")
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    assert "<script>" not in answer.text


@pytest.mark.parametrize("path", ["/studies/x/series", "/studies/1.2%5C1.3/series", f"/studies/{'1' * 65}/instances"])
def test_a_search_below_what_is_no_uid_is_404(node: Web, path: str) -> None:
    assert node.get(f"/dicom-web{path}").status_code == 404


def test_a_query_against_its_path_is_400(node: Web) -> None:
    assert node.get(f"/dicom-web/studies/{ROOT}.1/series?StudyInstanceUID={ROOT}.2").status_code == 400


@pytest.mark.parametrize(
    "accept", ["application/dicom+xml", "text/html", 'multipart/related; type="application/dicom+xml"']
)
def test_json_is_the_only_form(node: Web, accept: str) -> None:
    assert node.get("/dicom-web/studies", accept).status_code == 406


@pytest.mark.parametrize("accept", ["application/dicom+json", "application/json", "*/*", "text/html, */*;q=0.1"])
def test_json_comes_where_it_is_taken(node: Web, accept: str) -> None:
    assert node.get("/dicom-web/studies", accept).status_code == 200


def test_an_unknown_study_has_no_series(node: Web) -> None:
    assert search(node, "", "/studies/1.2.3/series") == []


@pytest.mark.slow
def test_results_are_found_and_held_ones_only_for_review(web: Web, tmp_path: Path) -> None:
    results = write_objects(make_findings(grid("axial", rows=8, columns=8)))
    study = results[0].StudyInstanceUID
    write_instance(tmp_path / "source.dcm", study_uid=study)
    web.store([tmp_path / "source.dcm"])
    web.add_results(results, held=True)
    outside = web.get(f"/dicom-web/studies/{study}/series").json()
    review = web.get(f"/review/dicom-web/studies/{study}/series").json()
    assert len(outside) == 1
    assert len(review) == 1 + len({ds.SeriesInstanceUID for ds in results})
    assert all(value(row, "RetrieveURL").startswith(f"{web.address}/review/dicom-web/") for row in review)
    assert value(web.get("/dicom-web/studies").json()[0], "NumberOfStudyRelatedInstances") == 1
