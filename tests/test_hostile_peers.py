"""What hostile peers send, by the classes of advisories against other receivers (the table in docs/security.md)."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind as Find,
)
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelGet as Get,
)
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelMove as Move,
)

from db import engine as engines
from db.models import Instance
from dicomnode import decoding, mrd
from dicomnode.config import Peer
from dicomnode.dimse import queries
from dicomnode.errors import InputRefused
from dicomnode.reading import volumes
from dicomnode.routing import retrieved
from dicomnode.transcoding import pixels
from dicomnode.web import rendered
from pipelines.contract import Refused
from tests.mrd_files import acquire_scan
from tests.peers.files import write_instance
from tests.receivers import Start, start
from tests.test_association_requests import database_url
from tests.test_web_app import send_raw
from tests.web_node import DICOM, Web, web

__all__ = ["database_url", "start", "web"]

ROOT = Path(__file__).parents[1]
PROGRAM = ("dicomnode", "db", "pipelines", "model_zoo")
OPTIONS = rendered.RenderOptions.from_query({}, "image/png")


# Sizes that the pixels cannot fill


SIZES: dict[str, dict[str, Any]] = {
    "a product beyond 64 bits": {
        "Rows": 65535,
        "Columns": 65535,
        "SamplesPerPixel": 65535,
        "NumberOfFrames": 2**31 - 1,
    },
    "a product that is zero in 32 bits": {"Rows": 32768, "Columns": 32768, "SamplesPerPixel": 4},
    "bits beyond any cell": {"BitsAllocated": 65535},
    "a negative number of frames": {"NumberOfFrames": -(2**31)},
    "no rows": {"Rows": 0},
}


@pytest.mark.parametrize("what", SIZES)
def test_sizes_that_the_pixels_cannot_fill_are_refused(what: str, tmp_path: Path) -> None:
    write_instance(tmp_path / "a.dcm", **SIZES[what])
    with pytest.raises(InputRefused):
        pixels.read_layout(tmp_path / "a.dcm")
    with pytest.raises(InputRefused):
        volumes.read([tmp_path / "a.dcm"])


def _set_palette(ds: Dataset, descriptor: list[int], entries: int) -> None:
    ds.PhotometricInterpretation, ds.BitsAllocated, ds.BitsStored, ds.HighBit = "PALETTE COLOR", 8, 8, 7
    ds.Rows, ds.Columns, ds.PixelData = 4, 4, bytes(range(240, 256))
    for colour in ("Red", "Green", "Blue"):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", descriptor)
        setattr(ds, f"{colour}PaletteColorLookupTableData", np.zeros(entries, "<u2").tobytes())


PALETTES = {
    "more entries than there are": ([0, 0, 16], 3),
    "fewer entries than the pixels name": ([2, 0, 16], 2),
    "entries of no bits": ([16, 0, 0], 16),
    "entries of 99 bits": ([16, 0, 99], 16),
    "a first value beyond the pixels": ([16, 65535, 16], 16),
    "two numbers": ([16, 0], 16),
    "no entries": ([1, 0, 16], 0),
}


@pytest.mark.parametrize("what", PALETTES)
def test_a_palette_of_wrong_sizes_costs_its_own_picture_only(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ds = write_instance(tmp_path / "a.dcm")
    _set_palette(ds, *PALETTES[what])
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with suppress(InputRefused):
        assert decoding.run(rendered.render_frame, tmp_path / "a.dcm", 0, OPTIONS).startswith(b"\x89PNG")
    assert "a process is given up" not in caplog.text
    write_instance(tmp_path / "b.dcm")
    assert decoding.run(rendered.render_frame, tmp_path / "b.dcm", 0, OPTIONS).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("rows", "columns", "origin"), [(65535, 65535, [1, 1]), (0, 0, [1, 1]), (4, 4, [-32768, 32767])]
)
def test_an_overlay_of_wrong_sizes_changes_neither_picture_nor_values(
    rows: int, columns: int, origin: list[int], tmp_path: Path
) -> None:
    place: dict[str, Any] = {
        "ImagePositionPatient": [0, 0, 0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1, 1],
    }
    plain = write_instance(tmp_path / "a.dcm", SliceThickness=1, **place)
    plain.add_new(0x60000010, "US", rows)
    plain.add_new(0x60000011, "US", columns)
    plain.add_new(0x60000050, "SS", origin)
    plain.add_new(0x60000100, "US", 1)
    plain.add_new(0x60000102, "US", 0)
    plain.add_new(0x60003000, "OW", b"\xff\xff")
    plain.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    pictures = [decoding.run(rendered.render_frame, tmp_path / f"{name}.dcm", 0, OPTIONS) for name in "ab"]
    assert pictures[0] == pictures[1]
    assert np.array_equal(pixels.decode_array(_layout(tmp_path / "b.dcm"), 0), dcmread(tmp_path / "a.dcm").pixel_array)


def _layout(path: Path) -> pixels.PixelLayout:
    found = pixels.read_layout(path)
    assert found is not None
    return found


# Names that lead out of a folder


NAMES = ("../../../outside", "/tmp/outside", "..", "1.2.3/../../x", "a" * 64)


@contextmanager
def hostile_archive(uid: str) -> Iterator[Peer]:
    """Run an archive that answers C-GET with an instance under a SOP Instance UID that is none."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.PatientID = "1.2.3", "1.2.4", "X"
    ds.file_meta = Dataset()  # type: ignore[assignment]
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset]]:
        match = Dataset()
        match.QueryRetrieveLevel = event.identifier.QueryRetrieveLevel
        match.StudyInstanceUID, match.SeriesInstanceUID = "1.2.3", "1.2.4"
        match.SOPInstanceUID, match.SOPClassUID = "1.2.5", MRImageStorage
        yield 0xFF00, match

    def get(_: evt.Event) -> Iterator[Any]:
        yield 1
        yield 0xFF00, ds

    ae = AE("HOSTILE")
    for kind in (Find, Get):
        ae.add_supported_context(kind)
    ae.add_supported_context(MRImageStorage, ExplicitVRLittleEndian, scu_role=True, scp_role=True)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find), (evt.EVT_C_GET, get)])
    try:
        yield Peer(name="hostile", ae_title="HOSTILE", port=server.server_address[1])
    finally:
        server.shutdown()


