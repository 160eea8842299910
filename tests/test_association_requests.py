"""Association requests, well formed or not, are served or refused with the reason of PS3.8, without a traceback."""

from __future__ import annotations

import logging
import random
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pynetdicom.pdu import A_ASSOCIATE_RQ

from dicomnode.ingest import requests
from tests import databases
from tests.peers.process import wait_for
from tests.raw_associations import (
    ABORTED,
    ACCEPTED,
    CONTEXT_NAME,
    EXPLICIT,
    MR,
    REJECTED,
    AssociateRequest,
    encode_context_item,
    encode_item,
    read_pdu,
    read_results,
    standard_user_items,
)
from tests.receivers import Start, start

__all__ = ["start"]  # fixtures

_LENGTH, _CLASS_UID, _VERSION_NAME = standard_user_items


def _send_request(port: int, request: bytes) -> bytes:
    """Send the request; return the first PDU of the answer, or no bytes if the connection ends without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(request)
        try:
            pdu = read_pdu(sock)
            if pdu[:1] == b"\2":
                sock.sendall(b"\7\0\0\0\0\4\0\0\0\0")
        except ConnectionResetError:
            return b""
        return pdu


@pytest.fixture
def no_traceback(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail the test if a thread raises or the node logs an error."""
    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    yield
    assert raised == []
    errors = [each for each in caplog.get_records("call") if each.levelno >= logging.ERROR]
    assert [each.getMessage() for each in errors if each.name.startswith("dicomnode")] == []


