"""The storage SCP: admission of associations, negotiation, and the listeners that node.serve starts and stops."""

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

from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import AllStoragePresentationContexts, PresentationContext, build_context
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification
from pynetdicom.transport import AssociationServer, RequestHandler

from db import engine
from db.studies import Sender
from dicomnode import tls
from dicomnode.commitment import answering
from dicomnode.config import Config
from dicomnode.config.web_address import is_loopback
from dicomnode.datasets import pydicom_adapter
from dicomnode.dimse import pynetdicom_adapter
from dicomnode.dimse.pynetdicom_adapter import accepted_context
from dicomnode.errors import ConfigError, OutOfSpace
from dicomnode.ingest import pdata
from dicomnode.ingest.group_commit import Ledger
from dicomnode.ingest.ingest import InstanceSink, StoreAnnouncement
from dicomnode.ingest.limits import ConnectionLimiter, RateLimitedSink, SenderQuotas, ThrottledLog, normalise_address
from dicomnode.monitoring.meters import Meters
from dicomnode.query import query_retrieve
from dicomnode.query.query_retrieve import QueryService
from dicomnode.storage import spool
from dicomnode.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

__all__ = ["TRANSFER_SYNTAXES", "Server", "is_storage", "start"]

_log = logging.getLogger(__name__)

# PS3.8 9.3.4: result, source, reason
_CALLING_AE_TITLE_NOT_RECOGNISED = (1, 1, 3)
_TEMPORARY_CONGESTION = (2, 3, 1)
_LOCAL_LIMIT_EXCEEDED = (2, 3, 2)
_SOP_CLASS_NOT_SUPPORTED = 0x0122  # PS3.7 C.5.6

_ALL_STORAGE = frozenset(str(context.abstract_syntax) for context in AllStoragePresentationContexts)

# Encodings of a data set; the same branch of UIDs has encodings of mail, XML and video streams, too.
TRANSFER_SYNTAXES = frozenset(
    uid
    for uid in pydicom_adapter.uids_of_kind("Transfer Syntax")
    if not uid.startswith(("1.2.840.10008.1.2.6.", "1.2.840.10008.1.2.7."))
)


class Server:
    """A running SCP; ``port`` is that of its first listener, ``tls_port`` that of the listener with TLS, or None."""

    def __init__(self, listeners: Sequence[_Listener], closing: threading.Event, dispose: Callable[[], None]) -> None:
        self._listeners, self._closing, self._dispose = listeners, closing, dispose
        self.port: int = listeners[0].server_address[1]
        self.tls_port: int | None = next((each.server_address[1] for each in listeners if each.tls_context), None)
        self._threads = [
            threading.Thread(target=each.serve_forever, args=(0.1,), name="dicomnode-scp", daemon=True)
            for each in listeners
        ]
        for thread in self._threads:
            thread.start()

    @property
    def active_associations(self) -> int:
        """Number of open associations."""
        return len(self._running())

    def stop(self, drain_s: float = 0.0) -> None:
        """Accept no more connections; let associations end by themselves for ``drain_s``, then abort the others."""
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


class _ConnectionHandler(RequestHandler):  # type: ignore[misc]
    """Handler of a new connection: it starts an association whose data transfer is the node's own."""

    def handle(self) -> None:
        """Start the association; runs in the listener's thread, so nothing here may wait for the caller."""
        address = normalise_address(self.client_address[0])
        slot = self.server.service.limiter.open_connection(address)
        if slot is None:
            self.server.service.log_refusal(address, "too_many_connections", "has too many connections")
            self.request.close()
            return
        try:
            assoc = self._prepare_association()
            assoc.slot, run = slot, assoc.run
            assoc.run = partial(_run_association, assoc, run, self.server)
            assoc.start()
        except BaseException:
            slot.release()
            raise

    def _prepare_association(self) -> Association:
        # with Nagle's algorithm, every response would wait for the peer's delayed acknowledgement
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assoc = pynetdicom_adapter.create_association(self)
        service = self.server.service
        pdata.install(assoc, service.open_sink, service.closing)
        query_retrieve.install(assoc, service.query_service)
        assoc.commitment_exchange = answering.install(assoc, service.commitment_service, _identify_sender)
        pynetdicom_adapter.replace_socket_shutdown(assoc, partial(tls.close, self.request))
        return assoc


