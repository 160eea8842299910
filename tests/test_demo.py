"""The demo leaves nothing running."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.peers.process import Program, accepts_connections


def test_a_demo_that_is_told_to_stop_stops_its_nodes(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    command = [sys.executable, "-u", "-m", "dicomnode", "demo", "--out", str(tmp_path / "out")]
    program = Program(command, folder=tmp_path / "log", environment={"PYTHONPATH": str(root)})
    program.start(lambda: "(loopback)" in program.log.read_text(), within_s=120)
    ports = [int(port) for port in re.findall(r"on port (\d+)", program.log.read_text())]
    assert [accepts_connections(port) for port in ports] == [True, True]
    assert program.stop(within_s=90) == 130
    assert [accepts_connections(port) for port in ports] == [False, False]
