"""A host without torch receives, shows and checks; a command that needs torch names it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers import write_config
from tests.peers.process import Program

_ROOT = Path(__file__).parents[1]
_WITHOUT = ("einops", "monai", "nibabel", "safetensors", "skimage", "SimpleITK", "torch", "yaml")
_HOOK = f"""
import sys


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {_WITHOUT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which no Python process can import the packages of inference."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(_HOOK)
    return os.environ | {"PYTHONPATH": f"{hook}{os.pathsep}{_ROOT}"}


def command(config_path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-u", "-m", "dicomnode", "--config", str(config_path), *arguments]


def run(config_path: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(config_path, *arguments), capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.slow
def test_serve_status_and_check_need_no_torch(tmp_path: Path, environment: dict[str, str]) -> None:
    route = {"name": "flair", "pipeline": "synthetic_dir", "match": {"Modality": "MR"}}
    path = write_config(tmp_path / "node", routes=[route])
    program = Program(command(path, "serve", "--workers", "0"), folder=tmp_path / "log", environment=environment)
    program.start(lambda: "ready: DICOM" in program.log.read_text(), within_s=120)
    try:
        status = run(path, environment, "status")
        checked = run(path, environment, "check")
    finally:
        assert program.stop(within_s=60) == 0
    assert (status.returncode, "studies" in status.stdout) == (0, True), status.stderr
    assert "torch is not installed: this host can receive and" in " ".join(checked.stdout.split()), checked.stderr
    assert (checked.returncode, "failed" in checked.stdout) == (0, False), checked.stdout


@pytest.mark.slow
def test_serve_with_workers_says_that_they_need_torch(tmp_path: Path, environment: dict[str, str]) -> None:
    done = run(write_config(tmp_path / "node"), environment, "serve", "--workers", "1")
    assert done.returncode == 1
    assert "torch is not installed on this host, and local workers need it" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("work", "--once"), ("run", "anatomy", "IN", "OUT"), ("train", "anatomy")])
def test_a_command_that_needs_torch_says_so(
    tmp_path: Path, environment: dict[str, str], arguments: tuple[str, ...]
) -> None:
    (tmp_path / "in").mkdir()
    folders = {"IN": str(tmp_path / "in"), "OUT": str(tmp_path / "out")}
    done = run(
        write_config(tmp_path / "node"), environment, *(folders.get(argument, argument) for argument in arguments)
    )
    assert done.returncode == 1
    assert f"dicomnode: 'dicomnode {arguments[0]}' needs torch, which is not installed on this host" in done.stderr