class _Listener(AssociationServer):  # type: ignore[misc]
    """pynetdicom's server; each association runs in a thread of its own, which also does the TLS handshake."""

    request_queue_size = 128
    service: _StorageService
    tls_context: tls.ReloadingTlsContext | None = None

    def get_request(self) -> tuple[socket.socket, Any]:
        context = self.tls_context.current() if self.tls_context is not None else None
        client, address = self.socket.accept()
        if context is not None:
            client = context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return client, address

    def shutdown_request(self, request: socket.socket) -> None:
        tls.close(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.error("a connection from %s could not be served", normalise_address(client_address[0]))


def _run_association(assoc: Association, run: Callable[[], None], listener: _Listener) -> None:
    """Run an association in its own thread, from the TLS handshake to the end."""
    service = listener.service
    address = normalise_address(assoc.requestor.address)
    try:
        if failure := _perform_handshake(assoc.dul.socket.socket, _request_timeout_s(service.config)):
            service.log_refusal(address, "tls", f"no TLS: {failure}")
            assoc.dul.socket.close()
            return
        run()
        if assoc.requestor.primitive is None:
            service.log_refusal(address, "silent", assoc.dul.request_failure)
    except Exception as error:  # its message may quote the caller
        _log.error("an association with %s broke off with %s", address, type(error).__name__)
        assoc.dul.stop_dul()
    finally:
        assoc.slot.release()
        assoc.commitment_exchange.end()


def _perform_handshake(sock: socket.socket, timeout_s: float) -> str:
    """Perform the TLS handshake, if any; return the reason of a failure, or an empty string."""
    if not isinstance(sock, ssl.SSLSocket):
        return ""
    try:
        sock.settimeout(timeout_s)
        sock.do_handshake()
    except (OSError, ValueError) as error:  # ValueError: the node is closing, and so is the socket
        return tls.explain_failure(error) if isinstance(error, OSError) else "the node is closing"
    return ""


class _RefusingSink:
    """Sink that drops a data set and refuses it with a status."""

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
    """Start the SCP at the configured ports; they are open on return."""
    root = config.spool_dir
    spool.prepare(root)
    database = engine.connect(config.database_url)
    ledger = Ledger(root, engine.sessions(database), now, meters)
    closing = threading.Event()
    services = QueryService(config, engine.readers(database)), answering.CommitmentService(config, ledger.sessions, now)
    try:
        return Server(_StorageService(config, ledger, *services, closing).listen(), closing, database.dispose)
    except BaseException:
        database.dispose()
        raise


def is_storage(sop_class_uid: str) -> bool:
    """Return whether the SOP class stores instances; private classes, and classes that our dictionaries do not have,
    are taken to do so."""
    uid = UID(sop_class_uid)
    if uid in _ALL_STORAGE or not uid.type:
        return True
    return uid.type == "SOP Class" and "Storage" in uid.name and uid.startswith("1.2.840.10008.5.1.4.")


class _StorageService:
    """State that all listeners share: limits, quotas, the ledger and the meters."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        query_service: QueryService,
        commitment_service: answering.CommitmentService,
        closing: threading.Event,
    ) -> None:
        self.config, self.closing = config, closing
        self.query_service, self.commitment_service = query_service, commitment_service
        self.limiter = ConnectionLimiter(config)
        self._ledger, self._quotas, self._caller_log = ledger, SenderQuotas(config), ThrottledLog(_log)
        self._senders: WeakKeyDictionary[Association, Sender] = WeakKeyDictionary()

    def listen(self) -> list[_Listener]:
        """Open one listener, or two: at [node] port, and at the port of [node.tls]."""
        node, secured = self.config.node, self.config.node.tls
        context = tls.ReloadingTlsContext(tls.node_identity(secured)) if secured else None
        if secured is None or secured.port is None:
            return [self._listen_at(node.port, context)]
        plain = self._listen_at(node.port, None)
        try:
            return [plain, self._listen_at(secured.port, context)]
        except BaseException:
            plain.server_close()
            raise

    def log_refusal(self, address: str, reason: str, message: str) -> None:
        """Count and log the refusal of a connection or an association. ``reason``: value of the metric's label."""
        if not self.closing.is_set():
            self._ledger.meters.count_refused_connection(reason)
            self._ledger.meters.refused_callers.record(address, "", message, self._ledger.now())
            self._caller_log.write(address, message)

    def log_refused_association(self, sender: Sender, why: str, level: int = logging.WARNING) -> None:
        """Log the refusal of an association with the title and address of its caller."""
        self._ledger.meters.refused_callers.record(sender.address, sender.ae_title, why, self._ledger.now())
        message = f"an association was refused: {why}"
        self._caller_log.write(sender.address, message, level, ae_title=sender.ae_title)

    def admit(self, event: evt.Event) -> None:
        """Refuse an A-ASSOCIATE-RQ, or support the storage contexts that it proposes."""
        assoc, meters = event.assoc, self._ledger.meters
        sender = _identify_sender(assoc)
        if assoc.dul.refusal is not None:
            meters.count_refused_association(None)
            self.log_refused_association(sender, assoc.dul.refusal.explanation)
            return _reject(assoc, assoc.dul.refusal.codes)
        is_known, is_report = self.config.allows(sender.ae_title, sender.address), self._is_report(assoc, sender)
        if not is_known and not self._is_own_check(assoc, sender) and not is_report:
            meters.count_refused_association(None)
            self.log_refused_association(sender, "not among the senders")
            return _reject(assoc, _CALLING_AE_TITLE_NOT_RECOGNISED)
        if not assoc.slot.open_association(sender):
            meters.count_refused_connection("too_many_associations")
            self.log_refused_association(sender, "there are too many")
            return _reject(assoc, _LOCAL_LIMIT_EXCEEDED)
        try:
            if not is_report:  # reports let retention delete, and need no space
                spool.check_space(self.config.spool_dir, self.config.spool)
        except OutOfSpace as exc:
            meters.count_refused_association(exc)
            self.log_refused_association(sender, str(exc), logging.ERROR)
            return _reject(assoc, _TEMPORARY_CONGESTION)
        proposed = assoc.requestor.primitive.presentation_context_definition_list
        assoc.acceptor.supported_contexts = [*assoc.acceptor.supported_contexts, *_supported_contexts(proposed)]
        return None

    def _is_own_check(self, assoc: Association, sender: Sender) -> bool:
        """Return whether ``dicomnode check`` on this machine asks for C-ECHO alone; it may, listed or not."""
        is_own = sender.ae_title == self.config.node.ae_title and is_loopback(sender.address)
        return is_own and _proposes_only(assoc, Verification)

    def _is_report(self, assoc: Association, sender: Sender) -> bool:
        """Return whether a destination calls for nothing but its reports on commitments; it may, listed or not."""
        is_asked = any(peer.ae_title == sender.ae_title and peer.commitment for peer in self.config.peers)
        return is_asked and _proposes_only(assoc, Verification, StorageCommitmentPushModel)

    def open_sink(self, assoc: Association, request: pdata.StoreRequest) -> pdata.Sink:
        """Return the sink for the data set of a C-STORE."""
        if assoc not in self._senders:
            self._senders[assoc] = _identify_sender(assoc)
        sender, context = self._senders[assoc], accepted_context(assoc, request.context_id)
        assert context is not None  # a sink is opened for a request on an accepted context
        if request.sop_class_uid != context.abstract_syntax:
            return _RefusingSink(_SOP_CLASS_NOT_SUPPORTED, "the SOP class is not that of the presentation context")
        announcement = StoreAnnouncement(
            request.sop_class_uid, request.sop_instance_uid, str(context.transfer_syntax[0])
        )
        open_sink = partial(InstanceSink, self._ledger, self.config.spool, announcement, sender)
        quota = self._quotas.find(sender)
        if quota.is_unlimited:
            return open_sink()
        return RateLimitedSink(open_sink, quota, self._ledger.meters, self.closing.wait)

    def _listen_at(self, port: int, context: tls.ReloadingTlsContext | None) -> _Listener:
        """Return a listener at the port. Raises ConfigError where the address is not available."""
        ae, host = _application_entity(self.config), self.config.node.host
        try:
            listener: _Listener = ae.make_server(
                (host, port),
                contexts=_service_contexts(),
                evt_handlers=[(evt.EVT_REQUESTED, self.admit), (evt.EVT_SOP_EXTENDED, _negotiate_extended)],
                server_class=_Listener,
                request_handler=_ConnectionHandler,
            )
        except OSError as error:
            section = "[node.tls]" if context and port != self.config.node.port else "[node]"
            why = error.strerror or type(error).__name__
            raise ConfigError(f"{section} host = {host!r}, port = {port} (DICOM): {why}; set another") from None
        listener.service, listener.tls_context = self, context
        pynetdicom_adapter.register_server(ae, listener)
        return listener


def _proposes_only(assoc: Association, *sop_classes: str) -> bool:
    proposed = assoc.requestor.primitive.presentation_context_definition_list
    return all(context.abstract_syntax in sop_classes for context in proposed)


def _service_contexts() -> list[PresentationContext]:
    return [build_context(Verification), *query_retrieve.supported_contexts(), *answering.supported_contexts()]


def _application_entity(config: Config) -> AE:
    node = config.node
    ae = AE(node.ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_associations = 1 << 30  # the ConnectionLimiter counts them, apart from connections without a request
    ae.maximum_pdu_size = node.max_pdu
    ae.dimse_timeout = ae.network_timeout = node.network_timeout_s
    ae.acse_timeout = _request_timeout_s(config)
    return ae


def _request_timeout_s(config: Config) -> float:
    """Return the time limit for each of the TLS handshake and the association request."""
    return min(config.limits.request_timeout_s, config.node.network_timeout_s)


def _identify_sender(assoc: Association) -> Sender:
    return Sender(assoc.requestor.primitive.calling_ae_title.strip(), normalise_address(assoc.requestor.address))


def _supported_contexts(proposed: list[PresentationContext]) -> list[PresentationContext]:
    """Return contexts for the proposed storage classes, with the transfer syntaxes that the node can read."""
    syntaxes: dict[str, dict[str, None]] = {}
    for context in proposed:
        if is_storage(context.abstract_syntax) and context.abstract_syntax != Verification:
            known = {str(uid): None for uid in context.transfer_syntax if uid in TRANSFER_SYNTAXES}
            syntaxes.setdefault(str(context.abstract_syntax), {}).update(known)
    contexts = [build_context(sop_class, list(known)) for sop_class, known in syntaxes.items() if known]
    for context in contexts:  # a requester that proposes the SCP role receives instances by C-GET (PS3.7 D.3.3.4)
        context.scu_role = context.scp_role = True
    return contexts


def _negotiate_extended(event: evt.Event) -> dict[UID, bytes]:
    return query_retrieve.negotiate_extended(event.app_info)


def _reject(assoc: Association, codes: tuple[int, int, int]) -> None:
    assoc.acse.send_reject(*codes)
    assoc.kill()
