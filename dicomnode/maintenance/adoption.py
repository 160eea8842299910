"""Adoption of files in the spool without a row into the database, as if they were received again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydicom import dcmread
from sqlalchemy.orm import Session, sessionmaker

from db import quarantine, studies
from db.models import Chain, Instance
from db.studies import InstanceFacts, Sender, StoredFile
from dicomnode.datasets import headers
from dicomnode.deidentify import own_results
from dicomnode.errors import NodeError
from dicomnode.maintenance import verification
from dicomnode.storage import spool
from dicomnode.storage.high_water import HighWater

__all__ = ["AdoptionResult", "adopt"]


@dataclass(frozen=True)
class AdoptionResult:
    """Outcome for one file; ``reason``: why the file was left or quarantined."""

    file: str
    outcome: Literal["adopted", "quarantined", "left"]
    reason: str = ""


def adopt(sessions: sessionmaker[Session], root: Path, *, now: datetime) -> Iterator[AdoptionResult]:
    """Register every file without a row, then set the mark of the spool to what the database holds.

    Results of this node are left: the jobs of the studies that are routed again make them anew.
    """
    for found in verification.find_orphans(sessions, root, now=now, fresh_too=True):
        if found.what == "no row":
            yield _adopt_file(sessions, root, found, now)
    with sessions() as session:
        head = session.get_one(Chain, 1)
        HighWater(root).reset(head.seq, head.hash)


def _adopt_file(
    sessions: sessionmaker[Session], root: Path, found: verification.Discrepancy, now: datetime
) -> AdoptionResult:
    digest = Path(found.file).stem
    path = spool.path(root, digest)
    if verification.check_content(path, digest) is not None:
        return AdoptionResult(found.file, "left", "its content is not what its name says")
    try:
        facts = headers.read(path)
    except NodeError as error:
        return AdoptionResult(found.file, "left", str(error))
    header = dcmread(path, stop_before_pixels=True)
    if own_results.is_own_result(header):
        return AdoptionResult(found.file, "left", "a result of this node: its job makes it again")
    sender = Sender(str(header.file_meta.get("SourceApplicationEntityTitle", "")), "adopted")
    return _register(sessions, facts, StoredFile(digest, found.size_bytes, found.file), sender, now)


def _register(
    sessions: sessionmaker[Session], facts: InstanceFacts, file: StoredFile, sender: Sender, now: datetime
) -> AdoptionResult:
    with sessions.begin() as session:
        done = studies.register_instance(session, facts=facts, file=file, sender=sender, now=now)
        if done.kind != "conflict":
            # requests for commitment may be lost with the rows: what a scanner may have deleted is kept
            if done.instance_id is not None:
                session.get_one(Instance, done.instance_id).committed_at = now
            return AdoptionResult(file.relative_path, "adopted")
        reason = quarantine.describe_conflict(session, done.instance_id)
        studies.quarantine(session, file=file, reason=reason, facts=facts, sender=sender, now=now)
    return AdoptionResult(file.relative_path, "quarantined", reason)
