"""The last door before any wire: a result's file is what was written, and carries every mark."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydicom import dcmread

from dicomnode.errors import StorageDamaged

__all__ = ["check"]


def check(path: Path, sha256: str) -> None:
    """Raises StorageDamaged or NotMarked."""
    from dicomnode.results import marking  # brings the writers of results with it, which a receiver does not need

    try:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise StorageDamaged(f"the file {path.name} is not what was written")
    except OSError as exc:
        raise StorageDamaged(f"the file {path.name} cannot be read: {exc.strerror}") from exc
    marking.check_marks(dcmread(path, stop_before_pixels=True))
