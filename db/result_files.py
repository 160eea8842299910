"""Result objects of jobs and their deliveries."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from db.models import Delivery, Job, Output
from db.studies import StoredFile

__all__ = ["OutputFile", "add_outputs", "enqueue_deliveries"]


@dataclass(frozen=True)
class OutputFile:
    """Result object in the spool; ``attributes``: ``keywords.RESULT_STORED``, for searches.

    ``rendition``, ``destinations``, ``spare_for``: as in the row. ``at_once``: True where the object is delivered
    although the job is held.
    """

    sop_instance_uid: str
    sop_class_uid: str
    series_uid: str
    kind: str
    file: StoredFile
    transfer_syntax_uid: str = "1.2.840.10008.1.2.1"
    attributes: Mapping[str, Any] | None = None
    rendition: str = ""
    destinations: tuple[str, ...] | None = None
    spare_for: tuple[str, ...] = ()
    at_once: bool = False


def add_outputs(job: Job, outputs: Sequence[OutputFile], now: datetime) -> None:
    """Add the outputs that no earlier run of the job has left, and update the destinations of the others."""
    rows = {row.sop_instance_uid: row for row in job.outputs}
    for output in outputs:
        row = rows.get(output.sop_instance_uid)
        if row is None:
            row = _row(output, now)
            job.outputs.append(row)
        if row.expired_at is not None:  # retention has removed the file of an earlier run
            row.expired_at = row.removed_at = None
            row.sha256, row.size_bytes = output.file.sha256, output.file.size_bytes
            row.relative_path = output.file.relative_path
        row.rendition = output.rendition
        row.destinations = None if output.destinations is None else list(output.destinations)
        row.spare_for = list(output.spare_for) or None


def _row(output: OutputFile, now: datetime) -> Output:
    return Output(
        sop_instance_uid=output.sop_instance_uid,
        sop_class_uid=output.sop_class_uid,
        series_uid=output.series_uid,
        kind=output.kind,
        sha256=output.file.sha256,
        size_bytes=output.file.size_bytes,
        relative_path=output.file.relative_path,
        created_at=now,
        transfer_syntax_uid=output.transfer_syntax_uid,
        attributes=None if output.attributes is None else dict(output.attributes),
    )


def enqueue_deliveries(job: Job, now: datetime, only: Collection[str] | None = None) -> None:
    """Add the deliveries that are missing: each output to each of its destinations."""
    for output in job.outputs:
        if only is not None and output.sop_instance_uid not in only:
            continue
        enqueued = {delivery.destination for delivery in output.deliveries}
        intended = job.destinations if output.destinations is None else output.destinations
        for destination in (each for each in job.destinations if each in intended and each not in enqueued):
            output.deliveries.append(Delivery(destination=destination, not_before=now, created_at=now))
