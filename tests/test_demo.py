"""The demo leaves nothing running."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dicomnode import mrd
from dicomnode.demo import SIMULATED_HEAD, Demo
from model_zoo import data_kit
from tests.peers.process import Program, accepts_connections

pytestmark = pytest.mark.slow


def test_a_demo_that_is_told_to_stop_stops_its_nodes(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    command = [sys.executable, "-u", "-m", "dicomnode", "demo", "--out", str(tmp_path / "out")]
    program = Program(command, folder=tmp_path / "log", environment={"PYTHONPATH": str(root)})
    program.start(lambda: "(loopback)" in program.log.read_text(), within_s=120)
    ports = [int(port) for port in re.findall(r"on port (\d+)", program.log.read_text())]
    assert [accepts_connections(port) for port in ports] == [True, True]
    assert program.stop(within_s=90) == 130
    assert [accepts_connections(port) for port in ports] == [False, False]


def test_a_node_that_is_left_running_ends_the_demo_without_a_warning() -> None:
    code = """
import subprocess, sys
from pathlib import Path
from dicomnode.demo import Node, leave_running
process = subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE, text=True)
leave_running(Node("NODE", 104, Path("node.toml"), process, ""))
print(process.pid)
"""
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True)
    os.kill(int(done.stdout), signal.SIGKILL)  # it ran on
    assert "ResourceWarning" not in done.stderr


def test_without_the_data_kit_the_demo_simulates_a_head_with_the_core_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_data_kit() -> Path:
        raise FileNotFoundError

    monkeypatch.setattr(data_kit, "data_root", no_data_kit)
    for package in ("nilearn", "sigpy", "ray", "tensorboard"):
        monkeypatch.setitem(sys.modules, package, None)
    demo = Demo(tmp_path, threading.Event())
    kspace, description = demo.make_kspace()
    assert SIMULATED_HEAD in description
    (images,) = mrd.to_images(kspace)
    assert images[0].samples.shape[-2:] == (256, 216)
    assert demo.write_raw_data(kspace).is_file()
