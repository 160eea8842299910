"""The SCP: who may associate, what is negotiated, and the listener that node.serve starts and stops."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv6Address, ip_address
from typing import Any
from weakref import WeakKeyDictionary

from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.presentation import AllStoragePresentationContexts, PresentationContext, build_context
from pynetdicom.sop_class import Verification
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from db import engine
from db.studies import Sender
from dicomnode.config import Config, TlsConfig
from dicomnode.dimse import pdata, query_retrieve
from dicomnode.errors import OutOfSpace
from dicomnode.ingest import Announced, Ledger, Reception
from dicomnode.monitoring.meters import Meters
from dicomnode.storage import spool
from dicomnode.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

__all__ = ["TRANSFER_SYNTAXES", "Server", "is_storage", "start"]

_config.LOG_HANDLER_LEVEL = "none"  # pynetdicom's own log handlers print command sets and AE titles

_log = logging.getLogger(__name__)

# PS3.8 9.3.4: result, source, reason
_CALLING_AE_TITLE_NOT_RECOGNISED = (1, 1, 3)
_TEMPORARY_CONGESTION = (2, 3, 1)
_SOP_CLASS_NOT_SUPPORTED = 0x0122  # PS3.7 C.5.6

_ALL_STORAGE = frozenset(str(context.abstract_syntax) for context in AllStoragePresentationContexts)

# Encodings of a data set; the same branch also names encodings of mail, XML and video streams.
TRANSFER_SYNTAXES = frozenset(
    uid
    for uid, (_, kind, *_) in UID_dictionary.items()
    if kind == "Transfer Syntax" and not uid.startswith(("1.2.840.10008.1.2.6.", "1.2.840.10008.1.2.7."))
)


class Server:
    """A running SCP."""

    def __init__(self, listener: _Listener, closing: threading.Event, dispose: Callable[[], None]) -> None:
        self._listener, self._closing, self._dispose = listener, closing, dispose
        self.port: int = listener.server_address[1]
        self._thread = threading.Thread(target=listener.serve_forever, args=(0.1,), name="dicomnode-scp", daemon=True)
        self._thread.start()

    @property
    def active_associations(self) -> int:
        """How many are open now."""
        return len(self._listener.active_associations)

    def stop(self, drain_s: float = 0.0) -> None:
        """Accept no more; let associations end by themselves for ``drain_s``, then abort what is left of them."""
        if self._closing.is_set():
            return
        running = self._listener.active_associations
        self._listener.shutdown()
        self._thread.join()
        deadline = time.monotonic() + drain_s
        running += [assoc for assoc in self._listener.active_associations if assoc not in running]
        for assoc in running:
            assoc.join(max(0.0, deadline - time.monotonic()))
        self._closing.set()
        for assoc in running:
            _wake(assoc)
            assoc.join()
        self._dispose()


class _Handler(RequestHandler):  # type: ignore[misc]
    """Makes an association whose data transfer is ours."""

    def _create_association(self) -> Association:
        # PS3.8 says nothing of Nagle's algorithm; with it, every response waits for the peer's delayed acknowledgement
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assoc = super()._create_association()
        pdata.take_over(assoc, self.server.open_sink, self.server.closing)
        query_retrieve.take_requests(assoc, self.server.service)
        return assoc


class _Listener(ThreadedAssociationServer):  # type: ignore[misc]
    """pynetdicom's server, with a handshake of TLS that no silent client can hold up the others with."""

    request_queue_size = 128
    open_sink: Callable[[Association, pdata.StoreRequest], pdata.Sink]
    closing: threading.Event
    service: query_retrieve.Service

    def get_request(self) -> tuple[socket.socket, Any]:
        client, address = self.socket.accept()
        if self.ssl_context is not None:
            client = self.ssl_context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return client, address


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
    listener = _listen(config, ledger, service, closing)
    return Server(listener, closing, database.dispose)


