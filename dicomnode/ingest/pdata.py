"""The data transfer phase of an accepted association, read straight from its socket.

pynetdicom negotiates, keeps the state machine of PS3.8 9.2 and serves every DIMSE message but C-STORE. Two parts of an
association are replaced by ones that run in the association's own thread, without queues to wait at:

- ``UpperLayer`` drives pynetdicom's state machine when a PDU or a primitive arrives, instead of a second thread that
  polls for them every millisecond.
- ``MessageProvider`` reads P-DATA-TF PDUs. The data set of a C-STORE request goes piece by piece to a ``Sink`` and is
  never in memory as a whole; any other message is delivered to pynetdicom.
"""

from __future__ import annotations

import logging
import re
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from pydicom.errors import BytesLengthException
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RSP, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.fsm import InvalidEventError
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import A_ASSOCIATE, P_DATA

from dicomnode.dimse.pynetdicom_adapter import ThreadlessUpperLayer, accepted_context
from dicomnode.ingest import requests
from dicomnode.ingest.limits import normalise_address
from dicomnode.ingest.wire import ConnectionLostError, Wire

__all__ = ["MessageProvider", "Sink", "StoreRequest", "UpperLayer", "install"]

_log = logging.getLogger(__name__)

_ASSOCIATE_RQ, _P_DATA_TF, _ABORT = 0x01, 0x04, 0x07
_LONGEST_OTHER_PDU = 1 << 20
_LONGEST_COMMAND = 1 << 16
_LONGEST_IDENTIFIER = 1 << 24
_SEND_PDU = 256 * 1024
_C_STORE_RQ, _N_EVENT_REPORT_RQ = 0x0001, 0x0100
_NO_DATA_SET = 0x0101
_LONGEST_STORE_RESPONSE = 512  # bytes of a C-STORE-RSP with two UIDs, at most
_LONGEST_COMMENT = 64  # PS3.7 C: Error Comment is LO


class ProtocolError(Exception):
    """The peer sent a PDU or message that PS3.7 or PS3.8 does not allow at this point."""


@dataclass(frozen=True)
class StoreRequest:
    """Fields of a C-STORE-RQ (PS3.7 9.3.1.1)."""

    context_id: int
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str


class Sink(Protocol):
    """Receiver of one C-STORE's data set; ``finish`` returns the status and, for a failure, an error comment."""

    def write(self, piece: memoryview) -> None: ...
    def finish(self) -> tuple[int, str]: ...
    def discard(self) -> None: ...


