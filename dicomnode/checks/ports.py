"""Checks of the node's own addresses: free, taken by this node, or by another program."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dicomnode.checks.check import Check
from dicomnode.config import Config, Peer
from dicomnode.config.node import NodeConfig
from dicomnode.errors import NodeError, PeerRefused

if TYPE_CHECKING:
    from dicomnode.config.tls import TlsConfig

__all__ = ["check_dicom_port", "check_web"]

_NOT_LISTED = "Calling AE title not recognised"
_FULL = ("Temporary congestion", "Local limit exceeded")
_HANDSHAKE_S = 5.0


def check_dicom_port(node: NodeConfig) -> Check | str:
    """Check that the node can listen at its port, or does so already."""
    where = f"{node.ae_title} at {node.host}:{node.port}"
    if (reason := _reason_not_free(node.host, node.port)) is None:
        return f"{where}, free"
    here = "127.0.0.1" if node.host in ("0.0.0.0", "::", "") else node.host
    if node.tls is not None and node.tls.port is None:
        answer = _ask_over_tls(here, node.port, node.tls)
    else:
        answer = _ask(here, node)
    if answer is None:
        return Check("DICOM port", "failed", f"{where}: {reason}, by another program; set another [node] port")
    return f"{where}, where a node {answer}"


def check_web(config: Config) -> Check | str:
    """Check that the pages can be served at their address, or are already."""
    from dicomnode.web import health, node_token

    token = node_token.read_token(config, lambda: datetime.now(UTC))
    asks = "asks for its token" if token else "loopback only, no token"
    asks = "asks for an account" if config.web.accounts else asks
    where = f"{'https' if config.web.certificate_file else 'http'}://{config.web.host}:{config.web.port}"
    if (reason := _reason_not_free(config.web.host, config.web.port)) is None:
        return f"{where}, {asks}"
    if (parts := health.ask(config.web)) is None:
        return Check("web", "warning", f"{where}: {reason}, and no node answers there; set another [web] port")
    if failed := [name for name, state in parts.items() if state != "ok"]:
        return Check("web", "warning", f"{where}, where a node answers that it is not ready: {', '.join(failed)}")
    return f"{where}, where a node answers, {asks}"


def _ask(host: str, node: NodeConfig) -> str | None:
    """Return in words what answers a C-ECHO under our title, or None where that is no node."""
    from dicomnode.dimse import peers

    itself = Peer(name="node", ae_title=node.ae_title, host=host, port=node.port)
    try:
        peers.echo(itself, calling_aet=node.ae_title, timeout_s=peers.ECHO_TIMEOUT_S)
    except PeerRefused as error:
        if _NOT_LISTED in str(error):
            return f"answers that {node.ae_title} is not among its senders"
        if any(each in str(error) for each in _FULL):
            return "answers that it takes nothing now: its disk or its number of associations is full"
        return None
    except NodeError:
        return None
    return "answers C-ECHO"


def _ask_over_tls(host: str, port: int, tls: TlsConfig) -> str | None:
    """Return in words that our own certificate answers, or None. It need not name the loopback address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        context.load_cert_chain(tls.certificate_file, tls.key_file, password=lambda: "")
        own = ssl.PEM_cert_to_DER_cert(_read_first_certificate(tls))
        with (
            socket.create_connection((host, port), timeout=_HANDSHAKE_S) as plain,
            context.wrap_socket(plain) as secure,
        ):
            return "answers over TLS with our certificate" if secure.getpeercert(binary_form=True) == own else None
    except (OSError, ValueError):  # ssl.SSLError is an OSError; what is wrong with the files is a check of its own
        return None


def _read_first_certificate(tls: TlsConfig) -> str:
    text = tls.certificate_file.read_text(encoding="ascii", errors="replace")
    begin, end = text.index(ssl.PEM_HEADER), text.index(ssl.PEM_FOOTER)
    return text[begin : end + len(ssl.PEM_FOOTER)]


def _reason_not_free(host: str, port: int) -> str | None:
    """Return the reason why no program can listen at the address, or None."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except OSError as error:
        return error.strerror or type(error).__name__
    return None
