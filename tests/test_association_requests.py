"""Association requests as peers word them: served, or refused with the reason of PS3.8; never a traceback."""

from __future__ import annotations

import logging
import random
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pynetdicom.pdu import A_ASSOCIATE_RQ

from dicomnode.ingest import requests
from tests import databases
from tests.peers.process import wait_for
from tests.receivers import Start, start

__all__ = ["start"]  # fixtures

ACCEPTED, REJECTED, ABORTED = 2, 3, 7
MR, EXPLICIT, IMPLICIT = b"1.2.840.10008.5.1.4.1.1.4", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2"
CONTEXT_NAME = b"1.2.840.10008.3.1.1.1"


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def _context(number: int, abstract: tuple[bytes, ...] = (MR,), transfer: tuple[bytes, ...] = (EXPLICIT,)) -> bytes:
    syntaxes = [_item(0x30, uid) for uid in abstract] + [_item(0x40, uid) for uid in transfer]
    return _item(0x20, bytes((number, 0, 0, 0)) + b"".join(syntaxes))


_LENGTH = _item(0x51, struct.pack(">L", 16384))
_CLASS_UID = _item(0x52, b"1.2.3.4")
_VERSION_NAME = _item(0x55, b"TEST_1")


@dataclass(frozen=True)
class Request:
    """An A-ASSOCIATE-RQ, part by part."""

    version: int = 1
    called: bytes = b"DICOMNODE"
    calling: bytes = b"SCANNER"
    names: tuple[bytes, ...] = (CONTEXT_NAME,)
    contexts: tuple[bytes, ...] = (_context(1),)
    user: tuple[bytes, ...] = (_LENGTH, _CLASS_UID, _VERSION_NAME)
    tail: bytes = b""

    @property
    def body(self) -> bytes:
        titles = self.called.ljust(16)[:16] + self.calling.ljust(16)[:16]
        items = [*(_item(0x10, name) for name in self.names), *self.contexts]
        items += [_item(0x50, b"".join(self.user))] if self.user else []
        return struct.pack(">HH", self.version, 0) + titles + bytes(32) + b"".join(items) + self.tail

    def encoded(self) -> bytes:
        return struct.pack(">BBL", 1, 0, len(self.body)) + self.body


def _answer(port: int, request: bytes) -> bytes:
    """The first PDU that comes back; empty where the connection ends without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(request)
        try:
            head = sock.recv(6, socket.MSG_WAITALL)
            pdu = head + sock.recv(struct.unpack(">BBL", head)[2], socket.MSG_WAITALL) if len(head) == 6 else b""
            if pdu[:1] == b"\2":
                sock.sendall(b"\7\0\0\0\0\4\0\0\0\0")
        except ConnectionResetError:
            return b""
        return pdu


def _results(pdu: bytes) -> dict[int, int]:
    """Presentation context ID to result in an A-ASSOCIATE-AC."""
    found, at = {}, 74
    while at < len(pdu):
        kind, length = pdu[at], int.from_bytes(pdu[at + 2 : at + 4], "big")
        if kind == 0x21:
            found[pdu[at + 4]] = pdu[at + 6]
        at += 4 + length
    return found


@pytest.fixture
def no_traceback(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a thread raises, or an association's door catches and tells as an error of ours, fails the test."""
    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    yield
    assert raised == []
    told = [each for each in caplog.get_records("call") if each.levelno >= logging.ERROR]
    assert [each.getMessage() for each in told if each.name.startswith("dicomnode")] == []


