"""TLS as PS3.15 B.12 wants it (BCP 195: RFC 8996, RFC 9325): contexts made of files, and made anew when those change.

For DICOM in both roles and for the web. Messages name the file and what is wrong with it, never what it holds.
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

from dicomnode.errors import ConfigError

if TYPE_CHECKING:
    from dicomnode.config import Config, Peer
    from dicomnode.config.tls import TlsConfig, TlsVersion
    from dicomnode.config.web import WebConfig

__all__ = [
    "SUITES",
    "ClientContext",
    "Identity",
    "Served",
    "client_context",
    "close",
    "identities",
    "node_identity",
    "web_identity",
    "why",
]

_log = logging.getLogger(__name__)

# RFC 9325 4.2: with TLS 1.2, ephemeral keys on elliptic curves and AES-GCM. TLS 1.3 has no others than such.
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
    """A certificate of ours and its key, with who is trusted. ``where``: the section of node.toml that names them."""

    where: str
    certificate_file: Path
    key_file: Path
    ca_file: Path | None = None
    minimum_version: TlsVersion = "1.2"
    asks_client: bool = False
    prefix: str = ""

    @property
    def key_is_open(self) -> bool:
        """Whether others than its owner and its group can read the key, or its group can change it."""
        return bool(self.key_file.stat().st_mode & 0o027)

    def ends_at(self) -> datetime:
        """When the first certificate of the file ends. Raises ConfigError when it holds none."""
        from cryptography import x509

        content = self._read("certificate_file", self.certificate_file)
        try:
            return min(each.not_valid_after_utc for each in x509.load_pem_x509_certificates(content))
        except ValueError:
            raise self._wrong("certificate_file", self.certificate_file, "holds no certificate in PEM form") from None

    def server_context(self) -> ssl.SSLContext:
        """For those who call us. Raises ConfigError for files that cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _restrict(context, self.minimum_version)
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        self.load_into(context)
        if self.asks_client:
            self.trust_into(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """The certificate and its key. Raises ConfigError."""
        self.ends_at()
        self._read("key_file", self.key_file)
        try:
            context.load_cert_chain(self.certificate_file, self.key_file, password=self._refuse_passphrase)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise self._wrong("key_file", self.key_file, f"is not the key of {self.certificate_file}") from None
            if error.reason and error.reason.endswith("_TOO_SMALL"):
                raise self._wrong("certificate_file", self.certificate_file, "has a key that is too short") from None
            raise self._wrong("key_file", self.key_file, "holds no private key in PEM form") from None

    def trust_into(self, context: ssl.SSLContext) -> None:
        """Those whom we trust; without a file, those whom this machine trusts. Raises ConfigError."""
        if self.ca_file is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
            return
        _trust(context, f"{self.where}.{self.prefix}ca_file", self.ca_file)

    def _read(self, key: str, path: Path) -> bytes:
        return _read(f"{self.where}.{self.prefix}{key}", path)

    def _wrong(self, key: str, path: Path, what: str) -> ConfigError:
        return ConfigError(f"{self.where}.{self.prefix}{key}: {path} {what}")

    def _refuse_passphrase(self) -> str:
        raise self._wrong("key_file", self.key_file, "is encrypted: nobody is there to type a passphrase")


class Served:
    """A server's context for connections that begin now."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self._lock = threading.Lock()
        self._made_of = self._stamps()
        self._context = identity.server_context()

    def context(self) -> ssl.SSLContext:
        """Made anew when a file has changed; files that cannot be used leave the former one in force."""
        with self._lock:
            stamps = self._stamps()
            if stamps != self._made_of:
                self._made_of = stamps
                try:
                    self._context = self.identity.server_context()
                    _log.info("%s: the certificate was read anew", self.identity.where)
                except (ConfigError, OSError) as error:
                    _log.error("%s; the former certificate stays in force", error)
            return self._context

    def _stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        files = self.identity.certificate_file, self.identity.key_file, self.identity.ca_file
        return tuple(_stamp(file) for file in files if file is not None)


class ClientContext(ssl.SSLContext):
    """For one connection to a peer; ``failure`` says why it did not come about, which pynetdicom keeps to itself."""

    failure: str = ""


class _ClientSocket(ssl.SSLSocket):
    def connect(self, addr: Any) -> None:
        try:
            super().connect(addr)
        except OSError:
            self.close()  # pynetdicom does not where there is nothing to shut down
            raise

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError as error:
            cast(ClientContext, self.context).failure = why(error)
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        # with TLS 1.3 a server that does not like our certificate says so after our side of the handshake is done
        try:
            return super().recv(buflen, flags)
        except ssl.SSLError as error:
            cast(ClientContext, self.context).failure = why(error)
            raise


def client_context(peer: Peer, ours: TlsConfig | None) -> ClientContext:
    """The peer's certificate is checked against the authorities that are stated for it, else against those of
    [node.tls], else against the system's; we show the certificate that is stated. Raises ConfigError."""
    context = ClientContext(ssl.PROTOCOL_TLS_CLIENT)
    _restrict(context, ours.minimum_version if ours else "1.2")
    context.sslsocket_class = _ClientSocket
    identity = _of_peer(peer) or (node_identity(ours) if ours else None)
    if identity is not None:
        identity.load_into(context)
    authorities = peer.tls_ca_file or (ours.ca_file if ours else None)
    if authorities is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _trust(context, f"ca_file for peer {peer.name}", authorities)
    return context


def identities(config: Config) -> Iterator[Identity]:
    """Every certificate of ours."""
    if config.node.tls is not None:
        yield node_identity(config.node.tls)
    if (web := web_identity(config.web)) is not None:
        yield web
    for peer in config.peers:
        if (own := _of_peer(peer)) is not None:
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


def why(error: OSError) -> str:
    """Why there is no TLS with the other side, in words."""
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
    """What [node.tls] says, with paths that hold from anywhere."""
    return Identity(
        "node.tls",
        tls.certificate_file,
        tls.key_file,
        tls.ca_file,
        tls.minimum_version,
        tls.require_client_certificate,
    )


def _of_peer(peer: Peer) -> Identity | None:
    if peer.tls_certificate_file is None or peer.tls_key_file is None:
        return None
    return Identity(f"peer {peer.name}", peer.tls_certificate_file, peer.tls_key_file, prefix="tls_")


def _trust(context: ssl.SSLContext, key: str, path: Path) -> None:
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


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
