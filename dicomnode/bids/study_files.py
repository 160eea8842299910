"""The files of a study of the node that are exported, with the results that are left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from db import readings
from db.models import Job, Study
from db.states import JobState, ReadingVerdict
from dicomnode import listings
from dicomnode.bids.exporting import Exported
from dicomnode.errors import NotFound
from dicomnode.storage import spool

__all__ = ["StudyFiles", "find_study_files"]


@dataclass(frozen=True)
class StudyFiles:
    """``verdicts``: by SOP Instance UID of a result, the verdicts of gate and reader, as far as known."""

    paths: list[Path]
    left_out: list[Exported]
    verdicts: dict[str, dict[str, Any]]


def find_study_files(session: Session, uid: str, spool_dir: Path) -> StudyFiles:
    """Return instances and results of a study, without trials and results that the gate held or a reader rejected.

    Raises NotFound for an unknown study, and for one without a file.
    """
    study = listings.resolve_study(session, uid)
    done = [job for job in study.jobs if job.state is JobState.DONE and job.shadow_of_id is None]
    tried = [job for job in done if job.is_trial]
    by_job = {job.id: _describe_verdicts(session, job) for job in done}
    rejected = [job for job in done if by_job[job.id].get("ReaderVerdict") == ReadingVerdict.REJECTED]
    usable = [job for job in done if job not in (*rejected, *tried)]
    outputs = [each for job in usable for each in job.outputs if each.expired_at is None and not each.rendition]
    digests = [*_list_received(study), *(each.sha256 for each in outputs)]
    if not digests:
        raise NotFound(f"study {uid}: its files were deleted by [retention]")
    verdicts = {each.sop_instance_uid: by_job[job.id] for job in usable for each in job.outputs}
    rows = [
        Exported(f"job {job.id} {job.pipeline}", left_out="rejected by a reader")
        for job in rejected
        if job not in tried
    ]
    rows += [Exported(f"job {job.id} {job.pipeline}", left_out="a trial, of no route") for job in tried]
    return StudyFiles([spool.path(spool_dir, digest) for digest in digests], rows, verdicts)


def _list_received(study: Study) -> list[str]:
    """Return the digests of received instances; own results that came back are left out."""
    results = {each.sop_instance_uid for job in study.jobs for each in job.outputs}
    stored = [each for series in study.series for each in series.instances if each.expired_at is None]
    return [each.sha256 for each in stored if each.sop_instance_uid not in results]


def _describe_verdicts(session: Session, job: Job) -> dict[str, Any]:
    reading = readings.find_latest(session, job.id)
    gate = {"Verdict": job.report["verdict"]} if "verdict" in job.report else {}
    return gate | ({"ReaderVerdict": str(reading.verdict)} if reading is not None else {})
