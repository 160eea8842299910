"""The node as a service class user: against Orthanc, DCMTK's storescp and a pynetdicom server."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RawDataStorage,
)
from pynetdicom import build_context, evt
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.sop_class import MRImageStorage

from dicomnode.config import Config, Peer
from dicomnode.config.node import NodeConfig
from dicomnode.config.tls import TlsConfig
from dicomnode.dimse import peers, queries
from dicomnode.dimse.associations import association
from dicomnode.dimse.peers import Outcome
from dicomnode.errors import PeerRefused, PeerUnreachable
from dicomnode.ingest import scp
from tests import databases
from tests.peers import Answering, Orthanc, StoreScp, free_port, write_instance
from tests.peers.process import require_program

AET = "NODE"


def nobody() -> Peer:
    return Peer(name="nobody", ae_title="NOBODY", host="127.0.0.1", port=free_port())


@pytest.fixture
def silent() -> Iterator[Peer]:
    """Return a peer that accepts the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Peer(name="silent", ae_title="SILENT", host="127.0.0.1", port=server.getsockname()[1])


def test_echo_to_orthanc_and_storescp(orthanc: Orthanc, storescp: StoreScp) -> None:
    for peer in (orthanc.peer, storescp.peer):
        assert 0 < peers.echo(peer, calling_aet=AET) < 5


def test_echo_to_nobody_says_where() -> None:
    peer = nobody()
    with pytest.raises(PeerUnreachable, match=f"127.0.0.1:{peer.port} cannot be reached"):
        peers.echo(peer, calling_aet=AET)


def test_echo_to_a_silent_peer_ends_in_time(silent: Peer) -> None:
    with pytest.raises(PeerUnreachable, match="did not answer"):
        peers.echo(silent, calling_aet=AET, timeout_s=0.5)


def test_echo_to_a_peer_that_rejects_tells_its_reason(tmp_path: Path) -> None:
    with StoreScp(tmp_path, "--refuse") as scp, pytest.raises(PeerRefused, match="rejected the association"):
        peers.echo(scp.peer, calling_aet=AET)


def test_a_host_name_that_does_not_resolve_is_unreachable() -> None:
    peer = Peer(name="typo", ae_title="TYPO", host="no-such-host.invalid", port=104)
    with pytest.raises(PeerUnreachable, match="typo"):
        peers.echo(peer, calling_aet=AET)


def test_stored_bytes_arrive_as_they_were(tmp_path: Path, storescp: StoreScp) -> None:
    path = tmp_path / "a.dcm"
    sent = write_instance(path, PatientName="Müller^Jürgen=山田^太郎")
    (result,) = peers.store(storescp.peer, [path], calling_aet=AET)
    assert (result.outcome, result.status) == (Outcome.STORED, 0x0000)
    assert result.sop_instance_uid == sent.SOPInstanceUID
    (received,) = storescp.datasets()
    assert received.PatientName == "Müller^Jürgen=山田^太郎"
    assert _digest_data_set(storescp.files()[0]) == _digest_data_set(path)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian],
)
def test_every_uncompressed_syntax_is_sent_as_stored(tmp_path: Path, orthanc: Orthanc, syntax: UID) -> None:
    path = tmp_path / "a.dcm"
    write_instance(path, transfer_syntax_uid=syntax, PixelData=b"\x01\x00" * 256)
    (result,) = peers.store(orthanc.peer, [path], calling_aet=AET)
    assert result.is_stored, result.text
    (received,) = orthanc.datasets()
    assert received.file_meta.TransferSyntaxUID == syntax


def test_explicit_is_transcoded_only_when_the_peer_takes_implicit_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_instance(path, PatientName="Müller^Jürgen")
    with StoreScp(tmp_path / "scp", "--implicit") as scp:
        (result,) = peers.store(scp.peer, [path], calling_aet=AET)
        assert result.is_stored, result.text
        (received,) = scp.datasets()
    assert received.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert received.PatientName == "Müller^Jürgen"


