"""Messages on an association as nobody should send them: answered or aborted, never a traceback."""

from __future__ import annotations

import random
import socket
import struct
from pathlib import Path

import pytest

from tests.peers.files import write_instance
from tests.peers.process import wait_for
from tests.receivers import Start, start
from tests.sending import Encoded, encoded, p_data, store_request
from tests.test_association_requests import MR, Request, _context, _results, database_url, no_traceback

__all__ = ["database_url", "no_traceback", "start"]  # fixtures

_VERIFICATION, _FIND = b"1.2.840.10008.1.1", b"1.2.840.10008.5.1.4.1.2.2.1"
_IMPLICIT = b"1.2.840.10008.1.2"
_ASSOCIATE = Request(
    contexts=(_context(1), _context(3, (_VERIFICATION,), (_IMPLICIT,)), _context(5, (_FIND,), (_IMPLICIT,)))
).encoded()
_NUMBERS = (0x0002, 0x0003, 0x0100, 0x0110, 0x0120, 0x0600, 0x0700, 0x0800, 0x0900, 0x1000, 0x1031)
_COMMANDS = (0x0001, 0x0010, 0x0020, 0x0021, 0x0030, 0x0FFF, 0x8001, 0x8020, 0x0100, 0x0140)


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def _command(moments: random.Random) -> bytes:
    """A command set whose elements are right by turns, wrong, doubled or missing."""
    values = [b"", b"\0\0", b"\1\0", b"\1\1", b"\xff\xff", b"1.2.3\0", MR + b"\0", _VERIFICATION + b"\0", _FIND + b"\0"]
    values += [b"\xff" * 70, b"A\nB\0"]
    right = {0x0002: moments.choice(values[6:9]), 0x0100: struct.pack("<H", moments.choice(_COMMANDS))}
    right |= {0x0110: b"\7\0", 0x0800: moments.choice((b"\1\1", b"\0\0")), 0x0700: b"\0\0", 0x1000: b"1.2.3\0"}
    for number in moments.sample(_NUMBERS, moments.randrange(4)):
        right[number] = moments.choice(values)
    for number in moments.sample(sorted(right), moments.randrange(2)):
        del right[number]
    return b"".join(_element(number, right[number]) for number in sorted(right))


def _messages(moments: random.Random, each: Encoded) -> bytes:
    pdus = []
    for _ in range(moments.randrange(1, 4)):
        context, command = moments.choice((1, 3, 5, 7)), _command(moments)
        data = moments.choice((each.data_set, b"\x08\0\x52\0\6\0\0\0STUDY ", b"\xff" * 40, b"", bytes(200)))
        fragments = [(3, command), (2, data)][: moments.choice((1, 2, 2))]
        pdu = bytearray(p_data(context, *fragments))
        for _ in range(moments.choice((0, 0, 0, 1, 3))):
            pdu[moments.randrange(6, len(pdu))] = moments.randrange(256)
        pdus.append(bytes(pdu))
    return b"".join(pdus) + moments.choice((b"", b"\5\0\0\0\0\4\0\0\0\0", b"\7\0\0\0\0\4\0\0\0\0"))


def _converse(port: int, messages: bytes) -> None:
    """Associate, say it, and read until the other side has said everything."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(_ASSOCIATE)
        head = sock.recv(6, socket.MSG_WAITALL)
        assert _results(head + sock.recv(struct.unpack(">BBL", head)[2], socket.MSG_WAITALL)) == {1: 0, 3: 0, 5: 0}
        try:
            sock.sendall(messages)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        except OSError:
            return


@pytest.mark.filterwarnings("ignore")  # pydicom warns of UIDs, and goes on
@pytest.mark.usefixtures("no_traceback")
def test_no_message_brings_a_thread_down(start: Start, tmp_path: Path) -> None:
    receiver, moments = start(), random.Random(7)
    write_instance(tmp_path / "a.dcm")
    each = encoded(tmp_path / "a.dcm")
    for _ in range(250):
        _converse(receiver.port, _messages(moments, each))
    wait_for(lambda: not receiver.server.active_associations, "all are over")
    _converse(receiver.port, p_data(1, (3, store_request(each)), (2, each.data_set)))
    wait_for(lambda: len(receiver.rows()) == 1, "a right one is stored")
