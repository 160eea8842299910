"""The last check before a result leaves the node: its file is unchanged and carries every mark."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydicom import dcmread

from dicomnode.errors import StorageDamaged

__all__ = ["check_outgoing_result"]


def check_outgoing_result(path: Path, sha256: str) -> None:
    """Raise StorageDamaged where the file is not the one that was written, NotMarked where it lacks a mark."""
    from dicomnode.results import marking  # brings the writers of results with it, which a receiver does not need

    try:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise StorageDamaged(f"the file {path.name} is not what was written")
    except OSError as exc:
        raise StorageDamaged(f"the file {path.name} cannot be read: {exc.strerror}") from exc
    marking.check_marks(dcmread(path, stop_before_pixels=True))
