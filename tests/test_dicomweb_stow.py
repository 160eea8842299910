"""STOW-RS: instances reported as stored are stored, whatever else a request contains; no part is kept incomplete."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import UID, ImplicitVRLittleEndian

from db.models import Instance, Study
from dicomnode.config.spool import SpoolConfig
from tests.peers.files import write_instance
from tests.web_node import BOUNDARY, DICOM, LIMITS, Web, encode_multipart, web

pytestmark = pytest.mark.slow

__all__ = ["web"]

STUDY = "1.2.826.0.1.3680043.8.498.1"
STUDIES = "/dicom-web/studies"
PREAMBLE = b"\0" * 128 + b"DICM"
REASON, FAILED, STORED, OTHER = "00081197", "00081198", "00081199", "0008119A"
WHERE = "00081190"


def write_instances(folder: Path, count: int, **attributes: Any) -> list[Path]:
    for number in range(count):
        write_instance(folder / f"{number}.dcm", InstanceNumber=number + 1, **attributes)
    return [folder / f"{number}.dcm" for number in range(count)]


def reasons(answer: Any, sequence: str = FAILED) -> list[int]:
    return [item[REASON]["Value"][0] for item in answer.json()[sequence]["Value"]]


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian])
def test_what_is_reported_as_stored_is_there_as_it_was_sent(web: Web, tmp_path: Path, syntax: UID | None) -> None:
    paths = write_instances(tmp_path, 3, **({"transfer_syntax_uid": syntax} if syntax else {}))
    answer = web.store(paths)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/dicom+json"
    assert FAILED not in answer.json()
    stored = [dcmread(web.config.spool_dir / row.relative_path) for row in web.rows()]
    sent = [dcmread(path) for path in paths]
    assert [ds.SOPInstanceUID for ds in stored] == [ds.SOPInstanceUID for ds in sent]
    assert [dict(ds) for ds in stored] == [dict(ds) for ds in sent]
    for row in web.rows():
        content = (web.config.spool_dir / row.relative_path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row.sha256


def test_the_web_client_is_recorded_as_the_sender(web: Web, tmp_path: Path) -> None:
    web.store(write_instances(tmp_path, 1))
    assert [(row.sender_ae_title, row.sender_address) for row in web.rows()] == [("STOW-RS", "127.0.0.1")]


def test_each_answer_says_where_the_instance_can_be_had(web: Web, tmp_path: Path) -> None:
    answer = web.store(write_instances(tmp_path, 2))
    for item in answer.json()[STORED]["Value"]:
        url = item["00081190"]["Value"][0]
        assert url.endswith(f"/instances/{item['00081155']['Value'][0]}")
        assert web.client.get(url).status_code == 200


def test_dicomweb_client_stores_and_finds(web: Web, tmp_path: Path) -> None:
    datasets = [dcmread(path) for path in write_instances(tmp_path, 3)]
    answer = web.dicomweb.store_instances(datasets, STUDY)
    assert len(answer.ReferencedSOPSequence) == 3
    assert answer.RetrieveURL.endswith(f"/studies/{STUDY}")
    found = web.dicomweb.retrieve_study(STUDY)
    assert {ds.SOPInstanceUID for ds in found} == {ds.SOPInstanceUID for ds in datasets}


def test_the_same_again_is_a_success_and_one_row(web: Web, tmp_path: Path) -> None:
    paths = write_instances(tmp_path, 1)
    assert [web.store(paths).status_code for _ in range(2)] == [200, 200]
    assert len(web.rows()) == 1
    assert web.quarantined() == []


def test_other_content_under_the_same_uid_is_quarantined(web: Web, tmp_path: Path) -> None:
    (path,) = write_instances(tmp_path, 1)
    web.store([path])
    ds = dcmread(path)
    ds.PatientWeight = 80
    ds.save_as(path)
    answer = web.store([path])
    assert answer.status_code == 409
    assert reasons(answer) == [0xC111]
    assert len(web.rows()) == 1
    assert len(web.quarantined()) == 1


def test_some_failures_are_202_with_both_lists(web: Web, tmp_path: Path) -> None:
    good, bad = write_instances(tmp_path, 2)
    broken = bad.read_bytes()[:-100]
    answer = web.client.post(STUDIES, content=encode_multipart([good.read_bytes(), broken]), headers=DICOM)
    assert answer.status_code == 202
    assert reasons(answer) == [0xC000]
    assert len(answer.json()[STORED]["Value"]) == 1
    assert len(web.rows()) == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"not DICOM", PREAMBLE, b"\0" * 200_000, PREAMBLE + b"\2\0\x10\0UI\xff\xff" + b"1" * 70_000],
)  # fmt: skip
def test_what_is_no_dicom_is_reported_as_such(web: Web, content: bytes) -> None:
    answer = web.client.post(STUDIES, content=encode_multipart([content]), headers=DICOM)
    assert answer.status_code == 409
    assert reasons(answer, OTHER) == [0xC000]  # PS3.18 I.2: without UIDs it cannot be among the failed instances
    assert FAILED not in answer.json()
    assert answer.json()[WHERE] == {"vr": "UR"}
    assert web.rows() == web.files_left() == []


def test_another_study_than_the_path_is_refused(web: Web, tmp_path: Path) -> None:
    content = encode_multipart([path.read_bytes() for path in write_instances(tmp_path, 1)])
    answer = web.client.post(f"{STUDIES}/1.2.3", content=content, headers=DICOM)
    assert answer.status_code == 409
    assert reasons(answer) == [0xA900]
    assert web.rows(Study) == []


def test_a_meta_header_that_lies_is_refused(web: Web, tmp_path: Path) -> None:
    (path,) = write_instances(tmp_path, 1)
    content = path.read_bytes()
    at = content.index(b"\x02\0\x03\0UI")
    lie = (
        content[: at + 8]
        + content[at + 8 : at + 20].translate(bytes.maketrans(b"12345678", b"23456781"))
        + content[at + 20 :]
    )
    answer = web.client.post(STUDIES, content=encode_multipart([lie]), headers=DICOM)
    assert answer.status_code == 409
    assert web.rows() == []


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("TransferSyntaxUID", "1.2.3.4", 0xC122), ("MediaStorageSOPClassUID", "1.2.840.10008.1.1", 0x0122)],
)
def test_what_no_one_could_keep_is_refused(web: Web, tmp_path: Path, name: str, value: str, reason: int) -> None:
    (path,) = write_instances(tmp_path, 1)
    content = path.read_bytes()
    old = str(dcmread(path).file_meta[name].value).encode()
    new = value.encode().ljust(len(old) + len(old) % 2, b"\0")[: len(old)]
    at = content.index(b"\x02\0\x10\0UI" if name == "TransferSyntaxUID" else b"\x02\0\x02\0UI")
    content = content[:at] + content[at:].replace(old, new, 1)
    answer = web.client.post(STUDIES, content=encode_multipart([content]), headers=DICOM)
    assert answer.status_code == 409
    assert reasons(answer) == [reason]


def test_a_full_disk_asks_to_come_again(tmp_path: Path) -> None:
    with Web(tmp_path, limits=SpoolConfig(min_free_gb=1e9)) as web:
        answer = web.store(write_instances(tmp_path / "sent", 1))
    assert answer.status_code == 503
    assert reasons(answer) == [0xA700]


def test_a_body_that_ends_too_early_is_400_and_keeps_the_whole_ones(web: Web, tmp_path: Path) -> None:
    first, second = (path.read_bytes() for path in write_instances(tmp_path, 2))
    content = encode_multipart([first, second], end=False)[:-200]
    answer = web.client.post(STUDIES, content=content, headers=DICOM)
    assert answer.status_code == 400
    assert "1 whole instances before are stored" in answer.text
    assert len(web.rows()) == 1
    assert len(web.files_left()) == 1


def test_a_client_that_breaks_off_leaves_nothing_half(web: Web, tmp_path: Path) -> None:
    path = tmp_path / "large.dcm"
    write_instance(path, frames_bytes=4 << 20)
    content = encode_multipart([path.read_bytes()])
    head = f"POST {STUDIES} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {DICOM['Content-Type']}\r\n"
    with socket.create_connection(("127.0.0.1", web.port)) as sock:
        sock.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[: 3 << 20])
    web.wait_until(lambda: not list((web.config.spool_dir / "incoming").glob("*")))
    assert web.rows() == web.files_left() == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/dicom"}, 415),
        ({"Content-Type": f'multipart/related; type="application/dicom+json"; boundary={BOUNDARY}'}, 415),
        ({"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, 415),
        ({}, 415),
        ({"Content-Type": 'multipart/related; type="application/dicom"'}, 400),
        ({"Content-Type": f'multipart/related; type="application/dicom"; boundary={"x" * 201}'}, 400),
        ({"Content-Type": 'multipart/related; type="application/dicom"; boundary="x "'}, 400),
        (DICOM | {"Content-Encoding": "gzip"}, 415),
        (DICOM | {"Content-Encoding": "zstd"}, 415),
        ({"Content-Type": 'multipart/related; type="application/dicom"; boundary=another'}, 400),
        (DICOM | {"Accept": "application/dicom+xml"}, 406),
    ],
)
def test_a_request_of_another_kind_is_refused(web: Web, tmp_path: Path, headers: dict[str, str], status: int) -> None:
    content = encode_multipart([path.read_bytes() for path in write_instances(tmp_path, 1)])
    answer = web.client.post(STUDIES, content=content, headers=headers)
    assert answer.status_code == status
    assert web.rows() == []


def wrap_in_message(
    content: bytes, boundary: bytes, *, before: bytes = b"", blanks: bytes = b"", after: bytes = b""
) -> bytes:
    """Wrap one part in a message of that boundary, with everything that RFC 2046 allows around it."""
    head = b"--" + boundary + blanks + b"\r\nContent-Type: application/dicom\r\n\r\n"
    return before + head + content + b"\r\n--" + boundary + b"--" + after


@pytest.mark.parametrize("step", [1 << 20, 11])
@pytest.mark.parametrize(
    ("boundary", "around"),
    [
        ("x" * 73, {}),  # Orthanc's plug-in
        ("x" * 200, {}),
        ('"a (quoted) boundary, with/blanks: and=more?"', {}),
        ("b", {"before": b"This is a message in parts.\r\n--bb\r\nNot yet.\r\n"}),
        ("b", {"before": b"\r\n"}),
        ("b", {"blanks": b" \t  "}),
        ("b", {"after": b" \t\r\nThis is the end.\r\n--b\r\n\r\nNothing."}),
        ("b", {"before": b"--x\r\n", "blanks": b" ", "after": b"\r\n"}),
    ],
)
def test_a_message_may_look_as_the_rfc_allows(
    web: Web, tmp_path: Path, boundary: str, around: dict[str, bytes], step: int
) -> None:
    (path,) = write_instances(tmp_path, 1)
    content = wrap_in_message(path.read_bytes(), boundary.strip('"').encode(), **around)
    headers = {"Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}'}
    pieces = (content[at : at + step] for at in range(0, len(content), step))
    answer = web.client.post(STUDIES, content=pieces, headers=headers)
    assert answer.status_code == 200, answer.text
    (row,) = web.rows()
    assert dcmread(web.config.spool_dir / row.relative_path) == dcmread(path)


def test_lines_that_end_without_a_carriage_return_are_refused(web: Web, tmp_path: Path) -> None:
    """A lone line feed cannot end a line, since pixels may contain any byte."""
    (path,) = write_instances(tmp_path, 1)
    content = wrap_in_message(path.read_bytes(), b"b").replace(b"\r\n", b"\n")
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
    assert web.client.post(STUDIES, content=content, headers=headers).status_code == 400
    assert web.rows() == []


def test_the_answer_names_the_study_where_it_is_one(web: Web, tmp_path: Path) -> None:
    first, other = write_instances(tmp_path, 1), write_instances(tmp_path / "other", 1, study_uid="1.2.9")
    assert web.store(first).json()[WHERE]["Value"] == [f"{web.address}{STUDIES}/{STUDY}"]
    assert web.store([*first, *other]).json()[WHERE] == {"vr": "UR"}


def test_what_has_no_uids_fails_apart_from_what_has(web: Web, tmp_path: Path) -> None:
    good, bad = write_instances(tmp_path, 2)
    content = encode_multipart([good.read_bytes(), bad.read_bytes()[:-100], b"not DICOM"])
    answer = web.client.post(STUDIES, content=content, headers=DICOM)
    assert answer.status_code == 202
    assert (reasons(answer), reasons(answer, OTHER)) == ([0xC000], [0xC000])
    assert answer.json()[FAILED]["Value"][0]["00081155"]["Value"] == [dcmread(bad).SOPInstanceUID]
    assert answer.json()[OTHER]["Value"][0].keys() == {REASON}


def test_a_part_of_another_type_fails_alone(web: Web, tmp_path: Path) -> None:
    (path,) = write_instances(tmp_path, 1)
    answer = web.client.post(
        STUDIES, content=encode_multipart([path.read_bytes()], "application/dicom+xml"), headers=DICOM
    )
    assert answer.status_code == 409
    assert web.rows() == []


@pytest.mark.parametrize("content", [b"", b"rubbish", f"--{BOUNDARY}--\r\n".encode(), b"\r\n" * 5000])
def test_an_empty_or_foreign_body_is_400(web: Web, content: bytes) -> None:
    assert web.client.post(STUDIES, content=content, headers=DICOM).status_code == 400


@pytest.fixture
def small_limit(tmp_path: Path) -> Iterator[Web]:
    """Yield a node that accepts bodies of up to 100 kB."""
    with Web(tmp_path, {"max_store_gb": 1e-4}, LIMITS) as running:
        yield running


def test_a_body_that_is_announced_too_long_is_413(small_limit: Web) -> None:
    answer = small_limit.client.post(STUDIES, content=b"x" * 200_000, headers=DICOM)
    assert answer.status_code == 413
    assert "max_store_gb" in answer.text


def test_a_body_that_grows_too_long_is_413(small_limit: Web, tmp_path: Path) -> None:
    path = tmp_path / "large.dcm"
    write_instance(path, frames_bytes=300_000)
    content = encode_multipart([path.read_bytes()])
    pieces = (content[at : at + 50_000] for at in range(0, len(content), 50_000))
    answer = small_limit.client.post(STUDIES, content=pieces, headers=DICOM)
    assert answer.status_code == 413
    assert small_limit.rows() == small_limit.files_left() == []


def test_pieces_of_any_size_make_the_same_instance(web: Web, tmp_path: Path) -> None:
    content = encode_multipart([path.read_bytes() for path in write_instances(tmp_path, 2)])
    pieces = (content[at : at + 7] for at in range(0, len(content), 7))
    assert web.client.post(STUDIES, content=pieces, headers=DICOM).status_code == 200
    assert len(web.rows(Instance)) == 2


def test_names_with_scripts_and_paths_do_no_harm(web: Web, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    web.store(
        write_instances(
            tmp_path, 1, PatientName=evil, StudyDescription=f"../../{evil}", PatientID="../../../etc/passwd"
        )
    )
    assert len(web.files_left()) == 1
    assert evil not in web.get("/").text
    assert "&lt;script&gt;" in web.get("/").text
    found = web.get("/dicom-web/studies")
    assert found.headers["content-type"] == "application/dicom+json"
    assert found.headers["x-content-type-options"] == "nosniff"


def test_the_root_for_reviewing_stores_nothing(web: Web, tmp_path: Path) -> None:
    content = encode_multipart([path.read_bytes() for path in write_instances(tmp_path, 1)])
    assert web.client.post("/review/dicom-web/studies", content=content, headers=DICOM).status_code == 405
