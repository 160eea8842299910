"""The SCP: who may associate, what is negotiated, and the listener that node.serve starts and stops."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.presentation import AllStoragePresentationContexts, PresentationContext, build_context
from pynetdicom.sop_class import Verification
from pynetdicom.transport import AssociationServer, RequestHandler

from db import engine
from db.studies import Sender
from dicomnode import tls
from dicomnode.config import Config
from dicomnode.errors import ConfigError, OutOfSpace
from dicomnode.ingest import pdata
from dicomnode.ingest.ingest import Announced, Ledger, Reception
from dicomnode.ingest.limits import Complaints, Doors, Measured, Rates, plain_address
from dicomnode.monitoring.meters import Meters
from dicomnode.query import query_retrieve
from dicomnode.storage import spool
from dicomnode.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

__all__ = ["TRANSFER_SYNTAXES", "Server", "is_storage", "start"]

_config.LOG_HANDLER_LEVEL = "none"  # pynetdicom's own log handlers print command sets and AE titles

_log = logging.getLogger(__name__)

# PS3.8 9.3.4: result, source, reason
_CALLING_AE_TITLE_NOT_RECOGNISED = (1, 1, 3)
_TEMPORARY_CONGESTION = (2, 3, 1)
_LOCAL_LIMIT_EXCEEDED = (2, 3, 2)
_SOP_CLASS_NOT_SUPPORTED = 0x0122  # PS3.7 C.5.6

_ALL_STORAGE = frozenset(str(context.abstract_syntax) for context in AllStoragePresentationContexts)

# Encodings of a data set; the same branch also names encodings of mail, XML and video streams.
TRANSFER_SYNTAXES = frozenset(
    uid
    for uid, (_, kind, *_) in UID_dictionary.items()
    if kind == "Transfer Syntax" and not uid.startswith(("1.2.840.10008.1.2.6.", "1.2.840.10008.1.2.7."))
)


class Server:
    """A running SCP. ``port``: where it listens first; ``tls_port``: where it speaks TLS, if anywhere."""

    def __init__(self, listeners: Sequence[_Listener], closing: threading.Event, dispose: Callable[[], None]) -> None:
        self._listeners, self._closing, self._dispose = listeners, closing, dispose
        self.port: int = listeners[0].server_address[1]
        self.tls_port: int | None = next((each.server_address[1] for each in listeners if each.served), None)
        self._threads = [
            threading.Thread(target=each.serve_forever, args=(0.1,), name="dicomnode-scp", daemon=True)
            for each in listeners
        ]
        for thread in self._threads:
            thread.start()

    @property
    def active_associations(self) -> int:
        """How many are open now."""
        return len(self._running())

    def stop(self, drain_s: float = 0.0) -> None:
        """Accept no more; let associations end by themselves for ``drain_s``, then abort what is left of them."""
        if self._closing.is_set():
            return
        running = self._running()
        for listener in self._listeners:
            listener.shutdown()
        for thread in self._threads:
            thread.join()
        deadline = time.monotonic() + drain_s
        running += [assoc for assoc in self._running() if assoc not in running]
        for assoc in running:
            assoc.join(max(0.0, deadline - time.monotonic()))
        self._closing.set()
        for assoc in running:
            assoc.dul.wire.wake()  # a thread that waits for the peer sees that the node is closing
            assoc.join()
        self._dispose()

    def _running(self) -> list[Association]:
        return [assoc for listener in self._listeners for assoc in listener.active_associations]


class _Handler(RequestHandler):  # type: ignore[misc]
    """Makes an association whose data transfer is ours."""

    def handle(self) -> None:
        """In the listener's thread: nothing here may wait for the caller."""
        address = plain_address(self.client_address[0])
        visit = self.server.reception.doors.enter(address)
        if visit is None:
            self.server.reception.turn_away(address, "too_many_connections", "has too many connections")
            self.request.close()
            return
        try:
            assoc = self._create_association()
            assoc.visit, run = visit, assoc.run
            assoc.run = partial(_attend, assoc, run, self.server)
            assoc.start()
        except BaseException:
            visit.end()
            raise

    def _create_association(self) -> Association:
        # PS3.8 says nothing of Nagle's algorithm; with it, every response waits for the peer's delayed acknowledgement
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assoc = super()._create_association()
        pdata.take_over(assoc, self.server.reception.open_sink, self.server.reception.closing)
        query_retrieve.take_requests(assoc, self.server.reception.service)
        assoc.dul.socket._shutdown_socket = partial(tls.close, self.request)
        return assoc


