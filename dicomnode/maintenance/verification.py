"""Comparison of the spool with the rows: content of every file, files without rows, and rows without files."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from db import audit
from db.models import Instance, Output, Quarantine
from db.states import QuarantineState
from dicomnode.storage import spool

__all__ = [
    "Claim",
    "Discrepancy",
    "check_content",
    "count_claims",
    "find_orphans",
    "iterate_claims",
    "remove_orphans",
    "verify",
]

_BLOCK = 1 << 20
_ROWS = 1000
_HELD: Mapping[type[Instance | Output | Quarantine], Any] = {
    Instance: Instance.expired_at.is_(None),
    Output: Output.expired_at.is_(None),
    Quarantine: Quarantine.state == QuarantineState.KEPT,
}
_STORED = re.compile(r"[0-9a-f]{64}")

DiscrepancyKind = Literal["missing", "damaged", "unreadable", "no row", "not ours"]


@dataclass(frozen=True)
class Claim:
    """Row that has a file."""

    table: str
    id: int
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Discrepancy:
    """Discrepancy between a row and a file; ``row``: as "instances 12", empty where the file has none."""

    what: DiscrepancyKind
    row: str
    file: str
    size_bytes: int


def iterate_claims(readers: sessionmaker[Session]) -> Iterator[Claim]:
    """Every row that has a file, those that share one included; no transaction is open between the pieces, for one of
    hours would keep SQLite from ever emptying its log."""
    for table, has_file in _HELD.items():
        after = 0
        while True:
            query = select(table.id, table.sha256, table.size_bytes).where(has_file, table.id > after)
            with readers() as session:
                rows = session.execute(query.order_by(table.id).limit(_ROWS)).all()
            if not rows:
                break
            for row in rows:
                yield Claim(table.__tablename__, row.id, row.sha256, row.size_bytes)
            after = rows[-1].id


def count_claims(readers: sessionmaker[Session]) -> int:
    """Return the number of claims."""
    with readers() as session:
        counts = [session.scalar(select(func.count(table.id)).where(has_file)) for table, has_file in _HELD.items()]
    return sum(each or 0 for each in counts)


def verify(
    readers: sessionmaker[Session],
    root: Path,
    *,
    bytes_per_s: float | None = None,
    on_checked: Callable[[Claim], None] = lambda claim: None,
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[Discrepancy]:
    """Read every file that a row claims; what is missing or differs from its name. ``bytes_per_s``: no faster."""
    started, read = time.monotonic(), 0
    known: dict[str, DiscrepancyKind | None] = {}
    for claim in iterate_claims(readers):
        if claim.sha256 not in known:
            known[claim.sha256] = check_content(spool.path(root, claim.sha256), claim.sha256)
            read += claim.size_bytes
            if bytes_per_s and (ahead_s := read / bytes_per_s - (time.monotonic() - started)) > 0:
                wait(ahead_s)
        if (kind := known[claim.sha256]) is not None and _is_current(readers, claim):
            yield Discrepancy(kind, f"{claim.table} {claim.id}", claim.sha256, claim.size_bytes)
        on_checked(claim)


def find_orphans(
    readers: sessionmaker[Session], root: Path, *, now: datetime, fresh_too: bool = False
) -> Iterator[Discrepancy]:
    """Rows without files, files without rows, and what is no file of ours; nothing is read. What was written within the
    last hour is left out unless ``fresh_too``: its row may be on its way."""
    for claim in iterate_claims(readers):
        if not spool.path(root, claim.sha256).is_file() and _is_current(readers, claim):
            yield Discrepancy("missing", f"{claim.table} {claim.id}", claim.sha256, claim.size_bytes)
    for path in sorted(root.glob("*/*")):
        if path.parent.name == "incoming" or (not fresh_too and spool.is_fresh(path, now=now)):
            continue
        name = str(path.relative_to(root))
        if path.suffix != ".dcm" or not _STORED.fullmatch(path.stem) or path.parent.name != path.stem[:2]:
            yield Discrepancy("not ours", "", name, path.stat().st_size)
        elif not _is_claimed(readers, path.stem):
            yield Discrepancy("no row", "", name, path.stat().st_size)


def remove_orphans(sessions: sessionmaker[Session], root: Path, found: list[Discrepancy], *, now: datetime) -> int:
    """Delete the files without rows, and say so in the audit trail; how many went. What is not ours stays."""
    gone = []
    for each in found:
        digest = Path(each.file).stem
        if each.what == "no row" and not _is_claimed(sessions, digest) and spool.remove(root, digest, now=now):
            gone.append(digest)
    for at in range(0, len(gone), _ROWS):
        with sessions.begin() as session:
            detail = {"sha256": gone[at : at + _ROWS]}
            audit.append(session, subject="spool", subject_id="", event="orphans removed", detail=detail, now=now)
    return len(gone)


def _is_current(readers: sessionmaker[Session], claim: Claim) -> bool:
    """Return whether the row still has the file: retention continues during the comparison."""
    table: Any = next(each for each in _HELD if each.__tablename__ == claim.table)
    with readers() as session:
        row = session.get(table, claim.id)
        if isinstance(row, Quarantine):
            return row.state is QuarantineState.KEPT
        return bool(row is not None and row.expired_at is None and row.sha256 == claim.sha256)


def _is_claimed(readers: sessionmaker[Session], sha256: str) -> bool:
    """Return whether any row has the file and does not record its removal, which retention would complete."""
    with readers() as session:
        for table in (Instance, Output, Quarantine):
            query = select(table.id).where(table.sha256 == sha256, table.removed_at.is_(None)).limit(1)
            if session.scalar(query) is not None:
                return True
    return False


def check_content(path: Path, sha256: str) -> DiscrepancyKind | None:
    """Return what is wrong with the content of a file, or None."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except FileNotFoundError:
        return "missing"
    except OSError:
        return "unreadable"
    return None if digest.hexdigest() == sha256 else "damaged"
