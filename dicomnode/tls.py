"""TLS by PS3.15 B.12 (BCP 195: RFC 8996, RFC 9325): contexts made from files, and made anew when the files change.

The module serves DICOM in both roles and the web. Messages name the file and its fault, never its content.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dicomnode.config.secrets import is_exposed
from dicomnode.errors import ConfigError

if TYPE_CHECKING:
    from dicomnode.config import Config, Peer
    from dicomnode.config.tls import TlsConfig, TlsVersion
    from dicomnode.config.web import WebConfig

__all__ = [
    "SUITES",
    "ClientContext",
    "Identity",
    "ReloadingTlsContext",
    "client_context",
    "close",
    "explain_failure",
    "identities",
    "node_identity",
    "web_identity",
]

_log = logging.getLogger(__name__)

# RFC 9325 4.2: with TLS 1.2, ephemeral keys on elliptic curves and AES-GCM. TLS 1.3 has no other suites.
SUITES = (
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
)
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_REASONS = {
    "HTTP_REQUEST": "it does not speak TLS",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "UNEXPECTED_EOF_WHILE_READING": "it ended the connection in the handshake",
    "UNSUPPORTED_PROTOCOL": "its version of TLS is too old",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it takes no version of TLS that we take",
    "NO_SHARED_CIPHER": "it offers no cipher suite of the profile",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it takes none of our versions and cipher suites",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate of ours",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust who signed our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that our certificate has expired",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not accept our certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not accept our certificate",
}


@dataclass(frozen=True)
class Identity:
    """A certificate of the node with its key and the authorities it trusts.

    ``where``: the section of node.toml that names them; ``prefix``: the beginning of their keys there.
    """

    where: str
    certificate_file: Path
    key_file: Path
    ca_file: Path | None = None
    minimum_version: TlsVersion = "1.2"
    requires_client_certificate: bool = False
    prefix: str = ""

    @property
    def is_key_exposed(self) -> bool:
        """True where users outside the key file's owner and group can read it, or its group can change it."""
        return is_exposed(self.key_file)

    def read_expiry(self) -> datetime:
        """Return the earliest expiry of the certificates in the file. Raises ConfigError where it holds none."""
        from cryptography import x509

        content = self._read("certificate_file", self.certificate_file)
        try:
            return min(each.not_valid_after_utc for each in x509.load_pem_x509_certificates(content))
        except ValueError:
            raise self._error("certificate_file", self.certificate_file, "holds no certificate in PEM form") from None

    def server_context(self) -> ssl.SSLContext:
        """Return a context for the server's side. Raises ConfigError for files that cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _restrict(context, self.minimum_version)
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        self.load_certificate(context)
        if self.requires_client_certificate:
            self.load_authorities(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def load_certificate(self, context: ssl.SSLContext) -> None:
        """Load the certificate and its key into a context. Raises ConfigError."""
        self.read_expiry()
        self._read("key_file", self.key_file)
        try:
            context.load_cert_chain(self.certificate_file, self.key_file, password=self._refuse_passphrase)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise self._error("key_file", self.key_file, f"is not the key of {self.certificate_file}") from None
            if error.reason and error.reason.endswith("_TOO_SMALL"):
                raise self._error("certificate_file", self.certificate_file, "has a key that is too short") from None
            raise self._error("key_file", self.key_file, "holds no private key in PEM form") from None

    def load_authorities(self, context: ssl.SSLContext) -> None:
        """Load the trusted authorities into a context: those of the file, else of the system. Raises ConfigError."""
        if self.ca_file is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
            return
        _load_authorities(context, f"{self.where}.{self.prefix}ca_file", self.ca_file)

    def _read(self, key: str, path: Path) -> bytes:
        return _read(f"{self.where}.{self.prefix}{key}", path)

    def _error(self, key: str, path: Path, fault: str) -> ConfigError:
        return ConfigError(f"{self.where}.{self.prefix}{key}: {path} {fault}")

    def _refuse_passphrase(self) -> str:
        raise self._error("key_file", self.key_file, "is encrypted: nobody is there to type a passphrase")


class ReloadingTlsContext:
    """A server's TLS context, made anew when its files change."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self._lock = threading.Lock()
        self._fingerprints = self._read_fingerprints()
        self._context = identity.server_context()

    def current(self) -> ssl.SSLContext:
        """Return the context for a new connection, reloaded where a file has changed.

        Unusable files leave the former context in force.
        """
        with self._lock:
            fingerprints = self._read_fingerprints()
            if fingerprints != self._fingerprints:
                self._fingerprints = fingerprints
                try:
                    self._context = self.identity.server_context()
                    _log.info("%s: the certificate was read anew", self.identity.where)
                except (ConfigError, OSError) as error:
                    _log.error("%s; the former certificate stays in force", error)
            return self._context

    def _read_fingerprints(self) -> tuple[tuple[int, int, int] | None, ...]:
        files = self.identity.certificate_file, self.identity.key_file, self.identity.ca_file
        return tuple(_read_fingerprint(file) for file in files if file is not None)


