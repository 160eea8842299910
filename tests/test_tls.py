"""DICOM over TLS as receiver: DCMTK's clients with valid and invalid certificates, and the bytes on the network."""

from __future__ import annotations

import hashlib
import socket
import ssl
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from pydicom import dcmread
from pynetdicom import evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification

from dicomnode import tls
from dicomnode.config import Peer
from dicomnode.dimse import queries
from dicomnode.dimse.associations import association
from dicomnode.errors import ConfigError, PeerUnreachable
from tests.certificates import Authority, IssuedCertificate, RunningReceiver, run_receiver
from tests.peers import wait_for
from tests.peers.files import write_instance
from tests.peers.process import require_program
from tests.sending import read_encoded, run_dcmtk


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority that neither side trusts."""
    return Authority(tmp_path_factory.mktemp("other"), "other")


@pytest.fixture(scope="module")
def ours(authority: Authority) -> IssuedCertificate:
    return authority.issue("node")


@pytest.fixture(scope="module")
def theirs(authority: Authority) -> IssuedCertificate:
    return authority.issue("scanner")


@pytest.fixture
def mutual(tmp_path: Path, authority: Authority, ours: IssuedCertificate) -> Iterator[RunningReceiver]:
    """Start a receiver that requires client certificates."""
    with run_receiver(tmp_path, ours.tls(authority.file, require_client_certificate=True)) as receiver:
        yield receiver


@pytest.fixture
def image(tmp_path: Path) -> Path:
    write_instance(tmp_path / "image.dcm")
    return tmp_path / "image.dcm"


def store(
    receiver: RunningReceiver, image: Path, who: IssuedCertificate | None, trusted: Path, *more: str
) -> subprocess.CompletedProcess[str]:
    """Run DCMTK's storescu over TLS."""
    shows = ["+tls", str(who.key), str(who.certificate)] if who else ["+tla"]
    return run_dcmtk("storescu", receiver.config, receiver.port, *shows, "+cf", str(trusted), *more, "-xe", str(image))


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["+px", "+py", "+pz"])
def test_a_sender_with_the_right_certificate_is_served(
    mutual: RunningReceiver, image: Path, theirs: IssuedCertificate, authority: Authority, profile: str
) -> None:
    done = store(mutual, image, theirs, authority.file, profile)
    assert done.returncode == 0, done.stderr
    (row,) = mutual.instances()
    assert read_encoded(mutual.config.spool_dir / row.relative_path).data_set == read_encoded(image).data_set
    assert mutual.count_refused_associations("tls") == 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["of another authority", "expired", "missing"])
