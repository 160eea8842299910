"""The data transfer phase of an accepted association, read straight from its socket.

pynetdicom negotiates, keeps the state machine of PS3.8 9.2 and serves every DIMSE message but one. Two of an
association's parts are exchanged for ones that run in the association's own thread, without queues to wait at:

- ``UpperLayer`` drives pynetdicom's state machine when a PDU or a primitive is there, instead of a second thread that
  looks for them every millisecond.
- ``Messages`` reads P-DATA-TF PDUs. The data set of a C-STORE request goes piece by piece to a ``Sink`` and is never
  in memory whole; any other message is handed to pynetdicom.
"""

from __future__ import annotations

import logging
import re
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RSP
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import InvalidEventError
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import A_ASSOCIATE, P_DATA

from dicomnode.ingest import requests
from dicomnode.ingest.limits import plain_address
from dicomnode.ingest.wire import ConnectionLostError, Wire

__all__ = ["Messages", "Sink", "StoreRequest", "UpperLayer", "take_over"]

_log = logging.getLogger(__name__)

_ASSOCIATE_RQ, _P_DATA_TF = 0x01, 0x04
_LONGEST_OTHER_PDU = 1 << 20
_LONGEST_COMMAND = 1 << 16
_LONGEST_IDENTIFIER = 1 << 24
_SEND_PDU = 256 * 1024
_C_STORE_RQ = 0x0001
_NO_DATA_SET = 0x0101
_WHOLE_RESPONSE = 512  # a C-STORE-RSP with two UIDs is shorter
_LONGEST_COMMENT = 64  # PS3.7 C: Error Comment is LO


class ProtocolError(Exception):
    """The peer sent what PS3.8 does not allow here."""


@dataclass(frozen=True)
class StoreRequest:
    """A C-STORE-RQ (PS3.7 9.3.1.1)."""

    context_id: int
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str


class Sink(Protocol):
    """Where one C-STORE's data set goes. ``finish`` gives the status and, for a failure, a comment."""

    def write(self, piece: memoryview) -> None: ...
    def finish(self) -> tuple[int, str]: ...
    def discard(self) -> None: ...


class UpperLayer(DULServiceProvider):  # type: ignore[misc]
    """pynetdicom's upper layer, driven by the association's thread.

    ``refusal``: why the request that came has to be refused; ``silence``: why none was understood.
    """

    def __init__(self, assoc: Association) -> None:
        threaded = assoc.dul
        super().__init__(assoc)
        self.socket, self.event_queue = threaded.socket, threaded.event_queue
        self.wire = Wire(self.socket.socket)
        self._idle_timer.timeout = assoc.network_timeout
        self.artim_timer.timeout = assoc.acse_timeout
        self.refusal: requests.Refusal | None = None
        self.silence = "made no association request in time"

    @property
    def transfers_data(self) -> bool:
        """Whether the association is established and neither side has begun to end it (Sta6)."""
        return bool(self.state_machine.current_state == "Sta6")

    def start(self) -> None:
        self._idle_timer.start()
        self.assoc._dul_ready.set()
        self._settle()

    def is_alive(self) -> bool:
        return not self._kill_thread

    def stop_dul(self) -> bool:
        if self.socket is not None:
            self.socket.close()
        self._settle()
        self._kill_thread = True
        return True

    def send_pdu(self, primitive: Any) -> None:
        if self.state_machine.current_state != "Sta1":
            super().send_pdu(primitive)
            self._settle()

    def receive_pdu(self, wait: bool = False, timeout: float | None = None) -> Any:
        if wait:
            try:
                with self.wire.all_within(timeout):
                    while self.to_user_queue.empty() and self.state_machine.current_state != "Sta1":
                        self.read_pdu()
            except TimeoutError:
                pass
            except (ConnectionLostError, OSError):
                self.silence = "closed the connection without an association request"
                self.happens("Evt17")
        primitive = super().receive_pdu(wait=False)
        if wait and not isinstance(primitive, A_ASSOCIATE):
            return None  # pynetdicom waits so for the association request alone, and would take an abort for one
        return primitive

    def header(self) -> tuple[int, int]:
        """Type and length of the next PDU."""
        kind, _, length = struct.unpack(">BBL", self.wire.take(6))
        self._idle_timer.restart()
        return kind, length

    def read_pdu(self) -> None:
        """One PDU for pynetdicom."""
        self.take_pdu(*self.header())

    def take_pdu(self, kind: int, length: int) -> None:
        """The rest of a PDU for pynetdicom, whose header was read."""
        if not 1 <= kind <= 7 or length > _LONGEST_OTHER_PDU:
            self.silence = "sent what is no PDU of an association request"
            return self.happens("Evt19")
        content = self.wire.take(length)
        encoded = struct.pack(">BBL", kind, 0, length) + content
        try:
            if kind == _ASSOCIATE_RQ:
                encoded, self.refusal = requests.tidied(content, self.assoc.ae.ae_title)
            pdu, event = self._decode_pdu(bytearray(encoded))
        except requests.UnreadableError as exc:
            self.silence = f"sent {exc}"
            return self.happens("Evt19")
        except Exception:  # whatever a malformed PDU makes pynetdicom's decoder raise
            return self.happens("Evt19")
        self._recv_pdu.put(pdu)
        return self.happens(event)

    def happens(self, event: str) -> None:
        """Let the state machine act on an event of PS3.8 9.2.2."""
        self.event_queue.put(event)
        self._settle()

    def _settle(self) -> None:
        while not self.event_queue.empty() or self._process_recv_primitive():
            try:
                self.state_machine.do_action(self.event_queue.get(block=False))
            except InvalidEventError:
                self.to_provider_queue.queue.clear()  # what we wanted to say, too late for the peer
            if self.state_machine.current_state == "Sta1":
                self.to_provider_queue.queue.clear()
                self.event_queue.queue.clear()


