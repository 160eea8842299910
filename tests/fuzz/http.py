"""Requests to the running web, byte for byte: each gets an answer of its own, none the 500 of an unforeseen error."""

from __future__ import annotations

import re

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tests.fuzz.changes import change
from tests.fuzz.oracle import recorded_errors
from tests.fuzz.receiver import check_health, exchange, running_web
from tests.web_node import BOUNDARY, encode_multipart

__all__ = ["REFUSALS", "examples", "target"]

REFUSALS: tuple[type[Exception], ...] = ()
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
_METHODS = ("GET", "GET", "GET", "HEAD", "POST", "POST", "OPTIONS", "PUT", "DELETE", "CONNECT", "X")
_PATHS = (
    "/", "/jobs", "/jobs/1", "/studies/1.2.3", "/hold", "/failures", "/models", "/models/x", "/system", "/senders",
    "/try", "/learning", "/readings.csv", "/viewer", "/viewer/index.html", "/static/node.css", "/login", "/logout",
    "/metrics", "/healthz", "/readyz", "/api/status", "/api/studies", "/api/jobs", "/api/models",
    "/dicom-web/studies", "/dicom-web/series", "/dicom-web/instances",
    "/dicom-web/studies/1.2/series/1.3/instances/1.4", "/dicom-web/studies/1.2/metadata",
    "/dicom-web/studies/1.2/series/1.3/instances/1.4/frames/1,2",
    "/dicom-web/studies/1.2/series/1.3/instances/1.4/bulkdata/7FE00010", "/jobs/1/release", "/jobs/1/reading",
    "/deliveries/1/retry", "/quarantine/1/release", "/try/upload", "/studies/1.2.3/route", "*", "http://a/", "//a",
)  # fmt: skip
_ODD_PARTS = (
    "", "..", "../..", "%2e%2e/%2e%2e/etc/passwd", "%00", "%ff", "é", "a" * 3000, "%2f%2f", "1' OR '1'='1", "\\..\\",
    ";a=b", "{{7*7}}", "1.2.3", "-1", "999999999999999999999",
)  # fmt: skip
_QUERIES = (
    "limit", "offset", "page", "PatientID", "00100020", "includefield", "fuzzymatching", "StudyDate", "next", "at",
    "size", "window", "viewport", "quality", "before", "done", "transferSyntax", "x",
)  # fmt: skip
_HEADERS = (
    "Accept: */*", "Accept: application/dicom+json;q=9", "Accept: " + "a/b," * 2000,
    "Accept: multipart/related; type=\"x", "Host: evil.example", "Host:", "Host: [::1", "Host: localhost:99999999",
    "Origin: http://evil.example", "Origin: null", "Content-Length: -1", "Content-Length: 99999999999999999999",
    "Content-Length: 5\r\nContent-Length: 6", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked",
    "Content-Encoding: gzip", "Range: bytes=0-,5-,-9", "Cookie: dicomnode=\xff; =; a", "Authorization: Bearer \xff",
    "X: " + "y" * 9000, "Expect: 100-continue", "If-None-Match: *", "If-Modified-Since: x",
    "Connection: upgrade\r\nUpgrade: websocket", "Sec-Fetch-Site: cross-site",
    f'Content-Type: multipart/related; type="application/dicom"; boundary={BOUNDARY}',
    "Content-Type: multipart/form-data; boundary=b", "Content-Type: application/x-www-form-urlencoded",
    "Content-Type: application/json", "Content-Type: " + ";" * 500, "Last-Event-ID: x", "Accept-Encoding: gzip;q=x",
)  # fmt: skip
_BODIES = (b"", b"x", b"a=1&b=2", b"reason=x&who=%ff&token=" + b"a" * 999, b"&" * 3000, b"--b\r\n\r\nx\r\n--b--\r\n",
           b"5\r\nabcde\r\n0\r\n\r\n", b"ffffffffffffffffff\r\nx", encode_multipart([b"x"]))  # fmt: skip


def target(data: bytes) -> None:
    """``data``: all that a client sends on one connection."""
    web = running_web()
    with recorded_errors() as errors:
        answer = exchange(web.port, data)
        check_health(web)
    assert b"500" not in _STATUS.findall(answer), answer[:200]
    assert not errors, errors


def examples() -> SearchStrategy[bytes]:
    """Requests with odd paths, queries, headers and bodies, changed at their bytes."""
    return st.lists(_requests(), min_size=1, max_size=2).map(b"".join).flatmap(change)


@st.composite
def _requests(draw: DrawFn) -> bytes:
    target = draw(st.sampled_from(_PATHS)) + draw(st.sampled_from(("", "", "/" + draw(st.sampled_from(_ODD_PARTS)))))
    names = draw(st.lists(st.sampled_from(_QUERIES), max_size=3))
    query = "&".join(f"{name}={draw(st.sampled_from(_ODD_PARTS))}" for name in names)
    target = (target + (f"?{query}" if query else "")).replace(" ", "%20")
    body = draw(st.sampled_from(_BODIES))
    headers = ["Host: localhost", *draw(st.lists(st.sampled_from(_HEADERS), max_size=4))]
    headers += [f"Content-Length: {len(body)}"] if draw(st.booleans()) else []
    head = f"{draw(st.sampled_from(_METHODS))} {target} HTTP/1.{draw(st.sampled_from('1109'))}\r\n" + "\r\n".join(
        headers
    )
    return head.encode("latin-1", "replace") + b"\r\n\r\n" + body