def test_a_sender_without_the_right_certificate_is_refused(
    mutual: RunningReceiver,
    image: Path,
    authority: Authority,
    other: Authority,
    fault: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    who = {"of another authority": other.issue("stranger"), "expired": authority.issue("old", days=-1)}.get(fault)
    assert store(mutual, image, who, authority.file).returncode != 0
    wait_for(lambda: mutual.count_refused_associations("tls") == 1, "it is counted")
    assert mutual.instances() == []
    assert mutual.files() == []
    messages = {
        "of another authority": "its certificate is not accepted: unable to get local issuer certificate",
        "expired": "its certificate is not accepted: certificate has expired",
        "missing": "it shows no certificate",
    }
    wait_for(lambda: f"127.0.0.1: no TLS: {messages[fault]}" in caplog.text, "the log says why")


def test_a_sender_sees_whether_the_node_is_the_right_one(
    tmp_path: Path, image: Path, ours: IssuedCertificate, other: Authority, authority: Authority
) -> None:
    with run_receiver(tmp_path, ours.tls(None)) as receiver:
        assert store(receiver, image, None, other.file).returncode != 0
        assert receiver.instances() == []
        assert store(receiver, image, None, authority.file).returncode == 0


def test_a_sender_without_tls_is_refused_at_the_tls_port(mutual: RunningReceiver, image: Path) -> None:
    assert run_dcmtk("storescu", mutual.config, mutual.port, "-xe", str(image)).returncode != 0
    wait_for(lambda: mutual.count_refused_associations("tls") == 1, "it is counted")
    assert mutual.instances() == []


def test_plain_and_tls_have_a_port_each(
    tmp_path: Path, image: Path, ours: IssuedCertificate, authority: Authority
) -> None:
    with run_receiver(tmp_path, ours.tls(None, port=0)) as receiver:
        assert receiver.server.tls_port not in (None, receiver.server.port)
        assert run_dcmtk("storescu", receiver.config, receiver.server.port, "-xe", str(image)).returncode == 0
        assert store(receiver, image, None, authority.file).returncode == 0
        assert run_dcmtk("echoscu", receiver.config, receiver.port, "").returncode != 0
        assert len(receiver.instances()) == 1


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_an_old_version_of_tls_is_refused(mutual: RunningReceiver, version: str) -> None:
    program = require_program("/usr/bin/openssl", "openssl")
    command = [program, "s_client", "-connect", f"127.0.0.1:{mutual.port}", version, "-cipher", "ALL:@SECLEVEL=0"]
    done = subprocess.run(command, capture_output=True, text=True, input="", timeout=60, check=False)
    assert done.returncode != 0
    assert "protocol version" in done.stderr  # the node's alert
    wait_for(lambda: mutual.count_refused_associations("tls") == 1, "it is counted")


def test_tls_1_2_is_refused_where_1_3_is_the_least(
    tmp_path: Path, ours: IssuedCertificate, authority: Authority
) -> None:
    with run_receiver(tmp_path, ours.tls(authority.file, minimum_version="1.3")) as receiver:
        assert handshake(receiver, authority)[0] == "TLSv1.3"
        context = client(authority)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
            handshake(receiver, authority, context)


@pytest.mark.slow
def test_no_cipher_suite_but_those_of_the_profile_is_taken(
    tmp_path: Path, ours: IssuedCertificate, authority: Authority
) -> None:
    everything = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    everything.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    offered = [each["name"] for each in everything.get_ciphers() if each["protocol"] != "TLSv1.3"]
    assert len(offered) > 40
    assert {"AES128-SHA", "ECDHE-RSA-AES256-SHA384", "DHE-RSA-AES256-GCM-SHA384"} < set(offered)
    suites = set()
    with run_receiver(tmp_path, ours.tls(None), limits={"associations_per_address": 500}) as receiver:
        for name in offered:
            context = client(authority)
            context.set_ciphers(f"{name}:@SECLEVEL=0")
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            try:
                suites.add(handshake(receiver, authority, context)[1])
            except ssl.SSLError:
                continue
    assert suites == {name for name in tls.SUITES if "RSA" in name}  # the certificate has an RSA key


@pytest.mark.slow
def test_a_large_object_arrives_as_it_was_sent(
    tmp_path: Path, mutual: RunningReceiver, theirs: IssuedCertificate, authority: Authority
) -> None:
    path = tmp_path / "large.dcm"
    ds = write_instance(path)
    ds.PixelData = b"".join(hashlib.sha512(struct.pack("<I", n)).digest() for n in range(1_000_000))  # 64 MB
    ds.save_as(path, enforce_file_format=True)
    assert store(mutual, path, theirs, authority.file).returncode == 0
    (row,) = mutual.instances()
    assert dcmread(mutual.config.spool_dir / row.relative_path).PixelData == ds.PixelData


def test_what_was_stored_is_got_back_over_tls(
    mutual: RunningReceiver, image: Path, theirs: IssuedCertificate, authority: Authority
) -> None:
    assert store(mutual, image, theirs, authority.file).returncode == 0
    peer = Peer(name="node", ae_title="DICOMNODE", port=mutual.port, tls=True)
    ds, got = dcmread(image), []

    def keep(event: evt.Event) -> int:
        got.append(event.request.AffectedSOPInstanceUID)
        return 0x0000

    client_tls = theirs.tls(authority.file)
    fetched = queries.fetch(peer, ds.StudyInstanceUID, on_store=keep, calling_aet="SCANNER", tls=client_tls)
    assert fetched.completed == 1
    assert got == [ds.SOPInstanceUID]


def test_bytes_that_come_in_any_pieces_are_read(
    mutual: RunningReceiver, theirs: IssuedCertificate, authority: Authority
) -> None:
    """TLS records and PDUs begin at different bytes."""
    context = client(authority)
    context.load_cert_chain(theirs.certificate, theirs.key)
    request = _capture_associate_request()
    with connection(mutual, context) as sock:
        for at in range(0, len(request), 7):
            sock.sendall(request[at : at + 7])
        assert sock.recv(1) == b"\2"  # A-ASSOCIATE-AC


def test_the_end_of_a_connection_is_told_by_tls_itself(
    mutual: RunningReceiver, theirs: IssuedCertificate, authority: Authority
) -> None:
    """A close_notify distinguishes the end from one that a third party has made."""
    context = client(authority)
    context.load_cert_chain(theirs.certificate, theirs.key)
    with connection(mutual, context, suppress_ragged_eofs=False) as sock:
        sock.sendall(_capture_associate_request())
        _read_pdu(sock)
        sock.sendall(b"\5\0\0\0\0\4\0\0\0\0")  # A-RELEASE-RQ
        assert _read_pdu(sock)[0] == 6
        assert sock.recv(1) == b""


@pytest.mark.slow
def test_a_node_that_stops_says_so_within_tls(
    tmp_path: Path, ours: IssuedCertificate, theirs: IssuedCertificate, authority: Authority
) -> None:
    with run_receiver(tmp_path, ours.tls(None)) as receiver, connection(receiver, client(authority)) as sock:
        sock.sendall(_capture_associate_request())
        _read_pdu(sock)
        receiver.server.stop()
        assert _read_pdu(sock)[0] == 7  # A-ABORT


def test_a_certificate_that_changes_is_used_without_a_restart(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    first = authority.issue("changing")
    with run_receiver(tmp_path, first.tls(None)) as receiver:
        assert handshake(receiver, authority)[2] == first.serial
        before = first.serial
        first.certificate.write_text("not a certificate")
        assert handshake(receiver, authority)[2] == before
        assert "changing.crt holds no certificate in PEM form; the former certificate stays in force" in caplog.text
        second = authority.issue("changing")
        assert second.serial != before
        assert handshake(receiver, authority)[2] == second.serial


@pytest.mark.slow
def test_a_handshake_that_stalls_ends(tmp_path: Path, ours: IssuedCertificate) -> None:
    with (
        run_receiver(tmp_path, ours.tls(None), limits={"request_timeout_s": 0.5}) as receiver,
        socket.create_connection(("127.0.0.1", receiver.port), timeout=20) as sock,
    ):
        sock.sendall(b"\x16\x03\x01")  # a record begins
        assert sock.recv(100) == b""
        wait_for(lambda: receiver.count_refused_associations("tls") == 1, "it is counted")


@pytest.mark.slow
def test_a_request_that_drips_in_ends(tmp_path: Path) -> None:
    """Each byte comes in time, all bytes together do not."""
    with (
        run_receiver(tmp_path, limits={"request_timeout_s": 1.0}) as receiver,
        socket.create_connection(("127.0.0.1", receiver.port), timeout=0.1) as sock,
    ):
        dripped = 0
        for byte in _capture_associate_request()[:200]:
            try:
                sock.sendall(bytes([byte]))
                if sock.recv(100) == b"":
                    break
            except TimeoutError:
                dripped += 1
            except OSError:
                break
        assert 1 < dripped < 100
        wait_for(lambda: receiver.count_refused_associations("silent") == 1, "it is counted")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["no certificate", "no key", "another key", "passphrase", "absent", "no authority"])
def test_files_that_cannot_be_used_are_named(
    tmp_path: Path, authority: Authority, ours: IssuedCertificate, fault: str
) -> None:
    text = tmp_path / "text"
    text.write_text("secret words")
    locked = Authority(tmp_path / "locked").issue("locked", passphrase=b"open sesame")
    faults = {
        "no certificate": (
            IssuedCertificate(text, ours.key),
            "node.tls.certificate_file: ",
            "text holds no certificate",
        ),
        "no key": (IssuedCertificate(ours.certificate, text), "node.tls.key_file: ", "text holds no private key"),
        "another key": (
            IssuedCertificate(ours.certificate, authority.issue("x").key),
            "key_file: ",
            "x.key is not the key of",
        ),
        "passphrase": (locked, "node.tls.key_file: ", "locked.key is encrypted"),
        "absent": (
            IssuedCertificate(tmp_path / "gone", ours.key),
            "certificate_file: ",
            "gone cannot be read (No such file",
        ),
        "no authority": (ours, "node.tls.ca_file: ", "text holds no certificate"),
    }
    issued, key, what = faults[fault]
    asks = fault == "no authority"
    with (
        pytest.raises(ConfigError) as refusal,
        run_receiver(tmp_path, issued.tls(text if asks else None, require_client_certificate=asks)),
    ):
        pass
    assert key in str(refusal.value)
    assert what in str(refusal.value)
    assert "secret" not in str(refusal.value)


def client(authority: Authority) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def connection(
    receiver: RunningReceiver, context: ssl.SSLContext, *, suppress_ragged_eofs: bool = True
) -> ssl.SSLSocket:
    sock = socket.create_connection(("127.0.0.1", receiver.port), timeout=30)
    try:
        return context.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=suppress_ragged_eofs)
    except BaseException:
        sock.close()
        raise


