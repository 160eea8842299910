"""The log of a study: a few plain lines, none twice, and nothing of libraries below a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from dicomnode.dimse import peers
from tests.peers import Node, StoreScp, make_route, wait_for, write_config
from tests.peers.kspaces import raw_data

pytestmark = pytest.mark.peers

SET_UP = """
import logging
from dicomnode.monitoring import log_lines
log_lines.set_up_logging()
logging.getLogger("fontTools.subset").info("glyphs")
logging.getLogger("somebody.else").warning("a library warns")
logging.getLogger("pydicom").warning("Müller^Erika")
logging.getLogger("dicomnode.node").info("the node speaks")
logging.getLogger("dicomnode.node").debug("the node whispers")
"""


def test_libraries_are_heard_from_a_warning_on() -> None:
    done = subprocess.run([sys.executable, "-c", SET_UP], capture_output=True, text=True, check=True)
    assert [line.split(": ")[-1] for line in done.stderr.splitlines()] == ["a library warns", "the node speaks"]


def test_each_step_of_a_study_is_one_line(tmp_path: Path, now: datetime, storescp: StoreScp) -> None:
    route = make_route("storescp", steps=2, mean_steps=2, samples=2)
    with Node(write_config(tmp_path / "node", peers=[storescp.peer], routes=[route])) as node:
        peers.store(node.peer, [raw_data(tmp_path / "raw.dcm", now)], calling_aet="SCANNER")
        assert node.wait_for_job("done", "dead").state == "done"
        node.wait_until_delivered()  # the row is committed before the line is written
        wait_for(lambda: "delivered to" in node.log, "the line of the delivery", within_s=30)
        lines = node.log.splitlines()
    messages = [match[1] for line in lines if (match := re.search(r" INFO \S+: (.*)", line))]
    assert messages == [
        "study 1: receiving from SCANNER at 127.0.0.1",
        messages[1],
        "study 1: routed to job 1 of route kspace",
        "job 1: started, mri_reconstruction for study 1",
        "job 1: done, 5 objects",
        "job 1: 5 of 5 objects delivered to storescp",
    ]
    assert re.fullmatch(r"study 1: complete, quiet for [\d.]+ s", messages[1])
