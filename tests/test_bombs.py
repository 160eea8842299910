"""Instances that are small to send and large to open: the node's memory stays small, and others are served."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)
from pynetdicom import build_context
from pynetdicom.sop_class import MRImageStorage

from dicomnode.config import Peer
from dicomnode.dimse.associations import association
from tests.peers.files import write_instance
from tests.peers.nodes import Node, write_config
from tests.peers.process import wait_for

pytestmark = pytest.mark.slow

MOST_MB = 1000
HEALTH_WITHIN_S, STORED_WITHIN_S = 5.0, 10.0
"""Wide limits, because tests share their machine; docs/security.md has measurements on an idle one."""
INFLATED = 240 << 20
SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, JPEG2000Lossless]


@dataclass
class Watch:
    """Context in which the node's health is requested and images of another sender are stored, one after another."""

    node: Node
    address: str
    small: Dataset
    health_s: list[float] = field(default_factory=list)
    stored_s: list[float] = field(default_factory=list)

    def __enter__(self) -> Watch:
        Path(f"/proc/{self.node.program.pid}/clear_refs").write_text("5")  # reset the peak of the node's memory
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._check_health), threading.Thread(target=self._store)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def check(self, what: str) -> None:
        """Raise AssertionError if the node took too much memory or a request took too long."""
        health, stored, peak_mb = max(self.health_s), max(self.stored_s), self.peak_mb
        print(f"{what}: {peak_mb:.0f} MB, health within {health:.2f} s, stored within {stored:.2f} s")
        assert peak_mb < MOST_MB
        assert health < HEALTH_WITHIN_S
        assert stored < STORED_WITHIN_S

    @property
    def peak_mb(self) -> float:
        status = Path(f"/proc/{self.node.program.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1000

    def _check_health(self) -> None:
        while True:
            began = time.monotonic()
            connection = HTTPConnection(self.address.removeprefix("http://"), timeout=60)
            connection.request("GET", "/healthz")
            assert connection.getresponse().read() == b'{"status":"ok"}'
            connection.close()
            self.health_s.append(time.monotonic() - began)
            if self._done.wait(0.2):
                return

    def _store(self) -> None:
        while True:
            began = time.monotonic()
            self.small.SOPInstanceUID = self.small.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            assert send(self.node.port, self.small, "OTHER") == 0
            self.stored_s.append(time.monotonic() - began)
            if self._done.wait(0.2):
                return


@dataclass
class RunningNode:
    """Real node on loopback, and a folder for the files to send."""

    node: Node
    folder: Path

    @property
    def address(self) -> str:
        return self.node.log.split("web ")[1].split("/,")[0]

    def watch(self) -> Watch:
        return Watch(self.node, self.address, write_instance(self.folder / "small.dcm"))

    def request_status(self, path: str, accept: str = "*/*") -> int:
        """Request a path, read the body and drop it; return the status."""
        headers = {"Accept": accept}
        with (
            suppress(httpx.RemoteProtocolError),
            httpx.stream("GET", self.address + path, headers=headers, timeout=120) as answer,
        ):
            for _ in answer.iter_raw():
                pass
        return answer.status_code

    def request_all(self, ds: Dataset) -> dict[str, int]:
        """Request every resource that opens an instance, all at once; return the statuses."""
        where = f"/dicom-web/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"
        page = f"/studies/{ds.StudyInstanceUID}"
        requests = {
            "page": (page, "text/html"), "page's thumbnail": (f"{page}/thumbnail", "*/*"),
            "metadata": (f"{where}/metadata", "application/dicom+json"),
            "as stored": (where, 'multipart/related; type="application/dicom"; transfer-syntax=*'),
            "decoded": (where, 'multipart/related; type="application/dicom"'),
            "rendered": (f"{where}/rendered", "image/jpeg"), "thumbnail": (f"{where}/thumbnail", "image/png"),
            "frame": (f"{where}/frames/1", 'multipart/related; type="application/octet-stream"'),
            "pixels": (f"{where}/bulkdata/7FE00010", "*/*"),
        }  # fmt: skip
        with ThreadPoolExecutor(len(requests)) as at_once:
            return dict(
                zip(requests, at_once.map(lambda each: self.request_status(*each), requests.values()), strict=True)
            )


@pytest.fixture(scope="module")
def running_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    folder = tmp_path_factory.mktemp("bombs")
    limits = {"limits": {"associations_per_address": 16}}
    with Node(write_config(folder / "node", **limits), "serve", "--workers", "0") as node:
        yield RunningNode(node, folder)
        assert node.program.running


def send(port: int, ds: Dataset, title: str = "BOMBER") -> int:
    """Send an instance by C-STORE; return the status."""
    peer = Peer(name="node", ae_title="DICOMNODE", port=port)
    context = build_context(MRImageStorage, ds.file_meta.TransferSyntaxUID)
    with association(peer, [context], calling_aet=title, timeout_s=120) as assoc:
        return int(assoc.send_c_store(ds).Status)


def write_bomb(folder: Path, *, syntax: UID = ExplicitVRLittleEndian, **attributes: Any) -> Dataset:
    """Write an instance in a study of its own."""
    uid = generate_uid()
    return write_instance(
        folder / "bomb.dcm", study_uid=uid, series_uid=f"{uid[:60]}.1", transfer_syntax_uid=syntax, **attributes
    )


def make_codestream(rows: int) -> bytes:
    """Return JPEG 2000 of 64 x 64 pixels whose header announces ``rows`` rows and columns."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(file, "JPEG2000", no_jp2=True)
    content = bytearray(file.getvalue())
    at = content.index(b"\xff\x4f\xff\x51") + 8
    for place in (at, at + 4, at + 16, at + 20):  # sizes of the image and of its one tile
        content[place : place + 4] = rows.to_bytes(4, "big")
    return bytes(content)


def write_announced_frames(folder: Path) -> Dataset:
    return write_bomb(folder, NumberOfFrames=2_000_000_000)


def write_compressed_announced_frames(folder: Path) -> Dataset:
    pixels = encapsulate([b"\0" * 64])
    return write_bomb(folder, syntax=RLELossless, NumberOfFrames=2_000_000_000, PixelData=pixels)


def write_large_codestream(folder: Path, rows: int, announced: int) -> Dataset:
    return write_bomb(
        folder, syntax=JPEG2000Lossless, Rows=announced, Columns=announced, BitsAllocated=8, BitsStored=8, HighBit=7,
        PixelData=encapsulate([make_codestream(rows)]),
    )  # fmt: skip


def write_deflated(folder: Path) -> Dataset:
    return write_bomb(
        folder, syntax=DeflatedExplicitVRLittleEndian, Rows=10240, Columns=12288, PixelData=bytes(INFLATED)
    )  # fmt: skip


BOMBS: dict[str, Callable[[Path], Dataset]] = {
    "2·10⁹ frames announced": write_announced_frames,
    "2·10⁹ compressed frames announced": write_compressed_announced_frames,
    "JPEG 2000 of 12 000²": lambda folder: write_large_codestream(folder, 12_000, 12_000),
    "JPEG 2000 of 11 000²": lambda folder: write_large_codestream(folder, 11_000, 11_000),
    "JPEG 2000 of 20 000², announced as 64²": lambda folder: write_large_codestream(folder, 20_000, 64),
    "deflate": write_deflated,
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_is_small_to_send_and_large_to_open(running_node: RunningNode, name: str) -> None:
    ds = BOMBS[name](running_node.folder)
    with running_node.watch() as watch:
        status = send(running_node.node.port, ds)
        answers = running_node.request_all(ds) if status == 0 else {}
    print(f"{status:04x}", answers)
    watch.check(name)
    assert 500 not in answers.values()
    if answers:
        assert answers["page"] == answers["page's thumbnail"] == answers["as stored"] == 200
        assert answers["rendered"] == 406 or name == "deflate"


def test_a_million_empty_items(running_node: RunningNode) -> None:
    ds = write_bomb(running_node.folder)
    content = (running_node.folder / "bomb.dcm").read_bytes()
    at = content.index(b"\x10\0\x10\0PN")
    items = b"\xfe\xff\0\xe0\0\0\0\0" * 1_000_000
    header = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, len(items))
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
    body = (
        b"--b\r\nContent-Type: application/dicom\r\n\r\n"
        + content[:at]
        + header
        + items
        + content[at:]
        + b"\r\n--b--\r\n"
    )
    with running_node.watch() as watch:
        stored = httpx.post(f"{running_node.address}/dicom-web/studies", content=body, headers=headers, timeout=120)
        answers = running_node.request_all(ds) if stored.status_code == 200 else {}
    print(stored.status_code, answers)
    watch.check("a million empty items")
    assert 500 not in answers.values()


def test_large_images_at_once(running_node: RunningNode) -> None:
    ds = write_bomb(
        running_node.folder, rows=16, Rows=4000, Columns=5120, PixelData=np.arange(4000 * 5120, dtype="<u2").tobytes()
    )
    assert send(running_node.node.port, ds) == 0
    address = f"/dicom-web/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"
    paths = [f"{address}/rendered?window=2000,{width}" for width in range(1000, 5000, 1000)] + [address] * 4
    with running_node.watch() as watch, ThreadPoolExecutor(8) as at_once:
        statuses = list(at_once.map(running_node.request_status, paths))
    watch.check("eight images of 41 MB at once")
    assert set(statuses[4:]) == {200}
    assert set(statuses[:4]) <= {200, 503}  # a slow machine renders fewer in time and answers 503


def test_a_million_empty_parts(running_node: RunningNode) -> None:
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n\r\n" * 1_000_000 + b"--b--\r\n"
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
    with running_node.watch() as watch:
        status = 0
        with suppress(httpx.HTTPError):  # the answer comes before the end of the body
            answer = httpx.post(f"{running_node.address}/dicom-web/studies", content=body, headers=headers, timeout=120)
            status = answer.status_code
    watch.check("a million empty parts")
    assert status in (0, 413)


@pytest.mark.parametrize(
    "unfinished", ["", "GET / HTTP/1.1~Host: a~X-Slow: ", "POST /login HTTP/1.1~Host: a~Content-Length: 9~~"]
)
def test_1500_unfinished_requests(running_node: RunningNode, unfinished: str) -> None:
    port = running_node.address.rpartition(":")[2]
    descriptors = Path(f"/proc/{running_node.node.program.pid}/fd")
    command = [sys.executable, "-c", FLOOD, port, unfinished.replace("~", "\r\n")]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as flood:
        assert flood.stdout is not None
        assert flood.stdout.readline() == "all are there\n"
        with running_node.watch() as watch:
            wait_for(lambda: len(watch.stored_s) > 3, "another sender is served", within_s=60)
            most = len(list(descriptors.iterdir()))
        flood.kill()
    watch.check(f"1500 times {unfinished!r}; {most} descriptors")
    assert most < 600


FLOOD = """
import socket, sys
opened = []
for _ in range(1500):
    opened.append(socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20))
    try:
        opened[-1].sendall(sys.argv[2].encode())
    except OSError:  # turned away already
        pass
print("all are there", flush=True)
sys.stdin.read()
"""