@pytest.mark.filterwarnings("ignore")  # pydicom warns about UIDs and continues
@pytest.mark.parametrize("uid", NAMES)
def test_an_archive_that_answers_c_get_with_a_path_for_a_uid_writes_no_file(uid: str, start: Start) -> None:
    receiver = start()
    with hostile_archive(uid) as peer:
        sessions = engines.sessions(receiver.engine)
        take = retrieved.store_handler(receiver.config, sessions, peer, lambda: datetime.now(UTC))
        counts = queries.fetch(peer, "1.2.3", on_store=take, calling_aet="DICOMNODE")
    assert counts.failed == 1
    assert receiver.rows() == []
    assert receiver.files() == []


def test_what_an_archive_leaves_out_when_it_ends_early_counts_as_failed() -> None:
    def cancel(_: evt.Event) -> Iterator[Any]:
        yield "127.0.0.1", peer.port, {"contexts": [build_context(MRImageStorage)]}
        yield 5
        yield 0xFE00, None

    ae = AE("ENDS_EARLY")
    ae.add_supported_context(Move)
    ae.add_supported_context(MRImageStorage)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_MOVE, cancel)])
    peer = Peer(name="early", ae_title="ENDS_EARLY", port=server.server_address[1])
    try:
        counts = queries.move(peer, "1.2.3", destination_aet="ENDS_EARLY", calling_aet="DICOMNODE")
    finally:
        server.shutdown()
    assert counts == queries.RetrievalCounts(failed=5)


