"""A receiver and a web of the node in the fuzzing process, and the check that both still serve."""

from __future__ import annotations

import atexit
import shutil
import socket
import struct
import tempfile
from contextlib import suppress
from functools import cache
from http.client import HTTPConnection
from pathlib import Path

from db import engine as engines
from dicomnode.config import Config
from dicomnode.config.database import DatabaseConfig
from dicomnode.config.limits import LimitsConfig
from dicomnode.config.node import NodeConfig
from dicomnode.config.spool import SpoolConfig
from tests import databases
from tests.fuzz.oracle import recorded_errors
from tests.raw_associations import (
    IMPLICIT,
    VERIFICATION,
    AssociateRequest,
    encode_context_item,
    read_pdu,
    read_results,
)
from tests.receivers import Receiver
from tests.sending import encode_p_data
from tests.web_node import Web

__all__ = ["check_health", "converse", "encode_command", "exchange", "running_receiver", "running_web"]

_FIND, _MOVE, _GET = (b"1.2.840.10008.5.1.4.1.2.2.%d" % number for number in (1, 2, 3))
_ASSOCIATE = AssociateRequest(
    contexts=(
        encode_context_item(1),
        encode_context_item(3, (VERIFICATION,), (IMPLICIT,)),
        encode_context_item(5, (_FIND,), (IMPLICIT,)),
        encode_context_item(7, (_MOVE,), (IMPLICIT,)),
        encode_context_item(9, (_GET,), (IMPLICIT,)),
    )
).encode()
_ECHO = AssociateRequest(contexts=(encode_context_item(1, (VERIFICATION,), (IMPLICIT,)),)).encode()
_NO_DATA_SET = b"\1\1"
_RELEASE = b"\5\0\0\0\0\4\0\0\0\0"
_ANSWER_S = 20.0


@cache
def running_receiver() -> Receiver:
    """Start the receiver once in this process."""
    folder = _folder()
    url = databases.copy_sqlite(folder / "node.sqlite")
    config = Config(
        node=NodeConfig(host="127.0.0.1", port=0, data_dir=folder / "data", network_timeout_s=10),
        database=DatabaseConfig(url=url),
        spool=SpoolConfig(min_free_gb=0, refuse_at_percent=100),
        limits=LimitsConfig(associations_per_address=32),
        path=folder / "node.toml",
    )
    receiver = Receiver(config, engines.connect(url))
    atexit.register(receiver.server.stop)
    return receiver


@cache
def running_web() -> Web:
    """Start the web once in this process."""
    web = Web(_folder())
    web.__enter__()
    atexit.register(web.__exit__)
    return web


def converse(messages: bytes) -> None:
    """Send messages on an association; then the receiver has to serve a C-ECHO, and nothing may have broken in it."""
    receiver = running_receiver()
    with recorded_errors() as errors:
        exchange(receiver.port, _ASSOCIATE, messages)
        _check_echo(receiver.port)
    assert not errors, errors


def exchange(port: int, *sent: bytes) -> bytes:
    """Send bytes, say that no more follow, and return what comes back until the other side ends."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_S) as sock, suppress(ConnectionError):
        for piece in sent:
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        while piece := sock.recv(65536):
            answer += piece
    return answer


def check_health(web: Web) -> None:
    """Raise AssertionError unless /healthz answers."""
    connection = HTTPConnection("127.0.0.1", web.port, timeout=_ANSWER_S)
    connection.request("GET", "/healthz")
    assert connection.getresponse().status == 200
    connection.close()


def encode_command(elements: dict[int, bytes]) -> bytes:
    """Return a command set of group 0000 without its length, in Implicit VR Little Endian (PS3.7 6.3.1)."""
    return b"".join(struct.pack("<HHL", 0, number, len(value)) + value for number, value in elements.items())


def _check_echo(port: int) -> None:
    request = {0x0002: VERIFICATION + b"\0", 0x0100: b"\x30\0", 0x0110: b"\1\0", 0x0800: _NO_DATA_SET}
    with socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_S) as sock:
        sock.sendall(_ECHO)
        assert read_results(read_pdu(sock)) == {1: 0}
        sock.sendall(encode_p_data(1, (3, encode_command(request))))
        assert b"\0\0\0\x09\2\0\0\0\0\0" in read_pdu(sock), "C-ECHO does not succeed"
        sock.sendall(_RELEASE)
        read_pdu(sock)


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="dicomnode-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
