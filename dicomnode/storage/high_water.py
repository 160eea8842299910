"""High-water mark in the spool of the newest committed event of the database, so that lost rows are noticed.

SQLite silently starts with fewer rows when its -wal file was deleted or damaged; so does any database that was replaced
by an older copy. Acknowledged files are then without rows, and a clean-up would delete them.

The mark is written after each commit that acknowledges instances, and by a sweep for all other commits. It is not
synchronised: it survives the death of the process, and a power cut but for what the system had not written to disk yet.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.models import Chain, Event
from dicomnode.errors import StorageDamaged

__all__ = ["HighWater", "check_nothing_lost"]

_NAME = "high-water"
_RECORD = re.compile(rb"(\d{20}) ([0-9a-f]{64})\n")


class HighWater:
    """High-water mark of the spool at ``root``: number and hash of the newest event known to be committed."""

    def __init__(self, root: Path) -> None:
        self._path, self._lock, self._written = root / _NAME, threading.Lock(), -1

    def read(self) -> tuple[int, str] | None:
        """Return number and hash; None where the mark is missing or cannot be read."""
        try:
            record = _RECORD.fullmatch(self._path.read_bytes())
        except FileNotFoundError:
            return None
        return (int(record[1]), record[2].decode()) if record else None

    def raise_to(self, seq: int, digest: str) -> None:
        """Write the mark, unless a later event stands there."""
        with self._lock:
            if seq > self._written:
                self._write(seq, digest)

    def reset(self, seq: int, digest: str) -> None:
        """Write the mark, whatever stands there."""
        with self._lock:
            self._write(seq, digest)

    def _write(self, seq: int, digest: str) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            os.pwrite(fd, f"{seq:020d} {digest}\n".encode(), 0)
        finally:
            os.close(fd)
        self._written = seq


def check_nothing_lost(session: Session, root: Path) -> None:
    """Raise StorageDamaged where the database has fewer or other events than the mark of the spool says."""
    mark, head = HighWater(root).read(), session.get_one(Chain, 1)
    if mark is None:
        if head.seq == 0 and next(root.glob("[0-9a-f][0-9a-f]/*.dcm"), None) is not None:
            raise StorageDamaged(f"the database is new and {root} holds files; {_WHAT_TO_DO}")
        return
    seq, digest = mark
    there = session.scalar(select(Event.hash).where(Event.seq == seq)) if seq else digest
    if there is None:
        raise StorageDamaged(
            f"the database ends with event {head.seq}, but event {seq} was committed: rows are lost (a deleted or "
            f"damaged -wal file, or an older copy of the database); {_WHAT_TO_DO}"
        )
    if there != digest:
        raise StorageDamaged(f"event {seq} of the database is not the one that the spool knows; {_WHAT_TO_DO}")


_WHAT_TO_DO = (
    "nothing was deleted. Put the right database back, or run 'dicomnode storage adopt', which takes the files that "
    "have no row into the database again"
)