def test_a_refused_syntax_is_told_for_its_instance_and_the_others_arrive(tmp_path: Path) -> None:
    good, compressed = tmp_path / "good.dcm", tmp_path / "compressed.dcm"
    write_instance(good)
    ds = write_instance(tmp_path / "plain.dcm")
    ds.compress(JPEGLSLossless)
    ds.save_as(compressed, enforce_file_format=True)
    with StoreScp(tmp_path / "scp", "--implicit") as scp:
        results = peers.store(scp.peer, [compressed, good], calling_aet=AET)
        assert [(r.path, r.outcome) for r in results] == [(compressed, Outcome.REFUSED), (good, Outcome.STORED)]
        assert "JPEG-LS Lossless" in results[0].text
        assert len(scp.files()) == 1


def test_files_that_cannot_be_read_are_told_and_the_others_arrive(tmp_path: Path, storescp: StoreScp) -> None:
    good, text, missing = tmp_path / "good.dcm", tmp_path / "notes.txt", tmp_path / "missing.dcm"
    write_instance(good)
    text.write_text("no DICOM")
    results = peers.store(storescp.peer, [text, missing, good], calling_aet=AET)
    assert [r.outcome for r in results] == [Outcome.UNREADABLE, Outcome.UNREADABLE, Outcome.STORED]
    assert [r.status for r in results] == [None, None, 0]


@pytest.mark.slow
def test_no_answer_is_not_success(tmp_path: Path, silent: Peer) -> None:
    path = tmp_path / "a.dcm"
    write_instance(path)
    for peer in (nobody(), silent):
        (result,) = peers.store(peer, [path], calling_aet=AET, timeout_s=0.5)
        assert (result.outcome, result.status) == (Outcome.UNANSWERED, None)


@pytest.mark.slow
def test_a_slow_peer_is_waited_for_and_a_slower_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_instance(path)
    with StoreScp(tmp_path / "scp", "--sleep-during", "1") as scp:
        (patient,) = peers.store(scp.peer, [path], calling_aet=AET, timeout_s=10)
        assert patient.is_stored, patient.text
        (impatient,) = peers.store(scp.peer, [path], calling_aet=AET, timeout_s=0.3)
        assert impatient.outcome is Outcome.UNANSWERED


