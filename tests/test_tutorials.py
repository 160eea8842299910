"""Run the tutorials as they stand, on free ports and a small phantom, and compare what they print."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import pydicom
import pytest

from dicomnode import mrd
from tests.peers import kspaces
from tests.tutorial_page import ROOT, matches, read_steps, run_steps

TUTORIALS = ROOT / "docs" / "tutorials"
SHOWN_PORTS = ("11112", "11113", "8104", "8105")


def find_free_ports() -> dict[str, int]:
    """Return a free port for each port of the pages."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in SHOWN_PORTS]
    ports = {shown: each.getsockname()[1] for shown, each in zip(SHOWN_PORTS, sockets, strict=True)}
    for each in sockets:
        each.close()
    return ports


def write_kspace_of_demo(folder: Path, now: datetime) -> None:
    """Write a small phantom where ``make demo`` leaves its k-space."""
    demo = folder / "out" / "demo" / "example"
    demo.mkdir(parents=True)
    raw = kspaces.raw_data(folder / "phantom.dcm", now)
    (demo / "kspace.h5").write_bytes(mrd.unwrap(pydicom.dcmread(raw)))


def follow(page: str, folder: Path, ports: Mapping[str, int]) -> None:
    """Run a page's steps, and compare the output of each with the one that the page shows."""
    steps = read_steps((TUTORIALS / page).read_text())
    printed = run_steps(steps, folder, ports, timeout_s=900)
    wrong = [
        f"{step.command}printed\n{output}\nnot\n{step.expected}"
        for step, output in zip(steps, printed, strict=True)
        if step.expected is not None and not matches(step.expected, output, ports)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.peers
@pytest.mark.timeout(1800)
def test_the_tutorials_run_as_they_stand(tmp_path: Path, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    write_kspace_of_demo(tmp_path, now)
    ports = find_free_ports()
    follow("first-study.md", tmp_path, ports)
    assert (tmp_path / "first-study" / "report.png").stat().st_size > 10_000
    monkeypatch.setenv("DICOMNODE_CONFIG", "node/node.toml")
    follow("own-model.md", tmp_path / "first-study", ports)
    assert (tmp_path / "first-study" / "card" / "README.md").is_file()


def test_a_page_is_read_as_commands_with_their_output() -> None:
    page = "Run\n\n```sh\necho a\n```\n\nand\n\n```text\na\n```\n\n```toml\nx = 1\n```\n\n```sh\ntrue\n```\n"
    assert [(step.command, step.expected) for step in read_steps(page)] == [("echo a\n", "a\n"), ("true\n", None)]


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("a … c\n", "a  b   c\n", True),
        ("a … c\n", "a b d\n", False),
        ("…\nlast\n", "first\n\nsecond\nlast\n", True),
        ("…\nlast\n", "last\nmore\n", False),
        ("at 8104\n", "at 5000\n", True),
        ("at 8104\n", "at 8104\n", False),
    ],
)
def test_output_is_compared_but_for_gaps_spaces_and_ports(expected: str, printed: str, same: bool) -> None:
    assert matches(expected, printed, {"8104": 5000}) is same


@pytest.mark.slow
def test_a_step_that_fails_is_named_and_leaves_no_program(tmp_path: Path) -> None:
    steps = read_steps("```sh\nsleep 60 &\necho $!\n```\n```sh\necho before\nfalse\necho after\n```\n")
    with pytest.raises(AssertionError, match=r"(?s)step 2 failed:.*before") as failure:
        run_steps(steps, tmp_path, {}, timeout_s=30)
    assert "after" not in str(failure.value)
