"""The data transfer phase: every fragmentation is understood, every breach of the protocol ends in an abort."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.peers.files import write_instance
from tests.peers.process import wait_for
from tests.raw_associations import RawAssociation
from tests.receivers import Receiver, Start, an_instance, make_instances, receiver, start
from tests.sending import Encoded, associate, encode_p_data, encode_store_request, read_encoded, run_dcmtk, store_all

__all__ = ["an_instance", "receiver", "start"]  # fixtures

DATA, LAST_DATA, COMMAND, LAST_COMMAND = 0, 2, 1, 3


def _split(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def _fragment(each: Encoded, context: int, size: int, per_pdu: int) -> Iterable[bytes]:
    command, data = list(_split(encode_store_request(each), size)), list(_split(each.data_set, size))
    fragments = [(COMMAND, piece) for piece in command[:-1]] + [(LAST_COMMAND, command[-1])]
    fragments += [(DATA, piece) for piece in data[:-1]] + [(LAST_DATA, data[-1])]
    return (encode_p_data(context, *fragments[at : at + per_pdu]) for at in range(0, len(fragments), per_pdu))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "per_pdu"), [(2, 1), (10, 7), (100, 1), (100, 100_000), (100_000, 2)])
def test_every_fragmentation_is_understood(receiver: Receiver, an_instance: Encoded, size: int, per_pdu: int) -> None:
    with RawAssociation.open(receiver.port, an_instance) as assoc:
        for pdu in _fragment(an_instance, assoc.context_id, size, per_pdu):
            assoc.send(pdu)
        assert assoc.read_response().Status == 0
    (row,) = receiver.rows()
    assert receiver.data_set(row) == an_instance.data_set


def test_an_empty_last_fragment_is_understood(receiver: Receiver, an_instance: Encoded) -> None:
    with RawAssociation.open(receiver.port, an_instance) as assoc:
        command = (LAST_COMMAND, encode_store_request(an_instance))
        assoc.send(encode_p_data(assoc.context_id, command, (DATA, an_instance.data_set), (LAST_DATA, b"")))
        assert assoc.read_response().Status == 0


def test_an_echo_between_instances_is_answered(receiver: Receiver, tmp_path: Path) -> None:
    first, second = make_instances(tmp_path / "folder", 2)
    with associate(receiver.port, [first]) as assoc:
        assert assoc.send_c_store(first.save(tmp_path / "a.dcm"), msg_id=7).Status == 0
        assert assoc.send_c_echo(msg_id=8).Status == 0
        assert assoc.send_c_store(second.save(tmp_path / "b.dcm"), msg_id=65535).Status == 0
    assert len(receiver.rows()) == 2


def test_the_answer_names_message_class_and_instance(receiver: Receiver, an_instance: Encoded) -> None:
    with RawAssociation.open(receiver.port, an_instance) as assoc:
        for message_id in (1, 256, 65535):
            pdus = encode_p_data(assoc.context_id, (LAST_COMMAND, encode_store_request(an_instance, message_id)))
            assoc.send(pdus + encode_p_data(assoc.context_id, (LAST_DATA, an_instance.data_set)))
            answer = assoc.read_response()
            assert answer.MessageIDBeingRespondedTo == message_id
            assert answer.AffectedSOPClassUID == an_instance.sop_class_uid
            assert answer.AffectedSOPInstanceUID == an_instance.sop_instance_uid


@pytest.mark.slow
@pytest.mark.parametrize("how", ["abort", "close", "reset"])
@pytest.mark.parametrize("part", [0.5, 1.0])
def test_an_instance_cut_off_midway_leaves_nothing(receiver: Receiver, tmp_path: Path, how: str, part: float) -> None:
    (an_instance,) = make_instances(tmp_path / "folder", 1, frames_bytes=3_000_000)
    with RawAssociation.open(receiver.port, an_instance) as assoc:
        context, sock = assoc.context_id, assoc.socket
        sock.sendall(encode_p_data(context, (LAST_COMMAND, encode_store_request(an_instance))))
        sock.sendall(encode_p_data(context, (DATA, an_instance.data_set[: int(part * len(an_instance.data_set))])))
        wait_for(lambda: list((receiver.config.spool_dir / "incoming").iterdir()), "the file is begun")
        if how == "abort":
            assoc.abort()
        elif how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        else:
            sock.shutdown(socket.SHUT_RDWR)
        wait_for(lambda: not receiver.server.active_associations, "the receiver ends the association")
    assert receiver.rows() == receiver.files() == []


@pytest.mark.slow
def test_a_peer_that_falls_silent_is_aborted_and_leaves_nothing(start: Start, an_instance: Encoded) -> None:
    receiver = start(node={"network_timeout_s": 0.5})
    with RawAssociation.open(receiver.port, an_instance) as assoc:
        assoc.send(encode_p_data(assoc.context_id, (LAST_COMMAND, encode_store_request(an_instance))))
        assoc.send(encode_p_data(assoc.context_id, (DATA, an_instance.data_set))[:-5])
        assert assoc.is_aborted()
    wait_for(lambda: not receiver.files(), "nothing is left")


def _list_breaches(each: Encoded, context: int) -> dict[str, bytes]:
    command = (LAST_COMMAND, encode_store_request(each))
    return {
        "unknown PDU": b"\x42\0\0\0\0\4abcd",
        "a PDU of four gigabytes": b"\5\0\xff\xff\xff\xff",
        "associate again": b"\1\0\0\0\0\2ab",
        "data without command": encode_p_data(context, (LAST_DATA, each.data_set)),
        "command within data": encode_p_data(context, command, (DATA, b"12"), command),
        "garbage for a command": encode_p_data(context, (LAST_COMMAND, os.urandom(99))),
        "command of another group": encode_p_data(context, (LAST_COMMAND, b"\x08\0\0\0\2\0\0\0ab")),
        "request without UIDs": encode_p_data(context, (LAST_COMMAND, encode_store_request(each)[:-8])),
        "value longer than its PDU": b"\4\0\0\0\0\6" + struct.pack(">LBB", 100, context, 0),
        "value without header": b"\4\0\0\0\0\6" + struct.pack(">LBB", 1, context, 0),
        "endless command": encode_p_data(context, (COMMAND, bytes(100_000))),
        "unknown context": encode_p_data(201, command, (LAST_DATA, each.data_set)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("breach", list(_list_breaches(Encoded("1", "1", "1", b"12"), 1)))
def test_a_breach_of_the_protocol_ends_in_an_abort(receiver: Receiver, an_instance: Encoded, breach: str) -> None:
    with RawAssociation.open(receiver.port, an_instance) as assoc:
        assoc.send(_list_breaches(an_instance, assoc.context_id)[breach])
        assert assoc.is_aborted()
    wait_for(lambda: not receiver.server.active_associations, "the receiver ends the association")
    assert receiver.rows() == receiver.files() == []
    assert run_dcmtk("echoscu", receiver.config, receiver.port, "").returncode == 0


@pytest.mark.slow
def test_a_connection_that_says_nothing_or_nonsense_does_not_hold_others_up(start: Start, an_instance: Encoded) -> None:
    receiver = start(node={"network_timeout_s": 1.0})
    silent = socket.create_connection(("127.0.0.1", receiver.port))
    nonsense = socket.create_connection(("127.0.0.1", receiver.port))
    nonsense.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with silent, nonsense:
        with associate(receiver.port, [an_instance]) as assoc:
            assert assoc.is_established
        for sock in (silent, nonsense):
            sock.settimeout(30)
            with suppress(ConnectionResetError):
                while sock.recv(100):  # an abort may come first
                    pass
    wait_for(lambda: not receiver.server.active_associations, "all have ended")


def test_a_class_other_than_the_contexts_is_refused(receiver: Receiver, an_instance: Encoded) -> None:
    with RawAssociation.open(receiver.port, an_instance) as assoc:
        other = an_instance.with_changes(sop_class_uid="1.2.840.10008.5.1.4.1.1.2")
        assoc.send(
            encode_p_data(assoc.context_id, (LAST_COMMAND, encode_store_request(other)), (LAST_DATA, other.data_set))
        )
        assert assoc.read_response().Status == 0x0122


@pytest.mark.slow
def test_a_large_object_takes_little_memory(tmp_path: Path) -> None:
    code = """
import sys, threading, signal
from pathlib import Path
from db import engine, migrations
from dicomnode.ingest import scp
from dicomnode.config import Config
from dicomnode.config.node import NodeConfig
from dicomnode.config.spool import SpoolConfig
root = Path(sys.argv[1])
limits = SpoolConfig(min_free_gb=0, refuse_at_percent=100)
config = Config(node=NodeConfig(host="127.0.0.1", port=0, data_dir=root), spool=limits, path=root / "node.toml")
migrations.upgrade(engine.connect(config.database_url))
print(scp.start(config).port, flush=True)
sys.stdin.read()
"""
    (tmp_path / "data").mkdir()
    write_instance(tmp_path / "large.dcm", frames_bytes=100_000_000)
    command = [sys.executable, "-c", code, str(tmp_path / "data")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())
        before = _read_peak_mb(process.pid)
        (answer,) = store_all(port, [read_encoded(tmp_path / "large.dcm")], tmp_path / "out")
        after = _read_peak_mb(process.pid)
        process.stdin.close()
        process.kill()
    assert answer.Status == 0
    assert after - before < 30


def _read_peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000
