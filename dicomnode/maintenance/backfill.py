"""Backfill of attributes by which instances and results are found, from their files.

Rows written before migration 0004 have none. They are found by their UIDs and by the attributes of their study and
series, and by the rest once this has read their files: some hundred rows at every sweep of the node, until the last.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from db import keywords
from db.models import Instance, Output
from dicomnode.datasets import headers
from dicomnode.errors import CannotUnderstand
from dicomnode.storage import spool

__all__ = ["Backfill"]

_log = logging.getLogger(__name__)
_ROWS = 500
_STORED: dict[type[Instance] | type[Output], Sequence[str]] = {
    Instance: keywords.IMAGE_STORED,
    Output: keywords.RESULT_STORED,
}


class Backfill:
    """One pass over the tables, in steps; rows that are added meanwhile are complete."""

    def __init__(self, sessions: sessionmaker[Session], root: Path) -> None:
        self._sessions, self._root = sessions, root
        self._after: dict[type[Instance] | type[Output], int] = dict.fromkeys(_STORED, 0)

    @property
    def done(self) -> bool:
        """True where no row is left; the database is then not queried any more."""
        return not self._after

    def step(self) -> int:
        """Check the next rows and fill those without attributes; return how many."""
        if self.done:
            return 0
        table, after = next(iter(self._after.items()))
        with self._sessions() as session:
            last = session.scalar(select(func.max(table.id))) or 0
            here = (table.id > after, table.id <= after + _ROWS, table.attributes.is_(None))
            rows = session.execute(select(table.id, table.sha256).where(*here)).all()
        self._fill(table, rows)
        self._after[table] = after + _ROWS
        if last <= after + _ROWS:
            del self._after[table]
        return len(rows)

    def _fill(self, table: type[Instance] | type[Output], rows: Sequence[Any]) -> None:
        found = {row.id: self._read(row.sha256, _STORED[table]) for row in rows}
        with self._sessions.begin() as session:
            for id, attributes in found.items():
                session.execute(update(table).where(table.id == id).values(attributes=attributes))

    def _read(self, sha256: str, stored: Sequence[str]) -> dict[str, Any]:
        """Return the attributes of the file; none where it cannot be read."""
        try:
            return keywords.pick(headers.read(spool.path(self._root, sha256)).attributes, stored)
        except (OSError, CannotUnderstand) as exc:
            _log.warning("the file %s could not be read again: %s", sha256, type(exc).__name__)
            return {}
