"""Whether this host's spool is the one that everybody shares.

A worker leaves a mark, named as its row in the database is, and looks whether that is still there before it takes a
job: a host whose network storage was not mounted would else take every job and end it for lack of its input. Whoever
sees the row of a worker that is alive can look for its mark, and so prove both directions.
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
_KEPT_S = 86400.0
_LOOKED_AT = 20


class SpoolMarker:
    """A worker's own file in the spool."""

    def __init__(self, root: Path, name: str) -> None:
        self._path = _path(root, name)

    def set(self) -> None:
        """Leave it; those that nobody renewed for a day go."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        for old in self._path.parent.glob(f"*{_SUFFIX}"):
            with suppress(FileNotFoundError):
                if time.time() - old.stat().st_mtime > _KEPT_S:
                    old.unlink()
        self._path.touch()

    def renew(self) -> None:
        """Still alive. Never makes it anew: below a mount that is gone it would prove nothing."""
        with suppress(OSError):
            os.utime(self._path)

    def is_there(self) -> bool:
        """Whether the spool is still the one in which it was left."""
        return self._path.exists()

    def remove(self) -> None:
        """The worker ends."""
        with suppress(OSError):
            self._path.unlink()


def is_marked(root: Path, name: str) -> bool:
    """Whether the worker of that name works on this spool."""
    return _path(root, name).exists()


def check_spool_matches_database(session: Session, root: Path) -> None:
    """Raise ConfigError where the newest files that rows name are not in this spool, not one of them."""
    rows = select(Instance.sha256).where(Instance.removed_at.is_(None)).order_by(Instance.id.desc()).limit(_LOOKED_AT)
    named = session.scalars(rows).all()
    if named and not any(spool.path(root, sha256).exists() for sha256 in named):
        raise ConfigError(
            f"{root} is not the spool of this database: none of the newest {len(named)} files that it names is there. "
            "Hosts that share a database share the storage, too: [spool] dir"
        )


def _path(root: Path, name: str) -> Path:
    return root / "incoming" / f"{name}{_SUFFIX}"
