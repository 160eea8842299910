"""Checks that this host's spool is the one that all hosts of the database share.

A worker creates a marker file, named as its row in the database, and checks that it exists before it claims a job: a
host whose network storage is not mounted would otherwise claim every job and end it for lack of its input. Any host
that reads the row of a living worker can look for its marker, which proves both directions.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.models import Instance
from dicomnode.errors import ConfigError
from dicomnode.storage import spool

__all__ = ["SpoolMarker", "check_spool_matches_database", "is_marked"]

_SUFFIX = ".worker"
_EXPIRES_AFTER_S = 86400.0
_CHECKED_FILES = 20


class SpoolMarker:
    """Marker file of a worker in the spool."""

    def __init__(self, root: Path, name: str) -> None:
        self._path = _path(root, name)

    def set(self) -> None:
        """Create the marker, and delete markers that were not renewed for a day."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        for old in self._path.parent.glob(f"*{_SUFFIX}"):
            with suppress(FileNotFoundError):
                if time.time() - old.stat().st_mtime > _EXPIRES_AFTER_S:
                    old.unlink()
        self._path.touch()

    def renew(self) -> None:
        """Renew the marker. It is never created anew: below a lost mount it would prove nothing."""
        with suppress(OSError):
            os.utime(self._path)

    def is_there(self) -> bool:
        """Return whether the spool is still the one in which the marker was created."""
        return self._path.exists()

    def remove(self) -> None:
        """Delete the marker, as the worker ends."""
        with suppress(OSError):
            self._path.unlink()


def is_marked(root: Path, name: str) -> bool:
    """Return whether the worker of that name works on this spool."""
    return _path(root, name).exists()


def check_spool_matches_database(session: Session, root: Path) -> None:
    """Raise ConfigError where none of the newest files that rows name is in this spool."""
    rows = (
        select(Instance.sha256).where(Instance.removed_at.is_(None)).order_by(Instance.id.desc()).limit(_CHECKED_FILES)
    )
    digests = session.scalars(rows).all()
    if digests and not any(spool.path(root, sha256).exists() for sha256 in digests):
        raise ConfigError(
            f"{root} is not the spool of this database: none of the newest {len(digests)} files that it names is there."
            " Hosts that share a database share the storage, too: [spool] dir"
        )


def _path(root: Path, name: str) -> Path:
    return root / "incoming" / f"{name}{_SUFFIX}"
