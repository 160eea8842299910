"""Facts on the installed package: its version, and whether this host can run jobs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

__all__ = ["has_torch", "read_version"]


def read_version() -> str:
    """Return the version of dicomnode, which pyproject.toml states; "0+source" for a tree that is not installed."""
    try:
        return version("dicomnode")
    except PackageNotFoundError:
        return "0+source"


def has_torch() -> bool:
    """Return whether torch is installed, without importing it. A receive-only host has none (docs/deploying.md)."""
    try:
        return find_spec("torch") is not None
    except (ImportError, ValueError):
        return False
