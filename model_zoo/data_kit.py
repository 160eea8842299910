"""Folders outside the source tree: the data kit that recipes and evaluations read, and the cache of derived data."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_root", "data_root"]


def data_root() -> Path:
    """Return the data kit's folder: ``DICOMNODE_DATA``, else ``../shared/data`` beside the project.

    Raises FileNotFoundError where neither exists.
    """
    root = Path(os.environ.get("DICOMNODE_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
    if not root.is_dir():
        raise FileNotFoundError(f"no data kit at {root}: set DICOMNODE_DATA to its folder")
    return root


def cache_root() -> Path:
    """Return the cache for data that take long to derive: ``DICOMNODE_CACHE``, else the user's cache folder."""
    configured = os.environ.get("DICOMNODE_CACHE")
    return (
        Path(configured) if configured else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dicomnode"
    )