@pytest.fixture(scope="module")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One kind of database is enough here: nothing is stored."""
    return databases.migrated_sqlite(tmp_path_factory.mktemp("database") / "node.sqlite")


_ROLE = _item(0x54, struct.pack(">H", len(MR)) + MR + b"\1\1")
_MENDED = {
    "as it should be": Request(),
    "called AE title blank": Request(called=b" " * 16),
    "called AE title of NUL": Request(called=b"\0" * 16),
    "called AE title not ASCII": Request(called="MÜLLER".encode("latin-1")),
    "calling AE title with NUL at its end": Request(calling=b"SCANNER\0\0\0\0\0\0\0\0\0"),
    "calling AE title behind spaces": Request(calling=b"  SCANNER"),
    "further versions offered": Request(version=0x8003),
    "version name over 16 characters": Request(user=(_LENGTH, _CLASS_UID, _item(0x55, b"A_VERSION_NAME_THAT_IS_LONG"))),
    "version name empty": Request(user=(_LENGTH, _CLASS_UID, _item(0x55, b""))),
    "version name not ASCII": Request(user=(_LENGTH, _CLASS_UID, _item(0x55, b"\xff\xfe\r\n"))),
    "no maximum length": Request(user=(_CLASS_UID, _VERSION_NAME)),
    "maximum length of two bytes": Request(user=(_item(0x51, b"\1\1"), _CLASS_UID)),
    "no limit of length": Request(user=(_item(0x51, bytes(4)), _CLASS_UID)),
    "no implementation class UID": Request(user=(_LENGTH,)),
    "implementation class UID that is none": Request(user=(_LENGTH, _item(0x52, b"what\n"))),
    "no user information": Request(user=()),
    "UIDs ended by NUL": Request(contexts=(_context(1, (MR + b"\0",), (EXPLICIT + b"\0",)),)),
    "UIDs ended by spaces": Request(names=(CONTEXT_NAME + b" ",), contexts=(_context(1, (MR + b" ",)),)),
    "reserved item types": Request(user=(_LENGTH, _CLASS_UID, _item(0x7F, b"x")), tail=_item(0x99, b"abc")),
    "zeros behind the last item": Request(tail=bytes(7)),
    "role of both": Request(user=(_LENGTH, _CLASS_UID, _ROLE)),
    "role of neither": Request(user=(_LENGTH, _CLASS_UID, _ROLE[:-2] + b"\0\0")),
    "role of many": Request(user=(_LENGTH, _CLASS_UID, _ROLE[:-2] + b"\7\7")),
    "role without a class": Request(user=(_LENGTH, _CLASS_UID, _item(0x54, b"\xff\xff"))),
    "role twice": Request(user=(_LENGTH, _CLASS_UID, _ROLE, _ROLE)),
    "window of four operations": Request(user=(_LENGTH, _CLASS_UID, _item(0x53, b"\0\4\0\4"))),
    "window cut short": Request(user=(_LENGTH, _CLASS_UID, _item(0x53, b"\0"))),
    "user identity": Request(user=(_LENGTH, _CLASS_UID, _item(0x58, b"\2\1\0\4USER\0\1x"))),
    "user identity that is none": Request(user=(_LENGTH, _CLASS_UID, _item(0x58, b"\x77\xff\xff"))),
    "common extended negotiation that is none": Request(user=(_LENGTH, _CLASS_UID, _item(0x57, b"\xff\xff\1"))),
    "extended negotiation that is none": Request(user=(_LENGTH, _CLASS_UID, _item(0x56, b"\0\xff1"))),
    "everything twice": Request(names=(CONTEXT_NAME,) * 2, user=(_LENGTH, _LENGTH, _CLASS_UID, _CLASS_UID)),
}


@pytest.mark.usefixtures("no_traceback")
def test_a_request_with_one_reading_is_served(start: Start) -> None:
    receiver = start()
    answers = {name: _answer(receiver.port, request.encoded()) for name, request in _MENDED.items()}
    assert {name: (answer[0], _results(answer)) for name, answer in answers.items()} == dict.fromkeys(
        answers, (ACCEPTED, {1: 0})
    )


_UNSUPPORTED = {
    "no abstract syntax": (_context(3, ()), 3),
    "an abstract syntax that is no UID": (_context(3, (b"\xff\xfe\n",)), 3),
    "two abstract syntaxes": (_context(3, (MR, b"1.2.840.10008.5.1.4.1.1.2")), 3),
    "an abstract syntax of 70 characters": (_context(3, (b"1." * 34 + b"12",)), 3),
    "no transfer syntax": (_context(3, (MR,), ()), 4),
    "a transfer syntax that is no UID": (_context(3, (MR,), (b"what",)), 4),
    "an unknown transfer syntax": (_context(3, (MR,), (b"1.2.3",)), 4),
    "3000 unknown transfer syntaxes": (_context(3, (MR,), tuple(b"1.2.%d" % at for at in range(3000))), 4),
}


@pytest.mark.usefixtures("no_traceback")
def test_a_context_that_cannot_be_used_does_not_cost_the_others(start: Start) -> None:
    receiver = start()
    for name, (context, result) in _UNSUPPORTED.items():
        answer = _answer(receiver.port, Request(contexts=(_context(1), context)).encoded())
        assert _results(answer) == {1: 0, 3: result}, name


_REFUSED = {
    "calling AE title blank": (Request(calling=b" " * 16), (1, 1, 3), "calling AE title"),
    "calling AE title of NUL": (Request(calling=b"\0" * 16), (1, 1, 3), "calling AE title"),
    "calling AE title not ASCII": (Request(calling="MÜLLER".encode()), (1, 1, 3), "calling AE title"),
    "calling AE title with a line feed": (Request(calling=b"A\nERROR"), (1, 1, 3), "calling AE title"),
    "calling AE title of two values": (Request(calling=b"A\\B"), (1, 1, 3), "calling AE title"),
    "another version": (Request(version=2), (1, 2, 2), "version"),
    "no application context": (Request(names=()), (1, 1, 2), "application context"),
    "another application context": (Request(names=(b"1.2.3",)), (1, 1, 2), "application context"),
    "no presentation context": (Request(contexts=()), (1, 1, 1), "no presentation context"),
    "even context ID": (Request(contexts=(_context(2),)), (1, 1, 1), "context ID"),
    "context ID zero": (Request(contexts=(_context(0),)), (1, 1, 1), "context ID"),
    "context ID twice": (Request(contexts=(_context(1), _context(1, (b"1.2.3",)))), (1, 1, 1), "context ID"),
    "a PDU of one byte": (Request(user=(_item(0x51, b"\0\0\0\1"), _CLASS_UID)), (1, 1, 1), "16 bytes"),
}


@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize("name", _REFUSED)
def test_a_request_that_cannot_be_served_is_refused_with_the_reason(
    start: Start, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    request, why, told = _REFUSED[name]
    answer = _answer(start().port, request.encoded())
    assert (answer[0], tuple(answer[7:10])) == (REJECTED, why)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "dicomnode.ingest.scp"]
    assert told in line
    assert "\n" not in line


_UNREADABLE = {
    "no fixed fields": struct.pack(">BBL", 1, 0, 20) + bytes(20),
    "nothing": struct.pack(">BBL", 1, 0, 0),
    "an item that is too long": Request(tail=b"\x20\0\xff\xff1").encoded(),
    "a sub-item that is too long": Request(contexts=(_item(0x20, b"\1\0\0\0\x30\0\0\x99"),)).encoded(),
    "a context without an ID": Request(contexts=(_item(0x20, b"\1"),)).encoded(),
    "an end inside an item": Request(tail=b"\x20\0\1").encoded(),
    "another PDU": struct.pack(">BBL", 2, 0, 4) + bytes(4),
    "an unknown PDU": b"GET / HTTP/1.1\r\n\r\n",
    "a PDU of four gigabytes": b"\1\0\xff\xff\xff\xff",
    "data before a request": b"\4\0\0\0\0\2ab",
    "a release before a request": b"\5\0\0\0\0\4\0\0\0\0",
    "an abort before a request": b"\7\0\0\0\0\4\0\0\0\0",
}


@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize("name", _UNREADABLE)
def test_what_is_no_request_ends_in_an_abort_and_one_log_line(
    start: Start, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    receiver = start()
    answer = _answer(receiver.port, _UNREADABLE[name])
    assert answer[:1] in ((b"",) if name == "an abort before a request" else (bytes([ABORTED]),))
    wait_for(lambda: not receiver.server.active_associations, "the connection is given up")
    lines = [record.getMessage() for record in caplog.records if record.name == "dicomnode.ingest.scp"]
    assert len(lines) == 1
    assert lines[0].startswith("127.0.0.1: ")


def _mutated(moments: random.Random, request: Request) -> bytes:
    """One request with a part exchanged, and some bytes of it after that."""
    values = [b"", b"\0" * 16, b"\xff" * 20, b"1.2.3", b"1" * 70, MR, CONTEXT_NAME, b"\0\1", b"\x10\0\0\5"]
    kinds = [0x10, 0x20, 0x21, 0x30, 0x40, 0x50, *range(0x51, 0x59), 0x99]
    items = tuple(_item(moments.choice(kinds), moments.choice(values)) for _ in range(moments.randrange(4)))
    contexts = tuple(
        _context(
            moments.randrange(256),
            tuple(moments.choices(values, k=moments.randrange(3))),
            tuple(moments.choices(values, k=moments.randrange(3))),
        )
        for _ in range(moments.randrange(5))
    )
    parts: dict[str, Any] = {
        "version": moments.randrange(65536),
        "called": moments.choice(values),
        "calling": moments.choice(values),
        "names": tuple(moments.choices(values, k=moments.randrange(3))),
        "contexts": contexts,
        "user": items,
        "tail": moments.choice(values),
    }
    chosen = moments.sample(sorted(parts), moments.randrange(1, 4))
    content = bytearray(replace(request, **{name: parts[name] for name in chosen}).encoded())
    for _ in range(moments.choice((0, 0, 1, 3))):
        content[moments.randrange(6, len(content))] = moments.randrange(256)
    return bytes(content)


def test_every_request_that_can_be_read_is_one_that_pynetdicom_takes() -> None:
    moments, read = random.Random(19), 0
    for _ in range(4000):
        mutated = _mutated(moments, Request(user=(_LENGTH, _CLASS_UID, _VERSION_NAME, _ROLE)))
        try:
            encoded, _ = requests.tidied(mutated[6:], "DICOMNODE")
        except requests.UnreadableError:
            continue
        read += 1
        pdu = A_ASSOCIATE_RQ()
        pdu.decode(encoded)
        primitive = pdu.to_primitive()
        assert primitive.calling_ae_title
        assert all(context.context_id % 2 for context in primitive.presentation_context_definition_list)
        assert requests.tidied(encoded[6:], "DICOMNODE")[0] == encoded
    assert 1000 < read < 4000


@pytest.mark.usefixtures("no_traceback")
def test_no_request_brings_a_thread_down(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    receiver, moments, answers = start(), random.Random(91), []
    for _ in range(250):
        answers.append(_answer(receiver.port, _mutated(moments, Request()))[:1])
    assert set(answers) == {bytes([kind]) for kind in (ACCEPTED, REJECTED, ABORTED)}
    wait_for(lambda: not receiver.server.active_associations, "all are over")
    assert _results(_answer(receiver.port, Request().encoded())) == {1: 0}
