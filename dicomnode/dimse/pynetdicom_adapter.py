"""Adapter for the private names of pynetdicom 3.0 that the node relies on; no other module uses one.

tests/test_adapters.py checks that each exists and does what is relied on here.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pynetdicom import AE, _config
from pynetdicom.dul import DULServiceProvider
from pynetdicom.transport import AssociationServer, RequestHandler

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

__all__ = [
    "ReactorCheckpoint",
    "SocketRecordingAE",
    "ThreadlessUpperLayer",
    "accepted_context",
    "create_association",
    "hold_reactor",
    "register_server",
    "replace_checkpoint",
    "replace_socket_shutdown",
    "wrap_request_service",
]

# Identifiers hold patient data, which never reaches a log; pynetdicom's own log handlers print command sets and titles.
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False
_config.LOG_HANDLER_LEVEL = "none"
# Files are sent from disk in pieces, not decoded.
_config.STORE_SEND_CHUNKED_DATASET = True

_POLLS_PER_COLLECTION = 299


class SocketRecordingAE(AE):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """Application entity that keeps the sockets of its associations in ``sockets``."""

    def __init__(self, ae_title: str) -> None:
        super().__init__(ae_title)
        self.sockets: list[socket.socket] = []

    def _create_socket(self, *args: Any) -> Any:
        created = super()._create_socket(*args)
        self.sockets.append(created.socket)
        return created


class ReactorCheckpoint(threading.Event):
    """Event at which an association's reactor thread waits while a request is under way.

    pynetdicom 3.0.4 (association.py, ``_run_reactor`` and ``send_c_store``) clears the event, looks at ``_is_paused``
    and takes True for "the reactor stands still". If the event was set a moment before, the reactor may have left
    ``wait`` already with the flag still True; it then takes the response from the queue, and the requester waits for
    it until the DIMSE timeout. Here the flag is lowered before the event is looked at once more, so the requester never
    takes a reactor that goes on for one that stands still.
    """

    def __init__(self, assoc: Association) -> None:
        super().__init__()
        self._assoc = assoc
        self.set()

    def wait(self, timeout: float | None = None) -> bool:
        while True:
            passed = super().wait(timeout)
            self._assoc._is_paused = False
            if timeout is not None or self.is_set():
                return passed
            self._assoc._is_paused = True


class ThreadlessUpperLayer(DULServiceProvider):  # type: ignore[misc]
    """pynetdicom's upper layer for an association that has not started, without the thread that polls the socket."""

    def __init__(self, assoc: Association) -> None:
        threaded = assoc.dul
        super().__init__(assoc)
        self.socket, self.event_queue = threaded.socket, threaded.event_queue
        self._idle_timer.timeout = assoc.network_timeout
        self.artim_timer.timeout = assoc.acse_timeout

    def is_alive(self) -> bool:
        return not self._kill_thread

    def mark_ready(self) -> None:
        """Start the idle timer and let the association go on: it waits for its upper layer's thread to run."""
        self._idle_timer.start()
        self.assoc._dul_ready.set()

    def mark_stopped(self) -> None:
        """Let ``is_alive`` return False from now on."""
        self._kill_thread = True

    def restart_idle_timer(self) -> None:
        """Count the idle time from now."""
        self._idle_timer.restart()

    def queue_pdu(self, encoded: bytes) -> str:
        """Decode a PDU for the state machine; return its event of PS3.8 9.2.2.

        Raises whatever a malformed PDU makes pynetdicom's decoder raise.
        """
        pdu, event = self._decode_pdu(bytearray(encoded))
        self._recv_pdu.put(pdu)
        return str(event)

    def queue_primitive_event(self) -> bool:
        """Queue the event of the next primitive to send; return False where no primitive waits."""
        return bool(self._process_recv_primitive())


def accepted_context(assoc: Association, context_id: int) -> PresentationContext | None:
    """Return the accepted presentation context of that ID, or None."""
    return assoc._accepted_cx.get(context_id)


def create_association(handler: RequestHandler) -> Association:
    """Return the association of a connection that the handler serves; it has not started."""
    return handler._create_association()


@contextmanager
def hold_reactor(assoc: Association) -> Iterator[None]:
    """Let ``send_c_store`` work inside a request handler: it waits until the reactor stands still, which it does."""
    assoc._is_paused = True
    try:
        yield
    finally:
        assoc._is_paused = False


def register_server(ae: AE, server: AssociationServer) -> None:
    """Add a listener of ``make_server`` to the servers of the AE, as the listener's shutdown expects.

    pynetdicom collects garbage every so many polls of a listener; a full collection takes 0.1 s, so it is made rarer.
    """
    server._gc = [0, _POLLS_PER_COLLECTION]
    ae._servers.append(server)


def replace_checkpoint(assoc: Association) -> None:
    """Give an association that has not started a ``ReactorCheckpoint``."""
    assoc._reactor_checkpoint = ReactorCheckpoint(assoc)


def replace_socket_shutdown(assoc: Association, shutdown: Callable[[], None]) -> None:
    """Let the association end its connection by calling ``shutdown``."""
    assoc.dul.socket._shutdown_socket = shutdown


def wrap_request_service(assoc: Association, serve: Callable[[Any, int], bool]) -> None:
    """Offer each DIMSE request and its context ID to ``serve`` first; where it returns False, pynetdicom serves it."""
    serve_by_pynetdicom = assoc._serve_request

    def serve_request(message: Any, context_id: int) -> None:
        if not serve(message, context_id):
            serve_by_pynetdicom(message, context_id)

    assoc._serve_request = serve_request
