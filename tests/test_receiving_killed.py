"""A node killed by SIGKILL while it receives: every acknowledged instance is stored afterwards."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import threading
from pathlib import Path

import pytest
from sqlalchemy import select

from db import audit
from db.models import Instance
from dicomnode.storage import spool
from tests.peers.files import write_instance
from tests.peers.nodes import Node, write_config
from tests.peers.process import require_program

pytestmark = pytest.mark.slow

KILLS = 8
_PAUSE = threading.Event()  # never set


def _start_sending(port: int, folder: Path) -> subprocess.Popen[str]:
    command = [require_program("/usr/bin/storescu", "dcmtk"), "-v", "-R", "-aec", "DICOMNODE", "+sd", "+r"]
    environment = {"TCP_NODELAY": "1"}
    return subprocess.Popen(
        [*command, "127.0.0.1", str(port), str(folder)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def _list_acknowledged(output: str) -> list[Path]:
    """Return the files that storescu lists before a response of success."""
    sent = re.split(r"I: Sending file: ", output)[1:]
    return [Path(part.splitlines()[0]) for part in sent if "Received Store Response (Success)" in part]


@pytest.mark.timeout(900)  # eight starts of a node
def test_every_acknowledged_instance_has_its_file_and_its_row(tmp_path: Path) -> None:
    uids: dict[Path, str] = {}
    for part in range(2):
        for number in range(150):
            path = tmp_path / f"send{part}" / f"{number:03}.dcm"
            uids[path] = write_instance(path, rows=256).SOPInstanceUID
    config = write_config(tmp_path)
    moments = random.Random(0)
    acknowledged: set[Path] = set()
    node = Node(config, "serve", "--workers", "0")
    for _ in range(KILLS):
        node.program.log.unlink(missing_ok=True)
        with node:
            senders = [_start_sending(node.port, tmp_path / f"send{part}") for part in range(2)]
            _PAUSE.wait(moments.uniform(0.05, 1.0))
            node.program.kill()
            for sender in senders:
                acknowledged.update(_list_acknowledged(sender.communicate(timeout=60)[0]))
    assert len(acknowledged) > KILLS
    root = node.config.spool_dir
    with node.sessions() as session:
        rows = {row.sop_instance_uid: row for row in session.scalars(select(Instance))}
        assert audit.verify(session) is None
    assert {uids[path] for path in acknowledged} <= rows.keys()
    for row in rows.values():
        assert hashlib.sha256(spool.path(root, row.sha256).read_bytes()).hexdigest() == row.sha256
    spool.sweep(root)
    assert not list((root / "incoming").iterdir())
