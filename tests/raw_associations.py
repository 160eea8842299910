"""Associations on a socket of the test's own: it sends PDUs as bytes and reads every answer itself.

pynetdicom as requestor is no help there: bytes that the test sends on the same socket make its threads lose answers.
"""

from __future__ import annotations

import io
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from tests.sending import Encoded

__all__ = [
    "ABORTED",
    "ACCEPTED",
    "CONTEXT_NAME",
    "EXPLICIT",
    "IMPLICIT",
    "MR",
    "REJECTED",
    "VERIFICATION",
    "AssociateRequest",
    "RawAssociation",
    "encode_context_item",
    "encode_item",
    "read_pdu",
    "read_results",
    "standard_user_items",
]

ACCEPTED, REJECTED, P_DATA, ABORTED = 2, 3, 4, 7
MR, VERIFICATION = b"1.2.840.10008.5.1.4.1.1.4", b"1.2.840.10008.1.1"
EXPLICIT, IMPLICIT = b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2"
CONTEXT_NAME = b"1.2.840.10008.3.1.1.1"

_RELEASE_RQ, _ABORT = b"\5\0\0\0\0\4\0\0\0\0", b"\7\0\0\0\0\4\0\0\0\0"


def encode_item(kind: int, value: bytes) -> bytes:
    """Return an item or sub-item of an association request (PS3.8 9.3.2)."""
    return struct.pack(">BBH", kind, 0, len(value)) + value


def encode_context_item(
    number: int, abstract: tuple[bytes, ...] = (MR,), transfer: tuple[bytes, ...] = (EXPLICIT,)
) -> bytes:
    """Return the item of a proposed presentation context."""
    syntaxes = [encode_item(0x30, uid) for uid in abstract] + [encode_item(0x40, uid) for uid in transfer]
    return encode_item(0x20, bytes((number, 0, 0, 0)) + b"".join(syntaxes))


standard_user_items = (
    encode_item(0x51, struct.pack(">L", 16384)),
    encode_item(0x52, b"1.2.3.4"),
    encode_item(0x55, b"TEST_1"),
)
"""Maximum length, implementation class UID and version name."""


@dataclass(frozen=True)
class AssociateRequest:
    """An A-ASSOCIATE-RQ, part by part."""

    version: int = 1
    called: bytes = b"DICOMNODE"
    calling: bytes = b"SCANNER"
    names: tuple[bytes, ...] = (CONTEXT_NAME,)
    contexts: tuple[bytes, ...] = (encode_context_item(1),)
    user: tuple[bytes, ...] = standard_user_items
    tail: bytes = b""

    @property
    def body(self) -> bytes:
        """Body of the PDU, without its header."""
        titles = self.called.ljust(16)[:16] + self.calling.ljust(16)[:16]
        items = [*(encode_item(0x10, name) for name in self.names), *self.contexts]
        items += [encode_item(0x50, b"".join(self.user))] if self.user else []
        return struct.pack(">HH", self.version, 0) + titles + bytes(32) + b"".join(items) + self.tail

    def encode(self) -> bytes:
        """Return the PDU."""
        return struct.pack(">BBL", 1, 0, len(self.body)) + self.body


def read_pdu(sock: socket.socket) -> bytes:
    """Return the next PDU; empty where the connection ends without one."""
    head = sock.recv(6, socket.MSG_WAITALL)
    if len(head) < 6:
        return b""
    length = struct.unpack(">BBL", head)[2]
    return head + (sock.recv(length, socket.MSG_WAITALL) if length else b"")


def read_results(pdu: bytes) -> dict[int, int]:
    """Return the result of each presentation context by its ID, from an A-ASSOCIATE-AC."""
    results, at = {}, 74
    while at < len(pdu):
        kind, length = pdu[at], int.from_bytes(pdu[at + 2 : at + 4], "big")
        if kind == 0x21:
            results[pdu[at + 4]] = pdu[at + 6]
        at += 4 + length
    return results


class RawAssociation:
    """An established association; presentation context 1 is that of the instance."""

    context_id = 1

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    @classmethod
    @contextmanager
    def open(cls, port: int, each: Encoded) -> Iterator[RawAssociation]:
        """Associate for the instance's SOP class and transfer syntax; release at the end."""
        context = encode_context_item(1, (each.sop_class_uid.encode(),), (each.transfer_syntax_uid.encode(),))
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            sock.sendall(AssociateRequest(contexts=(context,)).encode())
            assert read_results(read_pdu(sock)) == {1: 0}
            yield cls(sock)
            with suppress(OSError):  # the test, or the receiver, may have ended the connection
                sock.sendall(_RELEASE_RQ)
                read_pdu(sock)

    def send(self, content: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(content)

    def abort(self) -> None:
        """Send an A-ABORT and close the connection."""
        self.socket.sendall(_ABORT)
        self.socket.close()

    def read_response(self) -> Dataset:
        """Return the command set of the next DIMSE response (PS3.7 6.3.1)."""
        command, is_last = b"", False
        while not is_last:
            pdu = read_pdu(self.socket)
            assert pdu[:1] == bytes([P_DATA]), "the receiver has ended the association"
            at = 6
            while at < len(pdu):
                size, _, control = struct.unpack_from(">LBB", pdu, at)
                command += pdu[at + 6 : at + 4 + size]
                is_last = bool(control & 2)
                at += 4 + size
        return read_dataset(io.BytesIO(command), is_implicit_VR=True, is_little_endian=True)

    def is_aborted(self) -> bool:
        """Return whether the receiver answers with an A-ABORT; a reset of the connection may have destroyed it."""
        try:
            return read_pdu(self.socket)[:1] == bytes([ABORTED])
        except ConnectionResetError:
            return True