class _Listener(AssociationServer):  # type: ignore[misc]
    """pynetdicom's server: each association has a thread of its own, and the handshake of TLS happens there."""

    request_queue_size = 128
    reception: _Reception
    served: tls.Served | None = None

    def get_request(self) -> tuple[socket.socket, Any]:
        context = self.served.context() if self.served is not None else None
        client, address = self.socket.accept()
        if context is not None:
            client = context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return client, address

    def shutdown_request(self, request: socket.socket) -> None:
        tls.close(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.error("a connection from %s could not be served", plain_address(client_address[0]))


def _attend(assoc: Association, run: Callable[[], None], listener: _Listener) -> None:
    """An association's life, in its own thread, from the handshake of TLS to the end."""
    reception = listener.reception
    address = plain_address(assoc.requestor.address)
    try:
        if failure := _handshake(assoc.dul.socket.socket, _patience_s(reception.config)):
            reception.turn_away(address, "tls", f"no TLS: {failure}")
            assoc.dul.socket.close()
            return
        run()
        if assoc.requestor.primitive is None:
            reception.turn_away(address, "silent", assoc.dul.silence)
    except Exception as error:  # its own words may be the caller's
        _log.error("an association with %s broke off with %s", address, type(error).__name__)
        assoc.dul.stop_dul()
    finally:
        assoc.visit.end()


def _handshake(sock: socket.socket, timeout_s: float) -> str:
    """Why there is no TLS; empty when there is, or none is wanted."""
    if not isinstance(sock, ssl.SSLSocket):
        return ""
    try:
        sock.settimeout(timeout_s)
        sock.do_handshake()
    except (OSError, ValueError) as error:  # ValueError: the node is closing, and so is the socket
        return tls.why(error) if isinstance(error, OSError) else "the node is closing"
    return ""


class _Refusing:
    """A sink for a data set that is not wanted."""

    def __init__(self, status: int, comment: str) -> None:
        self._answer = (status, comment)

    def write(self, piece: memoryview) -> None:
        del piece

    def finish(self) -> tuple[int, str]:
        return self._answer

    def discard(self) -> None:
        pass


def start(
    config: Config, *, now: Callable[[], datetime] = lambda: datetime.now(UTC), meters: Meters | None = None
) -> Server:
    """Listen where the configuration says; the port is open when this returns."""
    root = config.spool_dir
    spool.prepare(root)
    database = engine.connect(config.database_url)
    ledger = Ledger(root, engine.sessions(database), now, meters)
    closing = threading.Event()
    service = query_retrieve.Service(config, engine.readers(database))
    try:
        return Server(_Reception(config, ledger, service, closing).listen(), closing, database.dispose)
    except BaseException:
        database.dispose()
        raise


def is_storage(sop_class_uid: str) -> bool:
    """Every storage class; private ones and those that are newer than our dictionaries are taken as such."""
    uid = UID(sop_class_uid)
    if uid in _ALL_STORAGE or uid not in UID_dictionary:
        return True
    name, kind, *_ = UID_dictionary[uid]
    return kind == "SOP Class" and "Storage" in name and uid.startswith("1.2.840.10008.5.1.4.")


class _Reception:
    """What all listeners share: who gets in, what becomes of data sets, and what is counted of it."""

    def __init__(
        self, config: Config, ledger: Ledger, service: query_retrieve.Service, closing: threading.Event
    ) -> None:
        self.config, self.service, self.closing = config, service, closing
        self.doors = Doors(config)
        self._ledger, self._rates, self._complaints = ledger, Rates(config), Complaints(_log)
        self._senders: WeakKeyDictionary[Association, Sender] = WeakKeyDictionary()

    def listen(self) -> list[_Listener]:
        """At one port, or at two: [node] port, and that of [node.tls]."""
        node, secured = self.config.node, self.config.node.tls
        served = tls.Served(tls.node_identity(secured)) if secured else None
        if secured is None or secured.port is None:
            return [self._listen_at(node.port, served)]
        plain = self._listen_at(node.port, None)
        try:
            return [plain, self._listen_at(secured.port, served)]
        except BaseException:
            plain.server_close()
            raise

    def turn_away(self, address: str, reason: str, what: str) -> None:
        """Somebody does not get in: counted, and told in the log."""
        if not self.closing.is_set():
            self._ledger.meters.count_refused_connection(reason)
            self._complaints.say(address, what)

    def admit(self, event: evt.Event) -> None:
        """On an A-ASSOCIATE-RQ: refuse it, or support the storage contexts that it proposes."""
        assoc, meters = event.assoc, self._ledger.meters
        sender = _sender(assoc)
        if assoc.dul.refusal is not None:
            meters.count_refused_association(None)
            self._complaints.say(sender.address, f"an association was refused: {assoc.dul.refusal.what}")
            return _reject(assoc, assoc.dul.refusal.why)
        if not self.config.allows(sender.ae_title, sender.address):
            meters.count_refused_association(None)
            self._complaints.say(sender.address, "an association was refused: not among the senders")
            return _reject(assoc, _CALLING_AE_TITLE_NOT_RECOGNISED)
        if not assoc.visit.associate(sender):
            self.turn_away(sender.address, "too_many_associations", "an association was refused: there are too many")
            return _reject(assoc, _LOCAL_LIMIT_EXCEEDED)
        try:
            spool.check_space(self.config.spool_dir, self.config.spool)
        except OutOfSpace as exc:
            meters.count_refused_association(exc)
            self._complaints.say(sender.address, f"an association was refused: {exc}", logging.ERROR)
            return _reject(assoc, _TEMPORARY_CONGESTION)
        proposed = assoc.requestor.primitive.presentation_context_definition_list
        assoc.acceptor.supported_contexts = [*assoc.acceptor.supported_contexts, *_supported(proposed)]
        return None

    def open_sink(self, assoc: Association, request: pdata.StoreRequest) -> pdata.Sink:
        """For the data set of a C-STORE."""
        if assoc not in self._senders:
            self._senders[assoc] = _sender(assoc)
        sender, context = self._senders[assoc], assoc._accepted_cx[request.context_id]
        if request.sop_class_uid != context.abstract_syntax:
            return _Refusing(_SOP_CLASS_NOT_SUPPORTED, "the SOP class is not that of the presentation context")
        announced = Announced(request.sop_class_uid, request.sop_instance_uid, str(context.transfer_syntax[0]))
        open_reception = partial(Reception, self._ledger, self.config.spool, announced, sender)
        allowance = self._rates.of(sender)
        if allowance.is_boundless:
            return open_reception()
        return Measured(open_reception, allowance, self._ledger.meters, self.closing.wait)

    def _listen_at(self, port: int, served: tls.Served | None) -> _Listener:
        """Return a listener at the port. Raises ConfigError where the address cannot be had."""
        ae, host = _application_entity(self.config), self.config.node.host
        try:
            listener: _Listener = ae.make_server(
                (host, port),
                contexts=[build_context(Verification), *query_retrieve.supported_contexts()],
                evt_handlers=[(evt.EVT_REQUESTED, self.admit), (evt.EVT_SOP_EXTENDED, _extended)],
                server_class=_Listener,
                request_handler=_Handler,
            )
        except OSError as error:
            section = "[node.tls]" if served and port != self.config.node.port else "[node]"
            why = error.strerror or type(error).__name__
            raise ConfigError(f"{section} host = {host!r}, port = {port} (DICOM): {why}; set another") from None
        listener.reception, listener.served = self, served
        listener._gc = [0, 299]  # pynetdicom collects garbage every so many polls; a full collection takes 0.1 s
        ae._servers.append(listener)
        return listener


def _application_entity(config: Config) -> AE:
    node = config.node
    ae = AE(node.ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_associations = 1 << 30  # counted at our own doors, where those that have not asked yet do not count
    ae.maximum_pdu_size = node.max_pdu
    ae.dimse_timeout = ae.network_timeout = node.network_timeout_s
    ae.acse_timeout = _patience_s(config)
    return ae


def _patience_s(config: Config) -> float:
    """For each of the two things that a caller has to do before anything else."""
    return min(config.limits.request_timeout_s, config.node.network_timeout_s)


def _sender(assoc: Association) -> Sender:
    return Sender(assoc.requestor.primitive.calling_ae_title.strip(), plain_address(assoc.requestor.address))


def _supported(proposed: list[PresentationContext]) -> list[PresentationContext]:
    """Contexts for the storage classes among the proposed ones, with the transfer syntaxes that we can read."""
    syntaxes: dict[str, dict[str, None]] = {}
    for context in proposed:
        if is_storage(context.abstract_syntax) and context.abstract_syntax != Verification:
            known = {str(uid): None for uid in context.transfer_syntax if uid in TRANSFER_SYNTAXES}
            syntaxes.setdefault(str(context.abstract_syntax), {}).update(known)
    contexts = [build_context(sop_class, list(known)) for sop_class, known in syntaxes.items() if known]
    for context in contexts:  # who proposes the role of the SCP gets instances by C-GET (PS3.7 D.3.3.4)
        context.scu_role = context.scp_role = True
    return contexts


def _extended(event: evt.Event) -> dict[UID, bytes]:
    return query_retrieve.extended(event.app_info)


def _reject(assoc: Association, why: tuple[int, int, int]) -> None:
    assoc.acse.send_reject(*why)
    assoc.kill()