def handshake(
    receiver: RunningReceiver, authority: Authority, context: ssl.SSLContext | None = None
) -> tuple[str | None, str, int]:
    """Return version, cipher suite, and the serial number of the node's certificate."""
    with connection(receiver, context or client(authority)) as sock:
        certificate, cipher = sock.getpeercert(), sock.cipher()
        assert certificate
        assert cipher
        return sock.version(), cipher[0], int(str(certificate["serialNumber"]), 16)


def _capture_associate_request() -> bytes:
    """Return the bytes that the node sends for a C-ECHO, read from the network."""
    caught = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        peer = Peer(name="p", ae_title="DICOMNODE", port=listener.getsockname()[1])

        def catch() -> None:
            sock, _ = listener.accept()
            with sock:
                caught.extend(sock.recv(65536))

        thread = Thread(target=catch)
        thread.start()
        with (
            pytest.raises(PeerUnreachable),
            association(peer, [build_context(Verification)], calling_aet="SCANNER", timeout_s=5),
        ):
            pass
        thread.join()
    return bytes(caught)


def _read_pdu(sock: ssl.SSLSocket) -> bytes:
    found = b""
    while len(found) < 6 or len(found) < 6 + struct.unpack(">L", found[2:6])[0]:
        piece = sock.recv(65536)
        assert piece, "the connection ended"
        found += piece
    return found
