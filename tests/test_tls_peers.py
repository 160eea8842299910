"""DICOM over TLS as caller: DCMTK's storescp with valid and invalid certificates, and the messages to the operator."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import ValidationError
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from dicomnode import checks
from dicomnode import config as configuration
from dicomnode.config import Config, Peer
from dicomnode.config.node import NodeConfig
from dicomnode.config.tls import TlsConfig
from dicomnode.dimse import peers
from dicomnode.errors import ConfigError, PeerUnreachable
from dicomnode.monitoring.gauges import Gauges
from dicomnode.monitoring.sweep_health import SweepHealth
from tests.certificates import Authority, IssuedCertificate, run_receiver
from tests.peers.files import write_instance
from tests.peers.orthanc import Orthanc
from tests.peers.storescp import StoreScp
from tests.sending import read_encoded

AET = "DICOMNODE"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def ours(authority: Authority) -> IssuedCertificate:
    return authority.issue("node")


def archive(folder: Path, issued: IssuedCertificate, trusted: Path, *options: str) -> StoreScp:
    """Start an archive with TLS that requires a client certificate unless ``options`` say otherwise."""
    return StoreScp(folder, "+tls", str(issued.key), str(issued.certificate), "+cf", str(trusted), *options)


def over_tls(scp: StoreScp, **more: object) -> Peer:
    return scp.peer.model_copy(update={"tls": True} | more)


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["+px", "+py", "+pz"])
def test_an_archive_with_the_right_certificate_gets_the_object(
    tmp_path: Path, authority: Authority, ours: IssuedCertificate, profile: str
) -> None:
    write_instance(tmp_path / "a.dcm", frames_bytes=3_000_000)
    with archive(tmp_path / "scp", authority.issue("archive"), authority.file, profile) as scp:
        (result,) = peers.store(over_tls(scp), [tmp_path / "a.dcm"], calling_aet=AET, tls=ours.tls(authority.file))
        assert result.is_stored, result.text
        (received,) = scp.files()
        assert read_encoded(received).data_set == read_encoded(tmp_path / "a.dcm").data_set


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("of another authority", "its certificate is not accepted: unable to get local issuer certificate"),
        ("expired", "its certificate is not accepted: certificate has expired"),
        ("of another name", "its certificate is not accepted: IP address mismatch"),
        ("none", "it ended the connection in the handshake"),
    ],
)
def test_an_archive_with_a_wrong_certificate_gets_nothing_and_the_operator_the_reason(
    tmp_path: Path, authority: Authority, ours: IssuedCertificate, fault: str, message: str
) -> None:
    issued = {
        "of another authority": Authority(tmp_path / "other", "other").issue("archive"),
        "expired": authority.issue("expired", days=-1),
        "of another name": authority.issue("elsewhere", hosts=("archive.example",)),
    }.get(fault)
    write_instance(tmp_path / "a.dcm")
    folder = tmp_path / "scp"
    with archive(folder, issued, authority.file, "-ic") if issued else StoreScp(folder) as scp:
        (result,) = peers.store(over_tls(scp), [tmp_path / "a.dcm"], calling_aet=AET, tls=ours.tls(authority.file))
        assert not result.is_stored
        assert message in result.text
        assert scp.files() == []


def test_an_archive_may_have_another_name_than_its_host(
    tmp_path: Path, authority: Authority, ours: IssuedCertificate
) -> None:
    issued = authority.issue("elsewhere", hosts=("archive.example",))
    with archive(tmp_path / "scp", issued, authority.file) as scp:
        peer = over_tls(scp, tls_server_name="archive.example")
        assert peers.echo(peer, calling_aet=AET, tls=ours.tls(authority.file)) > 0


def test_a_peer_may_have_a_certificate_and_an_authority_of_its_own(
    tmp_path: Path, authority: Authority, ours: IssuedCertificate
) -> None:
    other = Authority(tmp_path / "other", "other")
    identity = other.issue("for-them")
    with archive(tmp_path / "scp", other.issue("archive"), other.file) as scp:
        own = {"tls_certificate_file": identity.certificate, "tls_key_file": identity.key, "tls_ca_file": other.file}
        assert peers.echo(over_tls(scp, **own), calling_aet=AET, tls=ours.tls(authority.file)) > 0
        assert peers.echo(over_tls(scp, **own), calling_aet=AET) > 0
        with pytest.raises(PeerUnreachable, match="its certificate is not accepted"):
            peers.echo(over_tls(scp), calling_aet=AET, tls=ours.tls(authority.file))


def test_orthanc_and_the_node_send_to_each_other_with_certificates(
    tmp_path: Path, authority: Authority, ours: IssuedCertificate
) -> None:
    issued, ds = authority.issue("orthanc"), write_instance(tmp_path / "a.dcm")
    settings = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(issued.certificate),
        "DicomTlsPrivateKey": str(issued.key),
        "DicomTlsTrustedCertificates": str(authority.file),
        "DicomTlsRemoteCertificateRequired": True,
    }
    tls = ours.tls(authority.file, require_client_certificate=True)
    with Orthanc(tmp_path / "orthanc", settings=settings) as orthanc, run_receiver(tmp_path, tls) as receiver:
        peer = orthanc.peer.model_copy(update={"tls": True})
        (result,) = peers.store(peer, [tmp_path / "a.dcm"], calling_aet=AET, tls=tls)
        assert result.is_stored, result.text
        node = Peer(name="node", ae_title=AET, port=receiver.port, tls=True)
        orthanc.send(node, orthanc.instances())
        assert [row.sop_instance_uid for row in receiver.instances()] == [ds.SOPInstanceUID]
        with pytest.raises(PeerUnreachable):
            peers.echo(orthanc.peer, calling_aet=AET, timeout_s=2)


def test_an_archive_that_wants_a_certificate_says_so(tmp_path: Path, authority: Authority) -> None:
    with archive(tmp_path / "scp", authority.issue("archive"), authority.file) as scp:
        peer = over_tls(scp, tls_ca_file=authority.file)
        with pytest.raises(PeerUnreachable, match=r"no TLS: it|did not answer"):
            peers.echo(peer, calling_aet=AET, timeout_s=10)


def test_a_file_that_is_gone_makes_a_peer_unreachable_until_it_is_back(tmp_path: Path, ours: IssuedCertificate) -> None:
    peer = Peer(name="pacs", ae_title="PACS", port=1, tls=True, tls_ca_file=tmp_path / "gone.crt")
    with pytest.raises(PeerUnreachable, match=r"gone\.crt cannot be read \(No such file"):
        peers.echo(peer, calling_aet=AET, tls=ours.tls(None))


def test_files_of_a_peer_are_found_beside_the_configuration(tmp_path: Path) -> None:
    text = '[[peers]]\nname = "p"\nae_title = "P"\nport = 104\ntls = true\ntls_ca_file = "ca.crt"\n'
    (tmp_path / "node.toml").write_text(text)
    assert configuration.load(tmp_path / "node.toml").find_peer("p").tls_ca_file == tmp_path / "ca.crt"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tls_ca_file": "ca.crt"}, "needs tls = true"),
        ({"tls": True, "tls_key_file": "a.key"}, "belong together"),
    ],
)
def test_settings_of_a_peer_that_would_do_nothing_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Peer.model_validate({"name": "p", "ae_title": "P", "port": 104} | fields)


def test_certificates_are_asked_for_only_where_somebody_is_trusted(ours: IssuedCertificate) -> None:
    with pytest.raises(ValidationError, match="who signs the certificates of our senders"):
        ours.tls(None, require_client_certificate=True)


@pytest.mark.parametrize(
    ("days", "mode", "result", "message"),
    [
        (90, 0o600, "ok", r"until 20\d\d-\d\d-\d\d \(89 days\)"),
        (20, 0o600, "warning", r"\(19 days\)"),
        (-1, 0o600, "failed", "has expired on"),
        (90, 0o644, "warning", "can be read by others: 'chmod 600' it"),
    ],
)
def test_check_tells_when_a_certificate_ends_and_who_can_read_its_key(
    tmp_path: Path, authority: Authority, days: int, mode: int, result: str, message: str
) -> None:
    issued = authority.issue("checked", days=days)
    issued.key.chmod(mode)
    found = check_certificate(tmp_path, issued.tls(None))
    assert found.result == result
    assert re.search(message, found.detail)


def test_check_names_the_file_that_cannot_be_used(
    tmp_path: Path, authority: Authority, ours: IssuedCertificate
) -> None:
    mixed = IssuedCertificate(ours.certificate, authority.issue("x").key)
    found = check_certificate(tmp_path, mixed.tls(None))
    assert found.result == "failed"
    assert "x.key is not the key of" in found.detail


def test_metrics_tell_how_long_certificates_last(
    tmp_path: Path, authority: Authority, sessions: sessionmaker[Session], engine: Engine
) -> None:
    issued = authority.issue("measured", days=10)
    config = Config(node=NodeConfig(tls=issued.tls(None), data_dir=tmp_path), path=tmp_path / "node.toml")
    registry = CollectorRegistry()
    Gauges(config, sessions, lambda: datetime.now(UTC), SweepHealth()).register(registry)
    metrics = generate_latest(registry).decode()
    left_s = float(metrics.split('dicomnode_certificate_seconds_left{of="node.tls"} ')[1].split("\n")[0])
    assert abs(left_s - timedelta(days=10).total_seconds()) < 60
    assert engine


def test_the_url_of_the_database_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('[database]\nurl_file = "database.url"\n')
    (tmp_path / "database.url").write_text("postgresql://u:secret@db.example/n\n")
    config = configuration.load(tmp_path / "node.toml")
    assert config.database_url == "postgresql://u:secret@db.example/n"
    assert "secret" not in repr(config)
    (tmp_path / "database.url").write_text("\n")
    with pytest.raises(ConfigError, match=r"database\.url is empty"):
        assert config.database_url


def check_certificate(folder: Path, tls: TlsConfig) -> checks.Check:
    config = Config(node=NodeConfig(tls=tls, data_dir=folder), path=folder / "node.toml")
    return next(each for each in checks.run(config) if each.what == "certificate of node.tls")