def is_storage(sop_class_uid: str) -> bool:
    """Every storage class; private ones and those that are newer than our dictionaries are taken as such."""
    uid = UID(sop_class_uid)
    if uid in _ALL_STORAGE or uid not in UID_dictionary:
        return True
    name, kind, *_ = UID_dictionary[uid]
    return kind == "SOP Class" and "Storage" in name and uid.startswith("1.2.840.10008.5.1.4.")


def _listen(config: Config, ledger: Ledger, service: query_retrieve.Service, closing: threading.Event) -> _Listener:
    node = config.node
    ae = AE(node.ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_associations = node.max_associations
    ae.maximum_pdu_size = node.max_pdu
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = node.network_timeout_s

    senders: WeakKeyDictionary[Association, Sender] = WeakKeyDictionary()

    def open_sink(assoc: Association, request: pdata.StoreRequest) -> pdata.Sink:
        if assoc not in senders:
            senders[assoc] = _sender(assoc)
        return _open_sink(config, ledger, assoc, senders[assoc], request)

    listener: _Listener = ae.make_server(
        (node.host, node.port),
        contexts=[build_context(Verification), *query_retrieve.supported_contexts()],
        ssl_context=_tls(config.tls) if config.tls else None,
        evt_handlers=[(evt.EVT_REQUESTED, _admit, [config, ledger.meters]), (evt.EVT_SOP_EXTENDED, _extended)],
        server_class=_Listener,
        request_handler=_Handler,
    )
    listener.open_sink, listener.closing, listener.service = open_sink, closing, service
    listener._gc = [0, 299]  # pynetdicom collects garbage every so many polls; a full collection takes 0.1 s
    ae._servers.append(listener)
    return listener


def _open_sink(
    config: Config, ledger: Ledger, assoc: Association, sender: Sender, request: pdata.StoreRequest
) -> pdata.Sink:
    context = assoc._accepted_cx[request.context_id]
    if request.sop_class_uid != context.abstract_syntax:
        return _Refusing(_SOP_CLASS_NOT_SUPPORTED, "the SOP class is not that of the presentation context")
    announced = Announced(request.sop_class_uid, request.sop_instance_uid, str(context.transfer_syntax[0]))
    return Reception(ledger, config.spool, announced, sender)


def _sender(assoc: Association) -> Sender:
    return Sender(assoc.requestor.primitive.calling_ae_title.strip(), _plain_address(assoc.requestor.address))


def _admit(event: evt.Event, config: Config, meters: Meters) -> None:
    """On an A-ASSOCIATE-RQ: refuse it, or support the storage contexts that it proposes."""
    assoc = event.assoc
    sender = _sender(assoc)
    if not config.allows(sender.ae_title, sender.address):
        _log.warning("an association from %s was refused: not among the senders", sender.address)
        meters.association_refused(None)
        return _reject(assoc, _CALLING_AE_TITLE_NOT_RECOGNISED)
    try:
        spool.check_space(config.spool_dir, config.spool)
    except OutOfSpace as exc:
        _log.error("an association from %s was refused: %s", sender.address, exc)
        meters.association_refused(exc)
        return _reject(assoc, _TEMPORARY_CONGESTION)
    proposed = assoc.requestor.primitive.presentation_context_definition_list
    assoc.acceptor.supported_contexts = [*assoc.acceptor.supported_contexts, *_supported(proposed)]
    return None


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


def _wake(assoc: Association) -> None:
    """Let a thread that waits for the peer see that the node is closing."""
    sock = assoc.dul.socket.socket if assoc.dul.socket else None
    if sock is not None:
        try:
            sock.shutdown(socket.SHUT_RD)
        except OSError:
            return


def _plain_address(address: str) -> str:
    """An IPv4 address that came through an IPv6 socket, as IPv4."""
    parsed = ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return str(mapped or parsed)


def _tls(tls: TlsConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.ca_file)
    context.load_cert_chain(tls.certificate_file, tls.key_file)
    if tls.require_client_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
    return context
