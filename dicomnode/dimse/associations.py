"""Associations with peers, with additions that pynetdicom 3.0.4 lacks for a sender.

Three additions are made when the transport opens, before pynetdicom's own threads use them:

- TCP_NODELAY: without it each C-STORE waits for the peer's delayed acknowledgement, about 40 ms.
- ``ReactorCheckpoint``: pynetdicom's own event loses responses (see there).
- ``_SendQueue``: pynetdicom reads a file to send as fast as the disk gives it and queues all of it in memory.
"""

from __future__ import annotations

import queue
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from pynetdicom import evt
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.pdu_primitives import P_DATA, MaximumLengthNotification

from dicomnode.dimse.pynetdicom_adapter import SocketRecordingAE, replace_checkpoint, replace_socket_shutdown
from dicomnode.errors import ConfigError, NotOffered, PeerRefused, PeerUnreachable
from dicomnode.tls import ClientContext, client_context, close

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

    from dicomnode.config import Peer
    from dicomnode.config.tls import TlsConfig

__all__ = ["association"]

_CONNECT_S = 10.0
_RECEIVE_PDU = 128 * 1024
_SEND_PDU = 256 * 1024
_QUEUED_PDUS = 32


class _SendQueue(queue.Queue[Any]):
    """Queue of primitives to send, limited for data, so that a large file is never in memory as a whole."""

    def __init__(self, assoc: Association) -> None:
        super().__init__()
        self._assoc = assoc

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if isinstance(item, P_DATA):
            with self.not_full:
                while self._qsize() >= _QUEUED_PDUS:
                    if not self._assoc.dul.is_alive():
                        raise ConnectionAbortedError("the connection was lost while sending")
                    self.not_full.wait(0.2)
        super().put(item, block, timeout)


class _ClientAE(SocketRecordingAE):
    """Application entity that closes its sockets: pynetdicom does not where their shutdown fails, as when nothing was
    connected."""

    def __init__(self, ae_title: str, timeout_s: float) -> None:
        super().__init__(ae_title)
        self.acse_timeout = self.dimse_timeout = self.network_timeout = timeout_s
        self.connection_timeout = min(timeout_s, _CONNECT_S)
        self.connected = False
        self.rejection: A_ASSOCIATE_RJ | None = None

    def close(self, assoc: Association | None) -> None:
        """Close all sockets, after the association's thread has had a second to end."""
        if assoc is not None and assoc.dul.is_alive():
            assoc.dul.join(1.0)
        for sock in self.sockets:
            sock.close()


def _prepare(event: evt.Event, timeout_s: float) -> None:
    """Prepare an association on EVT_CONN_OPEN, which runs in the thread that reads the send queue, still empty."""
    assoc = event.assoc
    sock = assoc.dul.socket.socket
    assoc.ae.connected = True
    assoc.ae.sockets.append(sock)  # with TLS, another socket than the one created
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # pynetdicom clears the timeout after connecting: a peer that stops reading would hold the sender for ever.
    sock.settimeout(timeout_s)
    replace_socket_shutdown(assoc, partial(close, sock))
    replace_checkpoint(assoc)
    assoc.dul.to_provider_queue = _SendQueue(assoc)


def _note_rejection(event: evt.Event) -> None:
    """Keep a rejection on EVT_PDU_RECV: pynetdicom takes one that comes at once for a connection never made."""
    if isinstance(event.pdu, A_ASSOCIATE_RJ):
        event.assoc.ae.rejection = event.pdu


def _limit_fragments(event: evt.Event) -> None:
    """Limit the PDU length where the peer sets no limit (0, PS3.8 D.1.1): a file would be read as one fragment."""
    for item in event.assoc.acceptor.user_information:
        if isinstance(item, MaximumLengthNotification) and not 0 < item.maximum_length_received <= _SEND_PDU:
            item.maximum_length_received = _SEND_PDU


@contextmanager
def association(
    peer: Peer,
    contexts: Sequence[PresentationContext],
    *,
    calling_aet: str,
    timeout_s: float,
    tls: TlsConfig | None = None,
    roles: Sequence[Any] = (),
    handlers: Sequence[Any] = (),
) -> Iterator[Association]:
    """Open an association, released at the end; over TLS where the peer asks for it.

    Raises PeerUnreachable when there is no connection or no answer, PeerRefused when the peer rejects the association
    or every presentation context.
    """
    context = _make_context(peer, tls)
    ae = _ClientAE(calling_aet, timeout_s)
    own = [
        (evt.EVT_CONN_OPEN, _prepare, [timeout_s]),
        (evt.EVT_PDU_RECV, _note_rejection),
        (evt.EVT_ACCEPTED, _limit_fragments),
    ]
    assoc = None
    try:
        assoc = ae.associate(
            peer.host,
            peer.port,
            contexts=list(contexts),
            ae_title=peer.ae_title,
            max_pdu=_RECEIVE_PDU,
            ext_neg=list(roles),
            evt_handlers=[*own, *handlers],
            tls_args=(context, peer.tls_server_name or peer.host) if context else None,
        )
        if not assoc.is_established:
            raise _explain_failure(peer, assoc, context)
        yield assoc
    except socket.gaierror as exc:
        raise PeerUnreachable(f"peer {peer.name}: the name {peer.host} does not resolve") from exc
    finally:
        if assoc is not None and assoc.is_established:
            assoc.release()
        ae.close(assoc)


def _make_context(peer: Peer, tls: TlsConfig | None) -> ClientContext | None:
    """Return the TLS context, or None for a peer without TLS.

    Raises PeerUnreachable for unusable files: they may be corrected, and then the same work succeeds.
    """
    try:
        return client_context(peer, tls) if peer.tls else None
    except ConfigError as exc:
        raise PeerUnreachable(f"peer {peer.name}: no TLS: {exc}") from None


def _explain_failure(peer: Peer, assoc: Association, context: ClientContext | None) -> PeerRefused | PeerUnreachable:
    where = f"peer {peer.name} ({peer.ae_title}) at {peer.host}:{peer.port}"
    if assoc.ae.rejection is not None:
        reason = assoc.ae.rejection.reason_str
        return PeerRefused(f"{where} rejected the association: {reason}; do both sides know the AE titles?")
    if assoc.rejected_contexts:
        return NotOffered(f"{where} accepts none of the SOP classes and transfer syntaxes that were offered")
    if context is not None and context.failure:
        return PeerUnreachable(f"{where}: no TLS: {context.failure}")
    if not assoc.ae.connected:
        return PeerUnreachable(f"{where} cannot be reached: does it run, are host and port right?")
    return PeerUnreachable(f"{where} did not answer the association request")