class UpperLayer(ThreadlessUpperLayer):
    """pynetdicom's upper layer, driven by the association's thread.

    ``refusal``: reason to refuse the association request; ``request_failure``: reason why no request was read.
    """

    def __init__(self, assoc: Association) -> None:
        super().__init__(assoc)
        self.wire = Wire(self.socket.socket)
        self.refusal: requests.Refusal | None = None
        self.request_failure = "made no association request in time"

    @property
    def transfers_data(self) -> bool:
        """True where the association is established and neither side has begun to end it (Sta6)."""
        return bool(self.state_machine.current_state == "Sta6")

    def start(self) -> None:
        self.mark_ready()
        self.run_state_machine()

    def stop_dul(self) -> bool:
        if self.socket is not None:
            self.socket.close()
        self.run_state_machine()
        self.mark_stopped()
        return True

    def send_pdu(self, primitive: Any) -> None:
        if self.state_machine.current_state != "Sta1":
            super().send_pdu(primitive)
            self.run_state_machine()

    def receive_pdu(self, wait: bool = False, timeout: float | None = None) -> Any:
        if wait:
            try:
                with self.wire.deadline(timeout):
                    while self.to_user_queue.empty() and self.state_machine.current_state != "Sta1":
                        self.read_pdu()
            except TimeoutError:
                pass
            except (ConnectionLostError, OSError):
                self.request_failure = "closed the connection without an association request"
                self.fire_event("Evt17")
        primitive = super().receive_pdu(wait=False)
        if wait and not isinstance(primitive, A_ASSOCIATE):
            return None  # pynetdicom waits here for the association request only, and would take an abort for one
        return primitive

    def read_header(self) -> tuple[int, int]:
        """Return type and length of the next PDU."""
        kind, _, length = struct.unpack(">BBL", self.wire.read(6))
        self.restart_idle_timer()
        return kind, length

    def read_pdu(self) -> None:
        """Read one PDU for pynetdicom."""
        self.read_body(*self.read_header())

    def read_body(self, kind: int, length: int) -> None:
        """Read the body of a PDU for pynetdicom, whose header was read."""
        if not 1 <= kind <= 7 or length > _LONGEST_OTHER_PDU:
            self.request_failure = "sent what is no PDU of an association request"
            return self.fire_event("Evt19")
        content = self.wire.read(length)
        content = requests.normalise_abort(content) if kind == _ABORT else content
        encoded = struct.pack(">BBL", kind, 0, len(content)) + content
        try:
            if kind == _ASSOCIATE_RQ:
                encoded, self.refusal = requests.normalise_request(content, self.assoc.ae.ae_title)
            event = self.queue_pdu(encoded)
        except requests.UnreadableError as exc:
            self.request_failure = f"sent {exc}"
            return self.fire_event("Evt19")
        except Exception:  # whatever a malformed PDU makes pynetdicom's decoder raise
            return self.fire_event("Evt19")
        return self.fire_event(event)

    def fire_event(self, event: str) -> None:
        """Let the state machine act on an event of PS3.8 9.2.2."""
        self.event_queue.put(event)
        self.run_state_machine()

    def run_state_machine(self) -> None:
        """Act on all queued events and primitives."""
        while not self.event_queue.empty() or self.queue_primitive_event():
            try:
                self.state_machine.do_action(self.event_queue.get(block=False))
            except InvalidEventError:
                self.to_provider_queue.queue.clear()  # our own primitives come too late for the peer
            if self.state_machine.current_state == "Sta1":
                self.to_provider_queue.queue.clear()
                self.event_queue.queue.clear()


