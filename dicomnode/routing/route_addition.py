"""The addition of a route to node.toml by a person: planned, shown, then written and entered in the audit trail."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from sqlalchemy.orm import Session, sessionmaker

from db import audit
from dicomnode.config import route_blocks
from dicomnode.config.route_blocks import Addition, RouteBlock
from dicomnode.deployment import pipeline_names

__all__ = ["plan", "write"]


def plan(path: Path, block: RouteBlock, *, who: str, reason: str, now: datetime) -> Addition:
    """Return the change of node.toml, checked as at the start of a node; a comment above the block says who and why.

    Raises ConfigError.
    """
    addition = route_blocks.plan(path, block, f"Added {now:%Y-%m-%d} by {who}: {reason}")
    pipeline_names.check_pipeline(block.route.pipeline, addition.config)
    return addition


def write(
    sessions: sessionmaker[Session], addition: Addition, block: RouteBlock, *, who: str, reason: str, now: datetime
) -> Path:
    """Write the planned change and an event that names it; return the path of the old file.

    Raises ConfigError where node.toml cannot be written, NotAllowed where it has changed since.
    """
    with _restore_unless_committed(addition) as replaced_files, sessions.begin() as session:
        kept_path = route_blocks.write(addition, now=now)
        replaced_files.append(kept_path)
        detail = {
            "who": who,
            "reason": f"by {who}: {reason}",
            "pipeline": block.route.pipeline,
            "block": block.text,
            "sha256_before": addition.sha256_before,
            "sha256_after": hashlib.sha256(addition.content).hexdigest(),
            "old_file": kept_path.name,
        }
        audit.append(
            session, subject="node.toml", subject_id=block.route.name, event="route added", detail=detail, now=now
        )
    return kept_path


@contextmanager
def _restore_unless_committed(addition: Addition) -> Iterator[list[Path]]:
    """Yield a list for the path of the old file, which gets its name back where the event is not written."""
    replaced_files: list[Path] = []
    try:
        yield replaced_files
    except BaseException:
        for path in replaced_files:
            route_blocks.restore(addition, path)
        raise
