"""One machine floods the port; another is still served, and the node keeps running in little memory."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import MRImageStorage, Verification

from dicomnode.dimse.pynetdicom_adapter import replace_checkpoint
from tests.certificates import Authority, IssuedCertificate
from tests.peers import wait_for
from tests.peers.files import write_instance

FLOOD = 200
OTHER = "127.0.0.2"
WITHIN_S = 10.0
_CODE = """
import sys
from pathlib import Path
from dicomnode import node
from dicomnode.config import Config
from dicomnode.config.node import NodeConfig
from dicomnode.config.spool import SpoolConfig
from dicomnode.config.tls import TlsConfig
from dicomnode.ingest import scp
from dicomnode.monitoring.meters import Meters
from prometheus_client import generate_latest
root, certificate, key = map(Path, sys.argv[1:])
tls = TlsConfig(certificate_file=certificate, key_file=key, port=0)
limits = SpoolConfig(min_free_gb=0, refuse_at_percent=100)
config = Config(node=NodeConfig(host="127.0.0.1", port=0, data_dir=root, tls=tls), spool=limits, path=root / "n.toml")
node.prepare(config)
meters = Meters()
server = scp.start(config, meters=meters)
print(server.port, server.tls_port, flush=True)
for line in sys.stdin:
    print(generate_latest(meters.registry).decode().replace("\\n", ";"), flush=True)
"""


@dataclass
class Running:
    """Receiver in a process of its own, with the default limits."""

    process: subprocess.Popen[str]
    port: int
    tls_port: int
    authority: Authority

    @property
    def peak_mb(self) -> float:
        return int(self._status("VmHWM")) / 1000

    @property
    def threads(self) -> int:
        return int(self._status("Threads"))

    def count_refused(self, reason: str) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("metrics\n")
        self.process.stdin.flush()
        metrics = self.process.stdout.readline()
        return int(float(metrics.split(f'associations_refused_total{{reason="{reason}"}} ')[1].split(";")[0]))

    def _status(self, key: str) -> str:
        return Path(f"/proc/{self.process.pid}/status").read_text().split(f"{key}:")[1].split()[0]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    authority = Authority(tmp_path)
    issued: IssuedCertificate = authority.issue("node")
    (tmp_path / "data").mkdir()
    command = [sys.executable, "-c", _CODE, str(tmp_path / "data"), str(issued.certificate), str(issued.key)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    log = (tmp_path / "node.log").open("w")
    with log, subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, stderr=log, text=True) as process:
        assert process.stdout is not None
        port, tls_port = map(int, process.stdout.readline().split())
        yield Running(process, port, tls_port, authority)
        process.kill()


@contextmanager
def flood(port: int, first_bytes: bytes = b"") -> Iterator[Sequence[socket.socket]]:
    """Open connections from one machine that send ``first_bytes`` and no more."""
    with ExitStack() as stack:
        opened = []
        for _ in range(FLOOD):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            with suppress(OSError):  # refused already
                sock.sendall(first_bytes)
            opened.append(sock)
        yield opened


def _keep_answers(event: evt.Event) -> None:
    """Keep pynetdicom's requestor from losing an answer."""
    replace_checkpoint(event.assoc)


def store_from_other_machine(running: Running, folder: Path, *, tls: bool) -> float:
    """Send an image from another machine; return the seconds until it is acknowledged."""
    ds = write_instance(folder / "other.dcm")
    ae = AE("OTHER")
    ae.add_requested_context(MRImageStorage)
    ae.add_requested_context(Verification)
    began = time.monotonic()
    context = ssl.create_default_context(cafile=running.authority.file)
    assoc = ae.associate(
        "127.0.0.1",
        running.tls_port if tls else running.port,
        bind_address=(OTHER, 0),
        evt_handlers=[(evt.EVT_CONN_OPEN, _keep_answers)],
        tls_args=(context, "localhost") if tls else None,
    )
    assert assoc.is_established
    assert assoc.send_c_store(ds).Status == 0
    duration_s = time.monotonic() - began
    assoc.release()
    return duration_s


def is_closed(sock: socket.socket) -> bool:
    """Return whether the node has ended the connection."""
    sock.settimeout(0)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True])
def test_200_connections_that_say_nothing_keep_nobody_else_out(running: Running, tmp_path: Path, tls: bool) -> None:
    before_mb = running.peak_mb
    stalled = b"\x16\x03\x01\x02\x00" if tls else b""  # a handshake that begins and stalls
    with flood(running.tls_port if tls else running.port, stalled) as opened:
        duration_s = store_from_other_machine(running, tmp_path, tls=tls)
        still_open = [sock for sock in opened if not is_closed(sock)]
        assert len(still_open) <= 32  # twice associations_per_address
        assert running.threads < 80
    assert duration_s < WITHIN_S
    assert running.count_refused("too_many_connections") >= FLOOD - 32
    assert running.peak_mb - before_mb < 100
    wait_for(lambda: running.threads < 20, "those that said nothing are gone", within_s=60)
    assert store_from_other_machine(running, tmp_path, tls=tls) < WITHIN_S
    print(f"tls {tls}: served in {duration_s:.2f} s, {len(still_open)} kept, {running.peak_mb - before_mb:.0f} MB more")


@pytest.mark.slow
def test_one_machine_gets_its_share_of_associations_and_no_more(running: Running, tmp_path: Path) -> None:
    ae = AE("FLOOD")
    ae.add_requested_context(Verification)
    held = [
        ae.associate("127.0.0.1", running.port, evt_handlers=[(evt.EVT_CONN_OPEN, _keep_answers)]) for _ in range(FLOOD)
    ]
    established = [assoc for assoc in held if assoc.is_established]
    try:
        assert len(established) == 16
        assert sum(assoc.is_rejected for assoc in held) > FLOOD // 2  # refused by an A-ASSOCIATE-RJ
        assert store_from_other_machine(running, tmp_path, tls=False) < WITHIN_S
        assert (
            running.count_refused("too_many_associations") + running.count_refused("too_many_connections") == FLOOD - 16
        )
        assert all(assoc.send_c_echo().Status == 0 for assoc in established)
    finally:
        for assoc in established:
            assoc.release()


@pytest.mark.slow
def test_connections_that_come_and_go_leave_nothing_behind(running: Running, tmp_path: Path) -> None:
    for _ in range(3):
        with flood(running.tls_port, b"GET / HTTP/1.1\r\n\r\n"):
            pass
    wait_for(lambda: running.threads < 20, "all are gone", within_s=60)
    assert store_from_other_machine(running, tmp_path, tls=True) < WITHIN_S
    descriptors = len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))
    assert descriptors < 40
