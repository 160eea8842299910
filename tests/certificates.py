"""Certificates of a test authority, and a receiver that presents one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from prometheus_client import generate_latest
from sqlalchemy import select

from db import engine as engines
from db.models import Instance
from dicomnode.config import Config
from dicomnode.config.node import NodeConfig
from dicomnode.config.spool import SpoolConfig
from dicomnode.config.tls import TlsConfig
from dicomnode.ingest import scp
from dicomnode.monitoring.meters import Meters
from tests import databases

__all__ = ["Authority", "IssuedCertificate", "RunningReceiver", "run_receiver"]

YEAR = timedelta(days=365)


@dataclass(frozen=True)
class IssuedCertificate:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path

    def tls(self, ca: Path | None, **more: Any) -> TlsConfig:
        """Return a [node.tls] section with this certificate."""
        return TlsConfig(certificate_file=self.certificate, key_file=self.key, ca_file=ca, **more)

    @property
    def serial(self) -> int:
        return x509.load_pem_x509_certificate(self.certificate.read_bytes()).serial_number


class Authority:
    """Certificate authority; ``file`` is its own certificate."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._key = folder, _new_key()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = _start_certificate(self._name, datetime.now(UTC) - YEAR, datetime.now(UTC) + YEAR)
        own = builder.public_key(self._key.public_key()).issuer_name(self._name)
        own = own.add_extension(constraints, critical=True).add_extension(usage, critical=True)
        self.file = folder / f"{name}.crt"
        self.file.write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(
        self, name: str, *, hosts: tuple[str, ...] = ("localhost",), days: float = 90, passphrase: bytes = b""
    ) -> IssuedCertificate:
        """Issue a certificate for loopback, for servers and clients; with ``days`` below zero it has expired."""
        key, until = _new_key(), datetime.now(UTC) + timedelta(days=days)
        names = [x509.DNSName(host) for host in hosts]
        addresses = [x509.IPAddress(ip_address("127.0.0.1"))] if hosts == ("localhost",) else []
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _start_certificate(subject, until - YEAR, until).public_key(key.public_key()).issuer_name(self._name)
        purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = builder.add_extension(x509.SubjectAlternativeName([*names, *addresses]), critical=False)
        builder = builder.add_extension(purposes, critical=False)
        issued = IssuedCertificate(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        signed = builder.sign(self._key, hashes.SHA256())
        issued.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        issued.key.write_bytes(_pem(key, passphrase))
        issued.key.chmod(0o600)
        return issued


@dataclass
class RunningReceiver:
    """A receiver in the test's own process, on SQLite."""

    config: Config
    meters: Meters
    server: scp.Server = field(init=False)

    @property
    def port(self) -> int:
        """Port for TLS, or the plain port without TLS."""
        return self.server.tls_port or self.server.port

    def instances(self) -> list[Instance]:
        engine = engines.connect(self.config.database_url)
        try:
            with engines.readers(engine)() as session:
                return list(session.scalars(select(Instance)))
        finally:
            engine.dispose()

    def files(self) -> list[Path]:
        return sorted(path for path in self.config.spool_dir.rglob("*") if path.is_file())

    def count_refused_associations(self, reason: str) -> float:
        """Return the number of associations refused for the reason, from /metrics."""
        return self._read_counter("dicomnode_associations_refused_total", reason)

    def count_refused_instances(self, reason: str) -> float:
        """Return the number of instances refused for the reason, from /metrics."""
        return self._read_counter("dicomnode_ingest_refused_total", reason)

    def _read_counter(self, name: str, reason: str) -> float:
        metrics = generate_latest(self.meters.registry).decode()
        return float(metrics.split(f'{name}{{reason="{reason}"}} ')[1].split("\n")[0])


@contextmanager
def run_receiver(folder: Path, tls: TlsConfig | None = None, **sections: Any) -> Iterator[RunningReceiver]:
    """Run a receiver with sections of node.toml by name."""
    node_section = {"host": "127.0.0.1", "port": 0, "data_dir": folder / "data", "tls": tls} | sections.pop("node", {})
    sections.setdefault("spool", SpoolConfig(min_free_gb=0, refuse_at_percent=100))
    config = Config(node=NodeConfig(**node_section), path=folder / "node.toml", **sections).with_absolute_paths(folder)
    databases.prepare(config)
    receiver = RunningReceiver(config, Meters())
    receiver.server = scp.start(config, meters=receiver.meters)
    try:
        yield receiver
    finally:
        receiver.server.stop()


def _new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _start_certificate(subject: x509.Name, begins: datetime, ends: datetime) -> x509.CertificateBuilder:
    serial = int.from_bytes(os.urandom(8), "big") | 1
    builder = x509.CertificateBuilder().subject_name(subject).serial_number(serial)
    return builder.not_valid_before(begins).not_valid_after(ends)


def _pem(key: rsa.RSAPrivateKey, passphrase: bytes) -> bytes:
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