@pytest.mark.slow
def test_what_an_aborted_association_lost_is_sent_again(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.dcm" for n in range(6)]
    for path in paths:
        write_instance(path)

    def abort_once(event: evt.Event) -> int:
        if len(server.stored) == 3:
            event.assoc.abort()
        return 0x0000

    with Answering(abort_once) as server:
        results = peers.store(server.peer, paths, calling_aet=AET, timeout_s=5)
    assert all(r.is_stored for r in results)
    assert len(server.stored) == 7
    assert len(set(server.stored)) == 6


@pytest.mark.slow
def test_an_instance_that_always_breaks_the_association_does_not_hold_up_the_others(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.dcm" for n in range(4)]
    poison = [write_instance(path) for path in paths][1].SOPInstanceUID

    def abort_on_one(event: evt.Event) -> int:
        if event.request.AffectedSOPInstanceUID == poison:
            event.assoc.abort()
        return 0x0000

    with Answering(abort_on_one) as server:
        results = peers.store(server.peer, paths, calling_aet=AET, timeout_s=5)
    assert [r.is_stored for r in results] == [True, False, True, True]


def test_a_warning_is_stored_and_a_failure_is_not(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.dcm" for n in range(2)]
    for path in paths:
        write_instance(path)
    statuses = iter([0xB000, 0xA700])
    with Answering(lambda event: next(statuses)) as server:
        warned, failed = peers.store(server.peer, paths, calling_aet=AET)
    assert (warned.outcome, warned.status) == (Outcome.STORED, 0xB000)
    assert (failed.outcome, failed.status) == (Outcome.REFUSED, 0xA700)


@pytest.mark.slow
def test_more_kinds_than_one_association_has_contexts_for(tmp_path: Path) -> None:
    classes = [cx.abstract_syntax for cx in AllStoragePresentationContexts][:80]
    paths = [tmp_path / f"{n}.dcm" for n in range(len(classes))]
    for path, sop_class in zip(paths, classes, strict=True):
        write_instance(path, sop_class_uid=sop_class)
    with Answering(lambda event: 0x0000) as server:
        results = peers.store(server.peer, paths, calling_aet=AET)
    assert [r.path for r in results] == paths
    assert all(r.is_stored for r in results)
    assert server.associations == 2


def test_three_hundred_sends_lose_no_response(tmp_path: Path, storescp: StoreScp) -> None:
    paths = [tmp_path / f"{n}.dcm" for n in range(300)]
    for path in paths:
        write_instance(path)
    results = peers.store(storescp.peer, paths, calling_aet=AET)
    assert all(r.is_stored for r in results)
    assert len(storescp.files()) == 300


def test_a_sender_does_not_wait_for_acknowledgements_of_tcp() -> None:
    """Nagle's algorithm would cost 40 ms for each instance."""
    contexts = [build_context(MRImageStorage)]
    with (
        Answering(lambda event: 0x0000) as server,
        association(server.peer, contexts, calling_aet=AET, timeout_s=30) as assoc,
    ):
        options = [sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for sock in assoc.ae.sockets]
    assert options
    assert all(options)


MEMORY = """
import resource, sys
from pathlib import Path
from dicomnode.dimse import peers
from dicomnode.config import Peer
peer = Peer(name="p", ae_title="STORESCP", host="127.0.0.1", port=int(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(result,) = peers.store(peer, [Path(sys.argv[2])], calling_aet="NODE")
assert result.is_stored, result
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_large_file_is_sent_with_bounded_memory(tmp_path: Path, storescp: StoreScp) -> None:
    path = tmp_path / "large.dcm"
    write_instance(path, sop_class_uid=RawDataStorage, frames_bytes=100_000_000)
    command = [sys.executable, "-c", MEMORY, str(storescp.peer.port), str(path)]
    grown_mb = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown_mb < 40
    assert _digest_data_set(storescp.files()[0]) == _digest_data_set(path)


@pytest.mark.slow
def test_a_peer_without_a_limit_on_fragments_still_gets_them(tmp_path: Path) -> None:
    path = tmp_path / "large.dcm"
    write_instance(path, frames_bytes=3_000_000)
    sizes: list[int] = []

    def keep(event: evt.Event) -> int:
        sizes.append(len(event.encoded_dataset(include_meta=False)))
        return 0x0000

    with Answering(keep, max_pdu=0) as server:
        (result,) = peers.store(server.peer, [path], calling_aet=AET)
    assert result.is_stored
    assert sizes[0] > 3_000_000


@pytest.mark.slow
def test_a_peer_that_stops_reading_does_not_hold_the_sender(tmp_path: Path) -> None:
    path = tmp_path / "large.dcm"
    write_instance(path, frames_bytes=50_000_000)
    with StoreScp(tmp_path / "hung", "--sleep-during", "60") as scp:
        (result,) = peers.store(scp.peer, [path], calling_aet=AET, timeout_s=1)
    assert result.outcome is Outcome.UNANSWERED


def test_find_by_name_and_with_other_letters(tmp_path: Path, orthanc: Orthanc) -> None:
    write_instance(tmp_path / "a.dcm", study_uid="1.2.3.1", PatientName="Müller^Jürgen", PatientID="A")
    write_instance(tmp_path / "b.dcm", study_uid="1.2.3.2", PatientName="Other", PatientID="B")
    assert all(r.is_stored for r in peers.store(orthanc.peer, peers.find_dicom_files([tmp_path]), calling_aet=AET))
    studies = queries.find(orthanc.peer, {"PatientID": ""}, calling_aet=AET)
    assert {s.StudyInstanceUID for s in studies} == {"1.2.3.1", "1.2.3.2"}
    (study,) = queries.find(orthanc.peer, {"PatientName": "Müller*"}, calling_aet=AET)
    assert (study.StudyInstanceUID, study.PatientName) == ("1.2.3.1", "Müller^Jürgen")
    (series,) = queries.find(orthanc.peer, {"StudyInstanceUID": "1.2.3.2"}, level="SERIES", calling_aet=AET)
    assert series.Modality == "MR"
    assert queries.find(orthanc.peer, {"PatientID": "C"}, calling_aet=AET) == []


def test_find_at_a_peer_that_has_no_query_is_refused(storescp: StoreScp) -> None:
    with pytest.raises(PeerRefused, match="accepts none"):
        queries.find(storescp.peer, {"PatientID": "A"}, calling_aet=AET)


def test_fetch_brings_every_instance_as_it_is_stored(tmp_path: Path, orthanc: Orthanc) -> None:
    source = tmp_path / "source"
    for n, syntax in enumerate([ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRLittleEndian]):
        write_instance(source / f"{n}.dcm", study_uid="1.2.3.1", series_uid=f"1.2.3.1.{n}", transfer_syntax_uid=syntax)
    ds = write_instance(source / "c.dcm", study_uid="1.2.3.1", series_uid="1.2.3.1.2")
    ds.compress(JPEGLSLossless)
    ds.save_as(source / "c.dcm", enforce_file_format=True)
    write_instance(source / "other.dcm", study_uid="1.2.3.9")
    assert all(r.is_stored for r in peers.store(orthanc.peer, peers.find_dicom_files([source]), calling_aet=AET))
    received: list[tuple[str, str]] = []

    def keep(event: evt.Event) -> int:
        received.append((event.request.AffectedSOPInstanceUID, event.context.transfer_syntax))
        return 0x0000

    fetched = queries.fetch(orthanc.peer, "1.2.3.1", on_store=keep, calling_aet=AET)
    assert (fetched.completed, fetched.failed) == (4, 0)
    assert sorted(syntax for _, syntax in received) == sorted(
        [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGLSLossless]
    )
    assert ds.SOPInstanceUID in {uid for uid, _ in received}


def test_move_sends_the_study_to_a_third(tmp_path: Path, orthanc: Orthanc, storescp: StoreScp) -> None:
    write_instance(tmp_path / "a.dcm", study_uid="1.2.3.1")
    assert peers.store(orthanc.peer, [tmp_path / "a.dcm"], calling_aet=AET)[0].is_stored
    orthanc.register_peer(storescp.peer)
    moved = queries.move(orthanc.peer, "1.2.3.1", destination_aet=storescp.peer.ae_title, calling_aet=AET)
    assert moved.completed == 1
    assert len(storescp.files()) == 1
    with pytest.raises(PeerRefused, match="C-MOVE"):
        queries.move(orthanc.peer, "1.2.3.1", destination_aet="UNKNOWN", calling_aet=AET)


@pytest.mark.slow
def test_a_peer_over_tls_must_have_a_certificate_that_is_trusted(tmp_path: Path) -> None:
    program = require_program("/usr/bin/openssl", "openssl")
    certificate, key = tmp_path / "node.crt", tmp_path / "node.key"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate), *names]
    subprocess.run([program, *request], check=True, capture_output=True)
    tls = TlsConfig(certificate_file=certificate, key_file=key, ca_file=certificate)
    config = Config(node=NodeConfig(host="127.0.0.1", port=0, data_dir=tmp_path / "data", tls=tls))
    databases.prepare(config)
    server = scp.start(config)
    try:
        peer = Peer(name="node", ae_title="DICOMNODE", host="localhost", port=server.port, tls=True)
        write_instance(tmp_path / "a.dcm")
        (result,) = peers.store(peer, [tmp_path / "a.dcm"], calling_aet=AET, tls=tls)
        assert result.is_stored, result.text
        with pytest.raises(PeerUnreachable, match="certificate"):
            peers.echo(peer, calling_aet=AET, timeout_s=5)
        with pytest.raises(PeerUnreachable):
            peers.echo(peer.model_copy(update={"tls": False}), calling_aet=AET, timeout_s=1)
    finally:
        server.stop()


def _digest_data_set(path: Path) -> str:
    """Return a digest of the data set, without the file meta information, which the receiver rewrites (PS3.10 7.1)."""
    content = path.read_bytes()
    start = 132 + 12 + int.from_bytes(content[140:144], "little")
    return hashlib.sha256(content[start:]).hexdigest()
