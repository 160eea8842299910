"""Folders with one DICOM series, read for training as the node reads a series that it receives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.misc import is_dicom

from dicomnode.errors import InputRefused
from dicomnode.reading import volumes
from model_zoo.grid import Grid

__all__ = ["list_instances", "read_grid", "read_values"]


def list_instances(folder: Path) -> list[Path]:
    """Return the DICOM files of a folder in the order of their names, without DICOMDIR and files of other kinds."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != "DICOMDIR" and is_dicom(path))


def read_grid(folder: Path) -> Grid:
    """Return the grid of the folder's series, from headers only. Raises ValueError with the node's own reason."""
    paths = _instances(folder)
    try:
        return volumes.read_grid(paths)
    except InputRefused as error:
        raise ValueError(str(error)) from error


def read_values(folder: Path) -> tuple[NDArray[np.float32], Grid]:
    """Return the real-world values (k, j, i) of the folder's series. Raises ValueError with the node's own reason."""
    paths = _instances(folder)
    try:
        volume = volumes.read(paths).volume
    except InputRefused as error:
        raise ValueError(str(error)) from error
    return volume.data, volume.grid


def _instances(folder: Path) -> list[Path]:
    paths = list_instances(folder)
    if not paths:
        raise ValueError("a folder with one DICOM series is needed, it has none")
    return paths
