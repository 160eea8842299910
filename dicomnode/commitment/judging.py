"""Decision whether the node keeps the instances of a request for storage commitment, and their mark.

Files are looked at without a transaction, as a request may name 50 000: ingest waits for no longer than one part takes
to be marked. An instance is marked before the request is recorded, so nothing that is reported can expire in between.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from sqlalchemy.orm import Session, sessionmaker

from db import commitments
from db import engine as engines
from db.commitments import Verdict
from db.models import Instance
from db.studies import Sender
from dicomnode.storage import spool

__all__ = ["commit_instances"]

_log = logging.getLogger(__name__)

_PROCESSING_FAILURE, _NO_SUCH_INSTANCE, _CLASS_CONFLICT = 0x0110, 0x0112, 0x0119  # PS3.3 C.14.1.1
_AT_ONCE = 500

References = Sequence[tuple[str, str]]
Clock = Callable[[], datetime]


def commit_instances(
    sessions: sessionmaker[Session],
    root: Path,
    references: References,
    sender: Sender,
    *,
    now: Clock,
    at_once: int = _AT_ONCE,
) -> list[Verdict]:
    """Commit the instances that the node keeps: row, SOP class and file as they were acknowledged.

    ``references``: SOP Class and SOP Instance UID of each; ``at_once``: number of them in one transaction.
    """
    parts = (references[at : at + at_once] for at in range(0, len(references), at_once))
    return [verdict for part in parts for verdict in _commit_part(sessions, root, part, sender, now)]


def _commit_part(
    sessions: sessionmaker[Session], root: Path, references: References, sender: Sender, now: Clock
) -> list[Verdict]:
    uids = {uid for _, uid in references}
    with engines.readers(sessions.kw["bind"])() as session:
        held = commitments.find_instances(session, uids)
    failures = {each: _find_failure(root, each[0], held.get(each[1])) for each in references}
    intact = {uid for (_, uid), failure in failures.items() if not failure}
    with sessions.begin() as session:
        commitments.lock_studies(session, intact)
        doubtful = commitments.find_quarantined(session, uids, sender)
        digests = {uid: held[uid].sha256 for uid in intact - doubtful}
        marked = commitments.mark_committed(session, digests, now=now())
    gone = dict.fromkeys(digests.keys() - marked, _NO_SUCH_INSTANCE) | dict.fromkeys(doubtful, _PROCESSING_FAILURE)
    return [Verdict(kind, uid, failures[kind, uid] if uid not in gone else gone[uid]) for kind, uid in references]


def _find_failure(root: Path, sop_class_uid: str, row: Instance | None) -> int:
    """Return the Failure Reason of one instance (PS3.3 C.14.1.1), 0 where it is kept."""
    if row is None:
        return _NO_SUCH_INSTANCE
    if row.sop_class_uid != sop_class_uid:
        return _CLASS_CONFLICT
    try:
        is_whole = spool.path(root, row.sha256).stat().st_size == row.size_bytes
    except OSError:
        is_whole = False
    if not is_whole:
        _log.error("instance %d is not committed: its file is missing or damaged", row.id)
    return 0 if is_whole else _PROCESSING_FAILURE