class Messages(DIMSEServiceProvider):  # type: ignore[misc]
    """pynetdicom's DIMSE provider, which reads C-STORE requests itself while it is asked for the next message."""

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
        self._answers: dict[tuple[int, str, int], tuple[bytearray, int, int]] = {}

    def get_msg(self, block: bool = False) -> tuple[Any, Any]:
        """The next message that is no C-STORE request; nothing when the association came to an end."""
        if self.msg_queue.empty():
            self._receive(self.dimse_timeout if block else self.assoc.network_timeout)
        return cast(tuple[Any, Any], super().get_msg(block=False))

    def look(self) -> bool:
        """Take in what came while a request is served, such as a C-CANCEL; False when the association has ended."""
        while self._upper.transfers_data and self.msg_queue.empty() and self._upper.wire.has_more():
            self._receive(self.assoc.network_timeout, once=True)
        return self._upper.transfers_data

    @property
    def maximum_pdu_size(self) -> int:
        """What the peer takes at once; one without a limit (0, PS3.8 D.1.1) would get a file as one fragment."""
        stated: int = self.assoc.requestor.maximum_length
        return stated if 0 < stated <= _SEND_PDU else _SEND_PDU

    def _receive(self, timeout_s: float | None, *, once: bool = False) -> None:
        upper = self._upper
        upper.wire.settimeout(timeout_s)
        try:
            while upper.transfers_data and self.msg_queue.empty():
                kind, length = upper.header()
                if kind == _P_DATA_TF:
                    self._read_p_data(length)
                else:
                    upper.take_pdu(kind, length)
                if once:
                    return
        except TimeoutError:
            self._discard()  # pynetdicom's idle timer has run out, too, and ends the association
        except ProtocolError:
            self._complain()
            upper.happens("Evt19")
        except (ConnectionLostError, OSError):
            self._lost()
        finally:
            if not upper.transfers_data:
                self._discard()

    def _complain(self) -> None:
        address = plain_address(self.assoc.requestor.address)
        _log.warning("%s: an association was aborted: what it sent is no message of PS3.7 and PS3.8", address)

    def _lost(self) -> None:
        self._discard()
        if self._closing.is_set():
            self.assoc.abort()
        elif self._upper.transfers_data:
            self._upper.happens("Evt17")

    def _read_p_data(self, length: int) -> None:
        """One P-DATA-TF PDU: presentation data values, each with its fragment (PS3.8 9.3.5, annex E)."""
        while length:
            size, context_id, control = struct.unpack(">LBB", self._upper.wire.take(6))
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
        self._command += self._upper.wire.take(count)
        if not last:
            return
        elements = _command_elements(bytes(self._command))
        if _number(elements, 0x0800) == _NO_DATA_SET:
            self._hand_over(context_id)
            return
        self._command_context = context_id
        if _number(elements, 0x0100) == _C_STORE_RQ:
            self._request = _store_request(context_id, elements)
            if context_id in self.assoc._accepted_cx:
                self._sink = self._open_sink(self.assoc, self._request)

    def _read_data(self, count: int, last: bool) -> None:
        if self._command_context is None:
            raise ProtocolError
        if self._sink is not None:
            for piece in self._upper.wire.pieces(count):
                self._sink.write(piece)
        elif len(self._identifier) + count > _LONGEST_IDENTIFIER:
            raise ProtocolError
        else:
            self._identifier += self._upper.wire.take(count)
        if last and self._sink is not None:
            self._finish_store()
        elif last:
            self._hand_over(self._command_context)

    def _hand_over(self, context_id: int) -> None:
        """A whole message that pynetdicom serves."""
        values = [[context_id, b"\3" + self._command]]
        if self._command_context is not None:
            values.append([context_id, b"\2" + self._identifier])
        primitive = P_DATA()
        primitive.presentation_data_value_list = values
        self._forget()
        try:
            self.receive_primitive(primitive)
        except (KeyError, ValueError, AttributeError, TypeError) as exc:  # a command that is none
            raise ProtocolError from exc
        if not self._upper.event_queue.empty():  # the same, found by pynetdicom
            self._complain()
        self._upper._settle()

    def _finish_store(self) -> None:
        request, sink = self._request, self._sink
        assert request is not None  # a sink is opened for a request
        assert sink is not None
        status, comment = sink.finish()
        self._forget()
        if status == 0 and self.maximum_pdu_size >= _WHOLE_RESPONSE:
            self._upper.socket.send(self._success(request))
            return
        response = _response(request, status)
        response.ErrorComment = comment[:_LONGEST_COMMENT]
        self.send_msg(response, request.context_id)

    def _success(self, request: StoreRequest) -> bytes:
        """The C-STORE-RSP as pynetdicom encodes it; from one success to the next only a number and a UID change."""
        uid = request.sop_instance_uid
        kind = (request.context_id, request.sop_class_uid, len(uid))
        if kind not in self._answers:
            self._answers[kind] = self._encoded_success(request)
        encoded, number_at, uid_at = self._answers[kind]
        struct.pack_into("<H", encoded, number_at, request.message_id)
        encoded[uid_at : uid_at + len(uid)] = uid.encode("ascii")
        return bytes(encoded)

    def _encoded_success(self, request: StoreRequest) -> tuple[bytearray, int, int]:
        """A success, and where in it the message's number and the instance's UID stand."""
        message = C_STORE_RSP()
        message.primitive_to_message(_response(request, 0))
        values = message.encode_msg(request.context_id, self.maximum_pdu_size)
        encoded = bytearray().join(P_DATA_TF(value).encode() for value in values)
        number_at = encoded.index(b"\0\0\x20\1\2\0\0\0") + 8  # (0000,0120) MessageIDBeingRespondedTo
        return encoded, number_at, encoded.rindex(request.sop_instance_uid.encode("ascii"))

    def _discard(self) -> None:
        if self._sink is not None:
            self._sink.discard()
        self._forget()

    def _forget(self) -> None:
        self._command.clear()
        self._identifier.clear()
        self._command_context = self._request = self._sink = None