class MessageProvider(DIMSEServiceProvider):  # type: ignore[misc]
    """pynetdicom's DIMSE provider, which serves C-STORE requests itself while it reads the next message."""

    def __init__(
        self, assoc: Association, open_sink: Callable[[Association, StoreRequest], Sink], closing: threading.Event
    ) -> None:
        super().__init__(assoc)
        self._upper = cast(UpperLayer, assoc.dul)
        self._open_sink, self._closing = open_sink, closing
        self._command, self._identifier = bytearray(), bytearray()
        self._command_context: int | None = None
        self._request: StoreRequest | None = None
        self._sink: Sink | None = None
        self._templates: dict[tuple[int, str, int], tuple[bytearray, int, int]] = {}

    def get_msg(self, block: bool = False) -> tuple[Any, Any]:
        """Return the next message that is no C-STORE request, or (None, None) when the association has ended."""
        if self.msg_queue.empty():
            self._receive(self.dimse_timeout if block else self.assoc.network_timeout)
        return cast(tuple[Any, Any], super().get_msg(block=False))

    def receive_pending(self) -> bool:
        """Receive messages that came while a request is served, such as a C-CANCEL.

        Returns False when the association has ended.
        """
        while self._upper.transfers_data and self.msg_queue.empty() and self._upper.wire.has_more():
            self._receive(self.assoc.network_timeout, once=True)
        return self._upper.transfers_data

    @property
    def maximum_pdu_size(self) -> int:
        """Bytes of a PDU to the peer: without a limit (0, PS3.8 D.1.1) a file would be sent as one fragment."""
        maximum: int = self.assoc.requestor.maximum_length
        return maximum if 0 < maximum <= _SEND_PDU else _SEND_PDU

    def _receive(self, timeout_s: float | None, *, once: bool = False) -> None:
        upper = self._upper
        upper.wire.settimeout(timeout_s)
        try:
            while upper.transfers_data and self.msg_queue.empty():
                kind, length = upper.read_header()
                if kind == _P_DATA_TF:
                    self._read_p_data(length)
                else:
                    upper.read_body(kind, length)
                if once:
                    return
        except TimeoutError:
            self._discard_sink()  # pynetdicom's idle timer has run out, too, and ends the association
        except ProtocolError:
            self._log_protocol_error()
            upper.fire_event("Evt19")
        except (ConnectionLostError, OSError):
            self._handle_lost_connection()
        finally:
            if not upper.transfers_data:
                self._discard_sink()

    def _log_protocol_error(self) -> None:
        address = normalise_address(self.assoc.requestor.address)
        _log.warning("%s: an association was aborted: what it sent is no message of PS3.7 and PS3.8", address)

    def _handle_lost_connection(self) -> None:
        self._discard_sink()
        if self._closing.is_set():
            self.assoc.abort()
        elif self._upper.transfers_data:
            self._upper.fire_event("Evt17")

    def _read_p_data(self, length: int) -> None:
        """Read one P-DATA-TF PDU: presentation data values, each with its fragment (PS3.8 9.3.5, annex E)."""
        while length:
            size, context_id, control = struct.unpack(">LBB", self._upper.wire.read(6))
            length -= 4 + size
            if size < 2 or length < 0:
                raise ProtocolError
            last = bool(control & 2)
            if control & 1:
                self._read_command(context_id, size - 2, last)
            else:
                self._read_data(size - 2, last)

    def _read_command(self, context_id: int, count: int, last: bool) -> None:
        if self._command_context is not None or len(self._command) + count > _LONGEST_COMMAND:
            raise ProtocolError
        self._command += self._upper.wire.read(count)
        if not last:
            return
        elements = _parse_command(bytes(self._command))
        if _parse_number(elements, 0x0800) == _NO_DATA_SET:
            self._deliver(context_id)
            return
        self._command_context = context_id
        if _parse_number(elements, 0x0100) == _C_STORE_RQ:
            self._request = _parse_store_request(context_id, elements)
            if accepted_context(self.assoc, context_id) is not None:
                self._sink = self._open_sink(self.assoc, self._request)

    def _read_data(self, count: int, last: bool) -> None:
        if self._command_context is None:
            raise ProtocolError
        if self._sink is not None:
            for piece in self._upper.wire.read_pieces(count):
                self._sink.write(piece)
        elif len(self._identifier) + count > _LONGEST_IDENTIFIER:
            raise ProtocolError
        else:
            self._identifier += self._upper.wire.read(count)
        if last and self._sink is not None:
            self._finish_store()
        elif last:
            self._deliver(self._command_context)

    def _deliver(self, context_id: int) -> None:
        """Deliver a complete message to pynetdicom."""
        values = [[context_id, b"\3" + self._command]]
        if self._command_context is not None:
            values.append([context_id, b"\2" + self._identifier])
        primitive = P_DATA()
        primitive.presentation_data_value_list = values
        is_event = _parse_number(_parse_command(bytes(self._command)), 0x0100) == _N_EVENT_REPORT_RQ
        self._reset()
        try:
            (self._queue_event if is_event else self.receive_primitive)(primitive)
        except (KeyError, ValueError, AttributeError, TypeError, BytesLengthException) as exc:  # no valid command
            raise ProtocolError from exc
        if not self._upper.event_queue.empty():  # pynetdicom itself found an error
            self._log_protocol_error()
        self._upper.run_state_machine()

    def _queue_event(self, primitive: P_DATA) -> None:
        """Queue an N-EVENT-REPORT request as any other message: pynetdicom would start a thread that serves it."""
        message = DIMSEMessage()
        message.decode_msg(primitive, self.assoc)
        self.msg_queue.put((message.context_id, message.message_to_primitive()))

    def _finish_store(self) -> None:
        request, sink = self._request, self._sink
        assert request is not None  # a sink is opened for a request
        assert sink is not None
        status, comment = sink.finish()
        self._reset()
        if status == 0 and self.maximum_pdu_size >= _LONGEST_STORE_RESPONSE:
            self._upper.socket.send(self._encode_success(request))
            return
        response = _make_response(request, status)
        response.ErrorComment = comment[:_LONGEST_COMMENT]
        self.send_msg(response, request.context_id)

    def _encode_success(self, request: StoreRequest) -> bytes:
        """Return the C-STORE-RSP as pynetdicom encodes it: from one success to the next a number and a UID change."""
        uid = request.sop_instance_uid
        kind = (request.context_id, request.sop_class_uid, len(uid))
        if kind not in self._templates:
            self._templates[kind] = self._make_success_template(request)
        encoded, number_at, uid_at = self._templates[kind]
        struct.pack_into("<H", encoded, number_at, request.message_id)
        encoded[uid_at : uid_at + len(uid)] = uid.encode("ascii")
        return bytes(encoded)

    def _make_success_template(self, request: StoreRequest) -> tuple[bytearray, int, int]:
        """Return an encoded C-STORE-RSP of success, and the offsets of the message ID and of the instance UID in it."""
        message = C_STORE_RSP()
        message.primitive_to_message(_make_response(request, 0))
        values = message.encode_msg(request.context_id, self.maximum_pdu_size)
        encoded = bytearray().join(P_DATA_TF(value).encode() for value in values)
        number_at = encoded.index(b"\0\0\x20\1\2\0\0\0") + 8  # (0000,0120) MessageIDBeingRespondedTo
        return encoded, number_at, encoded.rindex(request.sop_instance_uid.encode("ascii"))

    def _discard_sink(self) -> None:
        if self._sink is not None:
            self._sink.discard()
        self._reset()

    def _reset(self) -> None:
        self._command.clear()
        self._identifier.clear()
        self._command_context = self._request = self._sink = None


