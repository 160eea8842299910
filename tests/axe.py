"""axe-core, which finds what keeps people with assistive technology from a page; npm fetches it once.

Only the version below is used, identified by the SHA-256 of its package. Its licence (MPL-2.0) does not touch the node:
nothing but tests loads it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["find_violations", "read_axe"]

_VERSION = "4.14.1"
_SHA256 = "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745"
_FOLDER = Path(__file__).resolve().parents[1] / "build" / "npm"
_RUN = """
async () => (await axe.run()).violations.flatMap(({ id, help, nodes }) =>
  nodes.map((node) => `${id}: ${help}: ${node.html.slice(0, 160)}: ${node.any.map((each) => each.message)[0] ?? ""}`))
"""


def read_axe() -> str:
    """Return the script; skip the test where npm cannot fetch it."""
    package = _FOLDER / f"axe-core-{_VERSION}.tgz"
    if not package.is_file():
        _fetch(package)
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    assert digest == _SHA256, f"{package} is not axe-core {_VERSION}: its SHA-256 is {digest}"
    with tarfile.open(package) as tar:
        content = tar.extractfile("package/axe.min.js")
        assert content is not None
        return content.read().decode()


def find_violations(page: Page, axe: str) -> list[str]:
    """Return a line for each element that breaks a rule: all rules that axe-core does not call experimental."""
    page.evaluate(axe)
    found: list[str] = page.evaluate(_RUN)
    return found


def _fetch(package: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is missing: install Debian's package npm")
    package.parent.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", f"axe-core@{_VERSION}", "--pack-destination", str(package.parent), "--silent"]
    done = subprocess.run(command, cwd=package.parent, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode or not package.is_file():
        pytest.skip(f"npm pack axe-core@{_VERSION} failed (status {done.returncode}): is a registry within reach?")