@pytest.fixture(scope="module")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return an SQLite database: nothing is stored, so one kind is enough."""
    return databases.copy_sqlite(tmp_path_factory.mktemp("database") / "node.sqlite")


_ROLE = encode_item(0x54, struct.pack(">H", len(MR)) + MR + b"\1\1")
_CORRECTED = {
    "as it should be": AssociateRequest(),
    "called AE title blank": AssociateRequest(called=b" " * 16),
    "called AE title of NUL": AssociateRequest(called=b"\0" * 16),
    "called AE title not ASCII": AssociateRequest(called="MÜLLER".encode("latin-1")),
    "calling AE title with NUL at its end": AssociateRequest(calling=b"SCANNER\0\0\0\0\0\0\0\0\0"),
    "calling AE title behind spaces": AssociateRequest(calling=b"  SCANNER"),
    "further versions offered": AssociateRequest(version=0x8003),
    "version name over 16 characters": AssociateRequest(
        user=(_LENGTH, _CLASS_UID, encode_item(0x55, b"A_VERSION_NAME_THAT_IS_LONG"))
    ),
    "version name empty": AssociateRequest(user=(_LENGTH, _CLASS_UID, encode_item(0x55, b""))),
    "version name not ASCII": AssociateRequest(user=(_LENGTH, _CLASS_UID, encode_item(0x55, b"\xff\xfe\r\n"))),
    "no maximum length": AssociateRequest(user=(_CLASS_UID, _VERSION_NAME)),
    "maximum length of two bytes": AssociateRequest(user=(encode_item(0x51, b"\1\1"), _CLASS_UID)),
    "no limit of length": AssociateRequest(user=(encode_item(0x51, bytes(4)), _CLASS_UID)),
    "no implementation class UID": AssociateRequest(user=(_LENGTH,)),
    "implementation class UID that is none": AssociateRequest(user=(_LENGTH, encode_item(0x52, b"what\n"))),
    "no user information": AssociateRequest(user=()),
    "UIDs ended by NUL": AssociateRequest(contexts=(encode_context_item(1, (MR + b"\0",), (EXPLICIT + b"\0",)),)),
    "UIDs ended by spaces": AssociateRequest(
        names=(CONTEXT_NAME + b" ",), contexts=(encode_context_item(1, (MR + b" ",)),)
    ),
    "reserved item types": AssociateRequest(
        user=(_LENGTH, _CLASS_UID, encode_item(0x7F, b"x")), tail=encode_item(0x99, b"abc")
    ),
    "zeros behind the last item": AssociateRequest(tail=bytes(7)),
    "role of both": AssociateRequest(user=(_LENGTH, _CLASS_UID, _ROLE)),
    "role of neither": AssociateRequest(user=(_LENGTH, _CLASS_UID, _ROLE[:-2] + b"\0\0")),
    "role of many": AssociateRequest(user=(_LENGTH, _CLASS_UID, _ROLE[:-2] + b"\7\7")),
    "role without a class": AssociateRequest(user=(_LENGTH, _CLASS_UID, encode_item(0x54, b"\xff\xff"))),
    "role twice": AssociateRequest(user=(_LENGTH, _CLASS_UID, _ROLE, _ROLE)),
    "window of four operations": AssociateRequest(user=(_LENGTH, _CLASS_UID, encode_item(0x53, b"\0\4\0\4"))),
    "window cut short": AssociateRequest(user=(_LENGTH, _CLASS_UID, encode_item(0x53, b"\0"))),
    "user identity": AssociateRequest(user=(_LENGTH, _CLASS_UID, encode_item(0x58, b"\2\1\0\4USER\0\1x"))),
    "user identity that is none": AssociateRequest(user=(_LENGTH, _CLASS_UID, encode_item(0x58, b"\x77\xff\xff"))),
    "common extended negotiation that is none": AssociateRequest(
        user=(_LENGTH, _CLASS_UID, encode_item(0x57, b"\xff\xff\1"))
    ),
    "extended negotiation that is none": AssociateRequest(user=(_LENGTH, _CLASS_UID, encode_item(0x56, b"\0\xff1"))),
    "everything twice": AssociateRequest(names=(CONTEXT_NAME,) * 2, user=(_LENGTH, _LENGTH, _CLASS_UID, _CLASS_UID)),
}


@pytest.mark.usefixtures("no_traceback")
def test_a_request_with_one_reading_is_served(start: Start) -> None:
    receiver = start()
    answers = {name: _send_request(receiver.port, request.encode()) for name, request in _CORRECTED.items()}
    assert {name: (answer[0], read_results(answer)) for name, answer in answers.items()} == dict.fromkeys(
        answers, (ACCEPTED, {1: 0})
    )


_UNSUPPORTED = {
    "no abstract syntax": (encode_context_item(3, ()), 3),
    "an abstract syntax that is no UID": (encode_context_item(3, (b"\xff\xfe\n",)), 3),
    "two abstract syntaxes": (encode_context_item(3, (MR, b"1.2.840.10008.5.1.4.1.1.2")), 3),
    "an abstract syntax of 70 characters": (encode_context_item(3, (b"1." * 34 + b"12",)), 3),
    "no transfer syntax": (encode_context_item(3, (MR,), ()), 4),
    "a transfer syntax that is no UID": (encode_context_item(3, (MR,), (b"what",)), 4),
    "an unknown transfer syntax": (encode_context_item(3, (MR,), (b"1.2.3",)), 4),
    "3000 unknown transfer syntaxes": (encode_context_item(3, (MR,), tuple(b"1.2.%d" % at for at in range(3000))), 4),
}


@pytest.mark.usefixtures("no_traceback")
def test_a_context_that_cannot_be_used_does_not_cost_the_others(start: Start) -> None:
    receiver = start()
    for name, (context, result) in _UNSUPPORTED.items():
        answer = _send_request(receiver.port, AssociateRequest(contexts=(encode_context_item(1), context)).encode())
        assert read_results(answer) == {1: 0, 3: result}, name


_REFUSED = {
    "calling AE title blank": (AssociateRequest(calling=b" " * 16), (1, 1, 3), "calling AE title"),
    "calling AE title of NUL": (AssociateRequest(calling=b"\0" * 16), (1, 1, 3), "calling AE title"),
    "calling AE title not ASCII": (AssociateRequest(calling="MÜLLER".encode()), (1, 1, 3), "calling AE title"),
    "calling AE title with a line feed": (AssociateRequest(calling=b"A\nERROR"), (1, 1, 3), "calling AE title"),
    "calling AE title of two values": (AssociateRequest(calling=b"A\\B"), (1, 1, 3), "calling AE title"),
    "another version": (AssociateRequest(version=2), (1, 2, 2), "version"),
    "no application context": (AssociateRequest(names=()), (1, 1, 2), "application context"),
    "another application context": (AssociateRequest(names=(b"1.2.3",)), (1, 1, 2), "application context"),
    "no presentation context": (AssociateRequest(contexts=()), (1, 1, 1), "no presentation context"),
    "even context ID": (AssociateRequest(contexts=(encode_context_item(2),)), (1, 1, 1), "context ID"),
    "context ID zero": (AssociateRequest(contexts=(encode_context_item(0),)), (1, 1, 1), "context ID"),
    "context ID twice": (
        AssociateRequest(contexts=(encode_context_item(1), encode_context_item(1, (b"1.2.3",)))),
        (1, 1, 1),
        "context ID",
    ),
    "a PDU of one byte": (AssociateRequest(user=(encode_item(0x51, b"\0\0\0\1"), _CLASS_UID)), (1, 1, 1), "16 bytes"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize("name", _REFUSED)
def test_a_request_that_cannot_be_served_is_refused_with_the_reason(
    start: Start, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    request, codes, explanation = _REFUSED[name]
    answer = _send_request(start().port, request.encode())
    assert (answer[0], tuple(answer[7:10])) == (REJECTED, codes)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "dicomnode.ingest.scp"]
    assert explanation in line
    assert "\n" not in line


_UNREADABLE = {
    "no fixed fields": struct.pack(">BBL", 1, 0, 20) + bytes(20),
    "nothing": struct.pack(">BBL", 1, 0, 0),
    "an item that is too long": AssociateRequest(tail=b"\x20\0\xff\xff1").encode(),
    "a sub-item that is too long": AssociateRequest(contexts=(encode_item(0x20, b"\1\0\0\0\x30\0\0\x99"),)).encode(),
    "a context without an ID": AssociateRequest(contexts=(encode_item(0x20, b"\1"),)).encode(),
    "an end inside an item": AssociateRequest(tail=b"\x20\0\1").encode(),
    "another PDU": struct.pack(">BBL", 2, 0, 4) + bytes(4),
    "an unknown PDU": b"GET / HTTP/1.1\r\n\r\n",
    "a PDU of four gigabytes": b"\1\0\xff\xff\xff\xff",
    "data before a request": b"\4\0\0\0\0\2ab",
    "a release before a request": b"\5\0\0\0\0\4\0\0\0\0",
    "an abort before a request": b"\7\0\0\0\0\4\0\0\0\0",
}


@pytest.mark.slow
@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize("name", _UNREADABLE)
def test_what_is_no_request_ends_in_an_abort_and_one_log_line(
    start: Start, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    receiver = start()
    answer = _send_request(receiver.port, _UNREADABLE[name])
    assert answer[:1] in ((b"",) if name == "an abort before a request" else (bytes([ABORTED]),))
    wait_for(lambda: not receiver.server.active_associations, "the connection is given up")
    lines = [record.getMessage() for record in caplog.records if record.name == "dicomnode.ingest.scp"]
    assert len(lines) == 1
    assert lines[0].startswith("127.0.0.1: ")


def _mutate(rng: random.Random, request: AssociateRequest) -> bytes:
    """Return a request with some parts replaced, and then some bytes."""
    values = [b"", b"\0" * 16, b"\xff" * 20, b"1.2.3", b"1" * 70, MR, CONTEXT_NAME, b"\0\1", b"\x10\0\0\5"]
    kinds = [0x10, 0x20, 0x21, 0x30, 0x40, 0x50, *range(0x51, 0x59), 0x99]
    items = tuple(encode_item(rng.choice(kinds), rng.choice(values)) for _ in range(rng.randrange(4)))
    contexts = tuple(
        encode_context_item(
            rng.randrange(256),
            tuple(rng.choices(values, k=rng.randrange(3))),
            tuple(rng.choices(values, k=rng.randrange(3))),
        )
        for _ in range(rng.randrange(5))
    )
    parts: dict[str, Any] = {
        "version": rng.randrange(65536),
        "called": rng.choice(values),
        "calling": rng.choice(values),
        "names": tuple(rng.choices(values, k=rng.randrange(3))),
        "contexts": contexts,
        "user": items,
        "tail": rng.choice(values),
    }
    names = rng.sample(sorted(parts), rng.randrange(1, 4))
    content = bytearray(replace(request, **{name: parts[name] for name in names}).encode())
    for _ in range(rng.choice((0, 0, 1, 3))):
        content[rng.randrange(6, len(content))] = rng.randrange(256)
    return bytes(content)


@pytest.mark.slow
def test_every_request_that_can_be_read_is_one_that_pynetdicom_takes() -> None:
    rng, read = random.Random(19), 0
    for _ in range(4000):
        mutated = _mutate(rng, AssociateRequest(user=(_LENGTH, _CLASS_UID, _VERSION_NAME, _ROLE)))
        try:
            encoded, _ = requests.normalise_request(mutated[6:], "DICOMNODE")
        except requests.UnreadableError:
            continue
        read += 1
        pdu = A_ASSOCIATE_RQ()
        pdu.decode(encoded)
        primitive = pdu.to_primitive()
        assert primitive.calling_ae_title
        assert all(context.context_id % 2 for context in primitive.presentation_context_definition_list)
        assert requests.normalise_request(encoded[6:], "DICOMNODE")[0] == encoded
    assert 1000 < read < 4000


@pytest.mark.slow
@pytest.mark.usefixtures("no_traceback")
def test_no_request_brings_a_thread_down(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    receiver, rng, answers = start(), random.Random(91), []
    for _ in range(250):
        answers.append(_send_request(receiver.port, _mutate(rng, AssociateRequest()))[:1])
    assert set(answers) == {bytes([kind]) for kind in (ACCEPTED, REJECTED, ABORTED)}
    wait_for(lambda: not receiver.server.active_associations, "all are over")
    assert read_results(_send_request(receiver.port, AssociateRequest().encode())) == {1: 0}