def install(
    assoc: Association, open_sink: Callable[[Association, StoreRequest], Sink], closing: threading.Event
) -> None:
    """Give an association that has not started the node's own upper layer and message provider."""
    assoc.dul = UpperLayer(assoc)
    assoc.dimse = MessageProvider(assoc, open_sink, closing)


def _make_response(request: StoreRequest, status: int) -> C_STORE:
    response = C_STORE()
    response.MessageID = response.MessageIDBeingRespondedTo = request.message_id
    response.AffectedSOPClassUID = request.sop_class_uid
    response.AffectedSOPInstanceUID = request.sop_instance_uid
    response.Status = status
    return response


def _parse_command(command: bytes) -> dict[int, bytes]:
    """Return the values of a command set by element number: group 0000, Implicit VR Little Endian (PS3.7 6.3.1)."""
    elements: dict[int, bytes] = {}
    at = 0
    while at < len(command):
        if len(command) - at < 8:
            raise ProtocolError
        group, number, length = struct.unpack_from("<HHL", command, at)
        at += 8 + length
        if group != 0 or at > len(command):
            raise ProtocolError
        elements[number] = command[at - length : at]
    return elements


def _parse_store_request(context_id: int, elements: dict[int, bytes]) -> StoreRequest:
    message_id = _parse_number(elements, 0x0110)
    uids = [_parse_uid(elements.get(number, b"")) for number in (0x0002, 0x1000)]
    if message_id is None or not all(re.fullmatch(r"[0-9.]{1,64}", uid) for uid in uids):
        raise ProtocolError
    return StoreRequest(context_id, message_id, *uids)


def _parse_number(elements: dict[int, bytes], number: int) -> int | None:
    value = elements.get(number, b"")
    return int.from_bytes(value, "little") if len(value) == 2 else None


def _parse_uid(value: bytes) -> str:
    return value.decode("ascii", "replace").strip("\0 ")
