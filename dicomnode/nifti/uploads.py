"""A NIfTI file that came over the web, as the DICOM series that ``series.write_series`` makes of it.

Runs in a child process: a file of a kilobyte can announce gigabytes.
"""

from __future__ import annotations

from pathlib import Path

from dicomnode.errors import InputRefused
from dicomnode.nifti import facts, images, series

__all__ = ["convert"]


def convert(path: Path, modality: str, folder: Path) -> bytes:
    """Write the series of a NIfTI file into the folder; return the number of files as text.

    The JSON file beside it states facts; ``modality``: for a file that states none. Raises InputRefused for a file that
    is marked as synthetic, has no modality, or does not say where its voxels lie.
    """
    attributes = facts.read_stated(path, {"Modality": modality} if modality else {})
    if images.is_marked(path) or attributes.get("SyntheticData") == "YES":
        raise InputRefused(f"{path.name} is marked as synthetic: a measured image is needed")
    return str(len(series.write_series(images.read(path), attributes, folder, name=path.name))).encode()