class ClientContext(ssl.SSLContext):
    """TLS context of one connection to a peer; ``failure`` explains a failed handshake: pynetdicom does not."""

    failure: str = ""


class _ClientSocket(ssl.SSLSocket):
    def connect(self, addr: Any) -> None:
        try:
            super().connect(addr)
        except OSError:
            self.close()  # pynetdicom closes no socket without a connection
            raise

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError as error:
            cast(ClientContext, self.context).failure = explain_failure(error)
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        # with TLS 1.3 a server refuses our certificate after our side of the handshake is done
        try:
            return super().recv(buflen, flags)
        except ssl.SSLError as error:
            cast(ClientContext, self.context).failure = explain_failure(error)
            raise


def client_context(peer: Peer, ours: TlsConfig | None) -> ClientContext:
    """Return a context for a connection to the peer. Raises ConfigError.

    The peer's certificate is checked against the authorities of the peer's section, else of [node.tls], else of the
    system; our certificate is that of the peer's section, else of [node.tls].
    """
    context = ClientContext(ssl.PROTOCOL_TLS_CLIENT)
    _restrict(context, ours.minimum_version if ours else "1.2")
    context.sslsocket_class = _ClientSocket
    identity = _peer_identity(peer) or (node_identity(ours) if ours else None)
    if identity is not None:
        identity.load_certificate(context)
    authorities = peer.tls_ca_file or (ours.ca_file if ours else None)
    if authorities is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _load_authorities(context, f"ca_file for peer {peer.name}", authorities)
    return context


def identities(config: Config) -> Iterator[Identity]:
    """Yield every certificate of the node."""
    if config.node.tls is not None:
        yield node_identity(config.node.tls)
    if (web := web_identity(config.web)) is not None:
        yield web
    for peer in config.peers:
        if (own := _peer_identity(peer)) is not None:
            yield own


def close(sock: socket.socket) -> None:
    """End a connection; over TLS with a close_notify (RFC 8446 6.1), without waiting for the peer's."""
    if sock.fileno() < 0:
        return
    if isinstance(sock, ssl.SSLSocket):
        sock.settimeout(0)
        with suppress(OSError, ValueError):
            sock.unwrap()
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    sock.close()


def explain_failure(error: OSError) -> str:
    """Return the reason why there is no TLS with the other side, as a phrase for a message."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ("UNEXPECTED_EOF_WHILE_READING" if isinstance(error, ssl.SSLEOFError) else "TLS")
        return _REASONS.get(reason, reason.lower().replace("_", " "))
    return "no handshake in time" if isinstance(error, TimeoutError) else "it ended the connection in the handshake"


def _restrict(context: ssl.SSLContext, minimum: TlsVersion) -> None:
    context.minimum_version = _VERSIONS[minimum]
    context.set_ciphers(":".join(SUITES))
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def web_identity(web: WebConfig) -> Identity | None:
    """Return the certificate that browsers are shown, or None where [web] names none."""
    if web.certificate_file is None or web.key_file is None:
        return None
    return Identity("web", web.certificate_file, web.key_file, minimum_version=web.minimum_version)


def node_identity(tls: TlsConfig) -> Identity:
    """Return the certificate of [node.tls]."""
    return Identity(
        "node.tls",
        tls.certificate_file,
        tls.key_file,
        tls.ca_file,
        tls.minimum_version,
        tls.require_client_certificate,
    )


def _peer_identity(peer: Peer) -> Identity | None:
    if peer.tls_certificate_file is None or peer.tls_key_file is None:
        return None
    return Identity(f"peer {peer.name}", peer.tls_certificate_file, peer.tls_key_file, prefix="tls_")


def _load_authorities(context: ssl.SSLContext, key: str, path: Path) -> None:
    _read(key, path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise ConfigError(f"{key}: {path} holds no certificate in PEM form") from None


def _read(key: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read ({error.strerror})") from None


def _read_fingerprint(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
