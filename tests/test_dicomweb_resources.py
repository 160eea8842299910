"""Every DICOMweb resource of a node: methods, byte ranges, deflated data sets; no request breaks the node."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, MultiFrameGrayscaleWordSecondaryCaptureImageStorage

from tests.peers.files import write_instance
from tests.web_node import Web

ROOT = "/dicom-web/studies/1.2.3"
SERIES = f"{ROOT}/series/1.2.3.4"
INSTANCE = f"{SERIES}/instances/1.2.3.4.5"
DEFLATED = f"{ROOT}/series/1.2.3.6/instances/1.2.3.6.1"
OCTETS = "application/octet-stream"
VALUES = np.random.default_rng(3).integers(0, 4096, (3, 12, 10)).astype("<u2")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """Yield a node with a plain and a deflated instance of three frames, in one study."""
    folder = tmp_path_factory.mktemp("resources")
    for name, series, uid in (("plain", "1.2.3.4", "1.2.3.4.5"), ("deflated", "1.2.3.6", "1.2.3.6.1")):
        more: dict[str, Any] = {"transfer_syntax_uid": DeflatedExplicitVRLittleEndian} if name == "deflated" else {}
        write_instance(
            folder / f"{name}.dcm", study_uid="1.2.3", series_uid=series, SOPInstanceUID=uid, NumberOfFrames=3,
            sop_class_uid=MultiFrameGrayscaleWordSecondaryCaptureImageStorage, Rows=12, Columns=10, WindowCenter="2048",
            WindowWidth="4096", PixelData=VALUES.tobytes(), ICCProfile=bytes(range(250)) * 10, **more,
        )  # fmt: skip
    with Web(folder / "node") as web:
        assert web.store([folder / "plain.dcm", folder / "deflated.dcm"]).status_code == 200
        yield web


def read_stored(node: Web, number: int) -> bytes:
    path: Path = node.config.spool_dir / node.rows()[number].relative_path
    return path.read_bytes()


@pytest.mark.slow
def test_frames_of_a_deflated_instance_are_native(node: Web) -> None:
    """Deflating encodes the data set (PS3.5 A.5), so the pixels inside are as in Explicit VR Little Endian."""
    assert node.rows()[1].transfer_syntax_uid == DeflatedExplicitVRLittleEndian
    for number in (1, 2, 3):
        assert node.get(f"{DEFLATED}/frames/{number}", OCTETS).content == VALUES[number - 1].tobytes()
    assert node.get(f"{DEFLATED}/bulkdata/7FE00010", OCTETS).content == VALUES.tobytes()
    assert node.get(f"{DEFLATED}/bulkdata/00282000", OCTETS).content == bytes(range(250)) * 10
    first, second = node.dicomweb.retrieve_instance_frames("1.2.3", "1.2.3.6", "1.2.3.6.1", [3, 1])
    assert (first, second) == (VALUES[2].tobytes(), VALUES[0].tobytes())


@pytest.mark.slow
def test_a_deflated_instance_comes_inflated_and_as_it_is(node: Web) -> None:
    inflated = dcmread(io.BytesIO(node.get(DEFLATED, "application/dicom").content))
    assert np.array_equal(inflated.pixel_array, VALUES)
    expected = f"application/dicom; transfer-syntax={DeflatedExplicitVRLittleEndian}"
    assert node.get(DEFLATED, expected).content == read_stored(node, 1)


@pytest.mark.parametrize("resource", ["rendered", "frames/3/rendered", "thumbnail", "frames/2/thumbnail"])
def test_a_deflated_instance_is_drawn_like_a_plain_one(node: Web, resource: str) -> None:
    pictures = [node.get(f"{address}/{resource}", "image/png") for address in (INSTANCE, DEFLATED)]
    assert [each.status_code for each in pictures] == [200, 200]
    assert pictures[0].content == pictures[1].content
    assert np.ptp(np.asarray(Image.open(io.BytesIO(pictures[1].content)))) > 100


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*, image/jpeg;q=0", "image/png"),
        ("image/*, image/jpeg;q=0", "image/png"),
        ("image/png;q=0.5, image/jpeg;q=0.1", "image/png"),
        ("image/*, image/png;q=0", "image/jpeg"),
    ],
)
def test_a_type_that_is_refused_does_not_come_by_a_wider_range(node: Web, accept: str, kind: str) -> None:
    assert node.get(f"{INSTANCE}/rendered", accept).headers["content-type"] == kind
    assert node.get(f"{INSTANCE}/rendered", "image/*, image/jpeg;q=0, image/png;q=0").status_code == 406


COMPLETE_ANSWERS = [
    (INSTANCE, "application/dicom"),
    (DEFLATED, "application/dicom"),
    (DEFLATED, "application/dicom; transfer-syntax=*"),
    (f"{INSTANCE}/bulkdata/7FE00010", OCTETS),
    (f"{DEFLATED}/bulkdata/7FE00010", OCTETS),
    (f"{INSTANCE}/bulkdata/00282000", OCTETS),
    (f"{INSTANCE}/frames/2", OCTETS),
]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "accept"), COMPLETE_ANSWERS)
def test_one_range_of_an_answer_comes_alone(node: Web, path: str, accept: str) -> None:
    complete = node.get(path, accept)
    assert complete.headers["accept-ranges"] == "bytes"
    size = len(complete.content)
    assert complete.headers["content-length"] == str(size)
    for text, start, stop in (
        ("bytes=0-0", 0, 1), ("bytes=7-99", 7, 100), ("bytes=100-", 100, size), ("bytes=-9", size - 9, size),
        (f"bytes=5-{size + 7}", 5, size), (f"bytes=-{size + 7}", 0, size), (f"bytes=0-{'9' * 18}", 0, size),
    ):  # fmt: skip
        part = node.get(path, accept, Range=text)
        assert part.status_code == 206, text
        assert part.content == complete.content[start:stop], text
        assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
        assert part.headers["content-type"] == complete.headers["content-type"]


@pytest.mark.parametrize("text", [
    "bytes=1-2,5-6", "bytes=9-3", "bytes=-", "bytes=a-b", "items=0-1", "bytes", "", f"bytes=0-{'9' * 5000}",
])  # fmt: skip
def test_several_ranges_and_what_is_none_get_the_whole(node: Web, text: str) -> None:
    answer = node.get(f"{INSTANCE}/frames/1", OCTETS, Range=text)
    assert (answer.status_code, answer.content) == (200, VALUES[0].tobytes())


def test_a_range_under_a_condition_gets_the_whole(node: Web) -> None:
    answer = node.get(f"{INSTANCE}/frames/1", OCTETS, **{"Range": "bytes=0-1", "If-Range": '"x"'})
    assert (answer.status_code, answer.content) == (200, VALUES[0].tobytes())


@pytest.mark.parametrize("text", ["bytes=240-", "bytes=1000-2000", "bytes=-0", f"bytes={'9' * 18}-"])
def test_a_range_without_a_byte_is_416(node: Web, text: str) -> None:
    answer = node.get(f"{INSTANCE}/frames/1", OCTETS, Range=text)
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */240")


GETS = [
    "/dicom-web/studies", "/dicom-web/series", "/dicom-web/instances?limit=1", f"{ROOT}/series", f"{ROOT}/instances",
    f"{SERIES}/instances", ROOT, SERIES, INSTANCE, f"{ROOT}/metadata", f"{INSTANCE}/metadata", f"{ROOT}/thumbnail",
    f"{INSTANCE}/rendered", f"{INSTANCE}/frames/1,2", f"{INSTANCE}/frames/1/rendered", f"{INSTANCE}/bulkdata/7FE00010",
    f"{INSTANCE}/bulkdata/00100010", "/dicom-web/studies/1.9", f"{INSTANCE}/frames/9", "/dicom-web/studies?limit=x",
    f"/review{ROOT}",
]  # fmt: skip


@pytest.mark.parametrize("path", GETS)
def test_head_has_the_headers_of_get(node: Web, path: str) -> None:
    answer, head = node.get(path), node.client.head(path)
    assert (head.status_code, head.content) == (answer.status_code, b"")
    for name in ("content-type", "accept-ranges", "warning", "content-length"):
        expected, metadata = answer.headers.get(name), head.headers.get(name)
        assert _without_boundary(metadata) == _without_boundary(expected), name


def _without_boundary(text: str | None) -> str | None:
    return text and text.partition("boundary=")[0]


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/dicom-web/studies", "GET, HEAD, OPTIONS, POST"),
        (ROOT, "GET, HEAD, OPTIONS, POST"),
        (f"{INSTANCE}/frames/1", "GET, HEAD, OPTIONS"),
        ("/review/dicom-web/studies", "GET, HEAD, OPTIONS"),
    ],
)
def test_options_and_what_is_not_allowed_tell_the_methods(node: Web, path: str, allow: str) -> None:
    options = node.client.options(path)
    assert (options.status_code, options.headers["allow"], options.content) == (204, allow, b"")
    for method in ("DELETE", "PUT"):
        answer = node.client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allow)


ODD = (
    "-1", "%00", "%FF", "%ED%A0%80", "%D9%A1", "..", "*", "%5C", "a" * 2000, "9" * 19, "9" * 5000, "1e999", "1,2", "",
)  # fmt: skip
PATHS = [
    "/dicom-web/studies/{}", "/dicom-web/studies/{}/series", "/dicom-web/studies/{}/metadata", f"{ROOT}/series/{{}}",
    f"{ROOT}/series/{{}}/instances", f"{SERIES}/instances/{{}}", f"{SERIES}/instances/{{}}/rendered",
    f"{INSTANCE}/frames/{{}}", f"{INSTANCE}/frames/{{}}/rendered", f"{INSTANCE}/frames/{{}}/thumbnail",
    f"{INSTANCE}/bulkdata/{{}}", f"{INSTANCE}/bulkdata/00282000/{{}}/00100010", f"{INSTANCE}/rendered?window={{}}",
    f"{INSTANCE}/rendered?window=1,{{}},linear", f"{INSTANCE}/rendered?viewport={{}}",
    f"{INSTANCE}/rendered?quality={{}}",
    f"{INSTANCE}/rendered?viewport=10,{{}}", f"{ROOT}/thumbnail?viewport={{}}", f"{ROOT}?accept={{}}",
    "/dicom-web/studies?limit={}", "/dicom-web/series?offset={}", "/dicom-web/instances?InstanceNumber={}",
    "/dicom-web/instances?Rows={}", "/dicom-web/series?ModalitiesInStudy={}", "/dicom-web/studies?StudyDate={}",
    "/dicom-web/studies?StudyTime={}&StudyDate={}", "/dicom-web/studies?PatientName={}&fuzzymatching=true",
    "/dicom-web/studies?includefield={}", "/dicom-web/studies?{}=1", "/dicom-web/studies?{}", "/review/dicom-web/{}",
    "/studies/{}", "/studies/{}/thumbnail", "/studies/{}/series/1.2/thumbnail", "/jobs/{}", "/jobs/{}/depth",
    "/jobs/{}/pictures/1.2", "/jobs/1/pictures/{}", "/jobs/1/pictures/1.2?at={}", "/jobs/1/pictures/1.2?size={}",
    "/api/studies/{}", "/api/studies/{}/explain", "/api/jobs/{}", "/api/jobs?limit={}", "/api/jobs?offset={}",
    "/api/jobs?state={}", "/api/studies?offset={}", "/api/models/{}", "/?page={}", "/?q={}", "/failures?page={}",
    "/system?before={}", "/models/{}", "/ohif/{}", "/static/{}", "/{}",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_no_address_breaks_the_node(node: Web, path: str) -> None:
    for malformed in ODD:
        answer = node.client.get(path.replace("{}", malformed))
        assert answer.status_code < 500, (path, malformed[:20], answer.text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "headers",
    [
        {"Accept": odd} for odd in (
            "", ",", ";", "a", "*/*;q=nan", "*/*;q=", "multipart/related", 'multipart/related; type="', "x" * 5000,
            "\xff",
            "application/dicom;q=1;q=2", "application/dicom; transfer-syntax=" + "9" * 5000, ",".join(["*/*"] * 1000),
        )
    ] + [
        {"Range": "bytes=\xff-"}, {"If-Range": "\xff"}, {"Authorization": "Bearer \xff"},
        {"Cookie": "dicomnode=\xff.x"},
        {"Accept-Charset": "x"}, {"Origin": "\xff"}, {"X-Forwarded-Proto": "x"},
    ],
)  # fmt: skip
def test_no_header_breaks_the_node(node: Web, headers: dict[str, str]) -> None:
    for path in (INSTANCE, f"{INSTANCE}/frames/1", f"{INSTANCE}/rendered", "/dicom-web/studies", "/"):
        request = node.client.build_request("GET", path)
        request.headers = httpx.Headers(
            [(b"host", request.headers["host"].encode())]
            + [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        )
        assert node.client.send(request).status_code < 500


CONTENT_TYPES = (
    'multipart/related; type="application/dicom"; boundary=b',
    'multipart/related; boundary="b',
    "multipart/related;;",
    'multipart/related; type="application/dicom"; boundary="' + "b" * 5000 + '"',
    "\xff",
    "",
    "application/dicom",
)
BODIES = (
    b"",
    b"--b--",
    b"--b",
    b"--b\r\n",
    b"--b\r\n\r\n--b--",
    b"--b\r\n: x\r\n\r\n\r\n--b--",
    b"\r\n--b\r\nA: b\r\n\r\n" * 5,
    b"--b\r\nContent-Type: \xff\r\n\r\n" + b"\0" * 128 + b"DICM\r\n--b--",
    b"--b\r\n" + b"X" * 100_000,
    b"-" * 200_000,
    b"--b\r\n\r\n" + b"\0" * 128 + b"DICM\2\0\x10\0UI\x06\x001.2.3\0" + b"\xff" * 999 + b"\r\n--b--",
)


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_no_body_breaks_the_node(node: Web, content_type: str) -> None:
    for content in BODIES:
        headers = {b"Content-Type": content_type.encode("latin-1")}
        answer = node.client.post("/dicom-web/studies", content=content, headers=headers)
        assert 400 <= answer.status_code < 500, (content[:40], answer.text)