def test_a_file_with_a_path_for_a_uid_is_not_received(web: Web, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Invalid value for VR UI"):
        write_instance(tmp_path / "a.dcm", SOPInstanceUID=UID("../../x"))
    assert web.store([tmp_path / "a.dcm"]).status_code == 409
    assert web.files_left() == []


# Lengths of HTTP


@pytest.mark.parametrize(
    "lengths",
    ["Content-Length: -1", "Content-Length: 0x10", "Content-Length: 1, 2", "Content-Length: 5\r\nContent-Length: 6",
     f"Content-Length: {'9' * 5000}", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: x"],
)  # fmt: skip
def test_a_body_whose_length_is_not_known_is_refused_and_nothing_after_it_is_read(web: Web, lengths: str) -> None:
    kind = f"Host: localhost\r\nContent-Type: {DICOM['Content-Type']}"
    head = f"POST /dicom-web/studies HTTP/1.1\r\n{kind}\r\n{lengths}\r\n\r\n"
    answer = send_raw(web, f"{head}GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413", b"HTTP/1.1 501")
    assert answer.count(b"HTTP/1.1") == 1


# Database


INJECTIONS = ("' OR '1'='1", "'; DROP TABLE instances; --", '" OR ""="', "%' OR 1=1 --", "\\' OR 1=1 #")


@pytest.mark.parametrize("text", INJECTIONS)
def test_sql_in_a_search_is_a_value_like_any_other(web: Web, tmp_path: Path, text: str) -> None:
    write_instance(tmp_path / "a.dcm", PatientID="4711")
    web.store([tmp_path / "a.dcm"])
    for keyword in ("PatientID", "PatientName", "StudyDescription", "AccessionNumber"):
        answer = web.client.get("/dicom-web/studies", params={keyword: text})
        assert answer.status_code in (200, 204, 400), answer.text
        assert answer.text in ("", "[]") or answer.status_code == 400
    assert web.client.get("/", params={"q": text}).status_code == 200
    assert len(web.rows(Instance)) == 1


def test_sql_in_a_header_is_stored_as_it_is(web: Web, tmp_path: Path) -> None:
    write_instance(tmp_path / "a.dcm", PatientID=INJECTIONS[1], PatientName=INJECTIONS[0])
    assert web.store([tmp_path / "a.dcm"]).status_code == 200
    (study,) = web.get("/dicom-web/studies", "application/dicom+json").json()
    assert study["00100020"]["Value"] == [INJECTIONS[1]]


# Entities of XML


LAUGHS = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
DOCTYPES = {
    "a file of this machine": ('<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>', "e"),
    "billion laughs": (f"{LAUGHS}]>", "j"),
}


@pytest.mark.parametrize("what", DOCTYPES)
def test_entities_in_the_header_of_an_mrd_file_are_refused(what: str, tmp_path: Path) -> None:
    acquire_scan(tmp_path)
    doctype, name = DOCTYPES[what]
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        declaration, _, rest = file["dataset"]["xml"][0].decode().partition("?>")
        changed = rest.replace("Scanner works", f"&{name};")
        assert changed != rest
        file["dataset"]["xml"][0] = f"{declaration}?>{doctype}{changed}".encode()
    with pytest.raises(Refused, match="the XML header does not follow the ISMRMRD schema"):
        mrd.read(tmp_path / "a.h5")


# Commands and code


def _call_name(node: ast.Call) -> str:
    return ast.unparse(node.func)


def _keywords(node: ast.Call) -> set[str | None]:
    return {each.arg for each in node.keywords}


FORBIDDEN: dict[str, Callable[[ast.Call], bool]] = {
    "a shell": lambda call: _call_name(call) in ("os.system", "os.popen") or "shell" in _keywords(call),
    "evaluation": lambda call: _call_name(call) in ("eval", "exec", "compile", "__import__"),
    "unpickling": lambda call: _call_name(call) in ("pickle.load", "pickle.loads", "yaml.load", "joblib.load"),
}
ALLOWED = {
    ("unpickling", "dicomnode/decoding/child.py"): "the parent process made it",
    ("unpickling", "dicomnode/execution/option_process.py"): "the parent process made it",
}


def test_the_program_calls_no_shell_evaluates_nothing_and_unpickles_nothing() -> None:
    found = set()
    for path in (path for folder in PROGRAM for path in (ROOT / folder).rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        found |= {(what, str(path.relative_to(ROOT))) for what, test in FORBIDDEN.items() if any(map(test, calls))}
    assert found == set(ALLOWED)


def test_that_check_sees_each_kind() -> None:
    calls = {"a shell": "run('x', shell=True)", "evaluation": "eval('x')", "unpickling": "pickle.loads(b'')"}
    for what, source in calls.items():
        (node,) = (each for each in ast.walk(ast.parse(source)) if isinstance(each, ast.Call))
        assert FORBIDDEN[what](node), what


@pytest.mark.parametrize("text", ["$(touch injected)", "`touch injected`", "; touch injected", "| touch injected"])
def test_commands_in_attributes_are_text(web: Web, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_instance(tmp_path / "a.dcm", PatientName=text, StudyDescription=text, SeriesDescription=text)
    assert web.store([tmp_path / "a.dcm"]).status_code == 200
    study = "1.2.826.0.1.3680043.8.498.1"
    for path in ("/", f"/studies/{study}", f"/try/{study}"):
        assert web.get(path, "text/html").status_code == 200, path
    assert not (tmp_path / "injected").exists()