def take_over(
    assoc: Association, open_sink: Callable[[Association, StoreRequest], Sink], closing: threading.Event
) -> None:
    """Exchange the parts of an association that has not started yet."""
    assoc.dul = UpperLayer(assoc)
    assoc.dimse = Messages(assoc, open_sink, closing)


def _response(request: StoreRequest, status: int) -> C_STORE:
    response = C_STORE()
    response.MessageID = response.MessageIDBeingRespondedTo = request.message_id
    response.AffectedSOPClassUID = request.sop_class_uid
    response.AffectedSOPInstanceUID = request.sop_instance_uid
    response.Status = status
    return response


def _command_elements(command: bytes) -> dict[int, bytes]:
    """Element number to value of a command set: group 0000 in Implicit VR Little Endian (PS3.7 6.3.1)."""
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


def _store_request(context_id: int, elements: dict[int, bytes]) -> StoreRequest:
    message_id = _number(elements, 0x0110)
    uids = [_uid(elements.get(number, b"")) for number in (0x0002, 0x1000)]
    if message_id is None or not all(re.fullmatch(r"[0-9.]{1,64}", uid) for uid in uids):
        raise ProtocolError
    return StoreRequest(context_id, message_id, *uids)


def _number(elements: dict[int, bytes], number: int) -> int | None:
    value = elements.get(number, b"")
    return int.from_bytes(value, "little") if len(value) == 2 else None


def _uid(value: bytes) -> str:
    return value.decode("ascii", "replace").strip("\0 ")
