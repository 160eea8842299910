"""Malformed messages on an association are answered or aborted, without a traceback."""

from __future__ import annotations

import random
import socket
import struct
from pathlib import Path

import pytest

from tests.peers.files import write_instance
from tests.peers.process import wait_for
from tests.raw_associations import (
    IMPLICIT,
    MR,
    VERIFICATION,
    AssociateRequest,
    encode_context_item,
    read_pdu,
    read_results,
)
from tests.receivers import Start, start
from tests.sending import Encoded, encode_p_data, encode_store_request, read_encoded
from tests.test_association_requests import database_url, no_traceback

__all__ = ["database_url", "no_traceback", "start"]  # fixtures

_FIND = b"1.2.840.10008.5.1.4.1.2.2.1"
_ASSOCIATE = AssociateRequest(
    contexts=(
        encode_context_item(1),
        encode_context_item(3, (VERIFICATION,), (IMPLICIT,)),
        encode_context_item(5, (_FIND,), (IMPLICIT,)),
    )
).encode()
_NUMBERS = (0x0002, 0x0003, 0x0100, 0x0110, 0x0120, 0x0600, 0x0700, 0x0800, 0x0900, 0x1000, 0x1031)
_COMMANDS = (0x0001, 0x0010, 0x0020, 0x0021, 0x0030, 0x0FFF, 0x8001, 0x8020, 0x0100, 0x0140)


def _encode_element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def _make_command(rng: random.Random) -> bytes:
    """Return a command set with random correct, wrong and missing elements."""
    values = [b"", b"\0\0", b"\1\0", b"\1\1", b"\xff\xff", b"1.2.3\0", MR + b"\0", VERIFICATION + b"\0", _FIND + b"\0"]
    values += [b"\xff" * 70, b"A\nB\0"]
    elements = {0x0002: rng.choice(values[6:9]), 0x0100: struct.pack("<H", rng.choice(_COMMANDS))}
    elements |= {0x0110: b"\7\0", 0x0800: rng.choice((b"\1\1", b"\0\0")), 0x0700: b"\0\0", 0x1000: b"1.2.3\0"}
    for number in rng.sample(_NUMBERS, rng.randrange(4)):
        elements[number] = rng.choice(values)
    for number in rng.sample(sorted(elements), rng.randrange(2)):
        del elements[number]
    return b"".join(_encode_element(number, elements[number]) for number in sorted(elements))


def _make_messages(rng: random.Random, each: Encoded) -> bytes:
    pdus = []
    for _ in range(rng.randrange(1, 4)):
        context, command = rng.choice((1, 3, 5, 7)), _make_command(rng)
        data = rng.choice((each.data_set, b"\x08\0\x52\0\6\0\0\0STUDY ", b"\xff" * 40, b"", bytes(200)))
        fragments = [(3, command), (2, data)][: rng.choice((1, 2, 2))]
        pdu = bytearray(encode_p_data(context, *fragments))
        for _ in range(rng.choice((0, 0, 0, 1, 3))):
            pdu[rng.randrange(6, len(pdu))] = rng.randrange(256)
        pdus.append(bytes(pdu))
    return b"".join(pdus) + rng.choice((b"", b"\5\0\0\0\0\4\0\0\0\0", b"\7\0\0\0\0\4\0\0\0\0"))


def _converse(port: int, messages: bytes) -> None:
    """Associate, send the messages, and read until the node ends the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(_ASSOCIATE)
        assert read_results(read_pdu(sock)) == {1: 0, 3: 0, 5: 0}
        try:
            sock.sendall(messages)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        except OSError:
            return


_ABORTS = {
    "a reserved reason": b"\0\0\2\3",
    "an unknown source": b"\0\0\7\0",
    "a byte more": b"\0\0\2\0\0",
    "nothing": b"",
}


@pytest.mark.parametrize("what", _ABORTS)
@pytest.mark.usefixtures("no_traceback")
def test_an_abort_with_fields_that_mean_nothing_ends_the_association(start: Start, what: str) -> None:
    receiver, body = start(), _ABORTS[what]
    _converse(receiver.port, struct.pack(">BBL", 7, 0, len(body)) + body)
    wait_for(lambda: not receiver.server.active_associations, "it has ended")


@pytest.mark.usefixtures("no_traceback")
def test_a_command_field_of_one_byte_aborts_the_association(start: Start) -> None:
    receiver = start()
    command = _encode_element(0x0002, MR + b"\0") + _encode_element(0x0100, b"\1") + _encode_element(0x0800, b"\1\1")
    _converse(receiver.port, encode_p_data(1, (3, command)))
    wait_for(lambda: not receiver.server.active_associations, "it has ended")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # pydicom warns about UIDs and continues
@pytest.mark.usefixtures("no_traceback")
def test_no_message_brings_a_thread_down(start: Start, tmp_path: Path) -> None:
    receiver, rng = start(), random.Random(7)
    write_instance(tmp_path / "a.dcm")
    each = read_encoded(tmp_path / "a.dcm")
    for _ in range(250):
        _converse(receiver.port, _make_messages(rng, each))
    wait_for(lambda: not receiver.server.active_associations, "all are over")
    _converse(receiver.port, encode_p_data(1, (3, encode_store_request(each)), (2, each.data_set)))
    wait_for(lambda: len(receiver.rows()) == 1, "a right one is stored")
