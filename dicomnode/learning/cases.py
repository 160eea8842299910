"""Decided results as cases of a recipe: which files fill which column, or why a case is left out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom import Dataset, dcmread
from sqlalchemy.orm import Session

from db import learning
from dicomnode.config.conditions import Condition
from dicomnode.learning.targets import Target
from dicomnode.routing.study_snapshot import StudySnapshot
from dicomnode.storage import spool
from model_zoo.splits import assign_split

if TYPE_CHECKING:
    from db.learning import Decision
    from db.models import Instance, Job
    from dicomnode.config import Config
    from dicomnode.config.learning import LearningConfig

__all__ = ["Case", "collect_cases", "name_subject"]

_BY_HAND = ("MANUAL", "SEMIAUTOMATIC")
"""Values of Segment Algorithm Type (0062,0008) of segments that a person drew or corrected."""
_MARKED_IN = ("SeriesDescription", "ImageComments", "DerivationDescription")
_SEG = "SEG"


@dataclass(frozen=True)
class Case:
    """A decided result. ``files``: of one series by column; ``target``: where the target comes from.

    ``left_out``: why the case is in no row of the table, or "".
    """

    job_id: int
    study_id: int
    subject: str
    split: str
    verdict: str
    reason: str
    decided_at: datetime
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    target: str = ""
    left_out: str = ""

    def describe(self) -> dict[str, Any]:
        """Return the case in plain values, without names of files."""
        names = ("job_id", "study_id", "subject", "split", "verdict", "reason", "target", "left_out")
        return {name: getattr(self, name) for name in names} | {"decided_at": self.decided_at.isoformat()}


class _LeftOut(Exception):
    """Reason why a case is in no row."""


def name_subject(patient_id: str) -> str:
    """Return the subject of a patient: always the same one, without the Patient ID in it."""
    return hashlib.sha256(f"dicomnode learning {patient_id.strip()}".encode()).hexdigest()[:16]


def collect_cases(session: Session, entry: LearningConfig, target: Target, config: Config) -> list[Case]:
    """Return every decided result of the pipeline as a case, in the order of the jobs."""
    decisions = learning.list_decisions(session, entry.pipeline)
    return [_make_case(session, each, entry, target, config) for each in decisions]


def _make_case(session: Session, decision: Decision, entry: LearningConfig, target: Target, config: Config) -> Case:
    job = decision.job
    subject = name_subject(job.study.patient_id) if job.study.patient_id.strip() else ""
    split = assign_split(subject) if subject else ""
    facts = (job.id, job.study_id, subject, split, decision.verdict, decision.reason, decision.at)
    try:
        _check_side(decision, split)
        files, origin = _find_files(session, decision, split, entry, target, config)
    except _LeftOut as reason:
        return Case(*facts, left_out=str(reason))
    return Case(*facts, files, origin)


def _check_side(decision: Decision, split: str) -> None:
    if not split:
        raise _LeftOut("the study states no Patient ID, so nothing keeps the patient in one split")
    if decision.is_rejected and split == "train":
        raise _LeftOut("a rejected result is a validation or test case only, and the patient is in the training split")


def _find_files(
    session: Session, decision: Decision, split: str, entry: LearningConfig, target: Target, config: Config
) -> tuple[dict[str, Sequence[Path]], str]:
    """Return the files of each column, and where the target comes from. Raises _LeftOut."""
    job = decision.job
    inputs = _list_inputs(job)
    files: dict[str, Sequence[Path]] = {
        column: _paths(inputs[name], config) for column, name in target.inputs.items() if name in inputs
    }
    if missing := [each for each in target.inputs if each not in (*files, *target.optional)]:
        raise _LeftOut(f"the job has no input for the column {missing[0]}")
    reference = _read_header(files[next(iter(target.inputs))][0]) if target.inputs else None
    if "t1w" in files and not _is_in_frame(_read_header(files["t1w"][0]), reference):
        del files["t1w"]
    snapshot = StudySnapshot(session, job.study)
    input_paths = {path for group in inputs.values() for path in _paths(group, config)}
    for column in target.measured:
        files[column] = _find_measured(snapshot, column, entry.with_[column], reference, config)
        if input_paths & set(files[column]):
            raise _LeftOut(f"the series of with.{column} is an input of the job, so it cannot be the target")
    for column in (each for each in target.label_maps if each in entry.with_):
        if paths := _find_drawn(snapshot, column, entry.with_[column], reference, config):
            files[column] = paths
    if target.column in files:
        return files, "drawn by a person" if target.column in target.label_maps else "measured"
    return files | {target.column: _find_accepted(decision, split, config)}, "accepted by a reader"


def _list_inputs(job: Job) -> dict[str, list[Instance]]:
    found: dict[str, list[Instance]] = {}
    for each in job.inputs:
        found.setdefault(each.name, []).append(each.instance)
    if any(instance.expired_at is not None for group in found.values() for instance in group):
        raise _LeftOut("retention deleted its sources")
    return found


def _find_measured(
    snapshot: StudySnapshot, column: str, conditions: Mapping[str, Condition], reference: Dataset | None, config: Config
) -> Sequence[Path]:
    """Return the files of the one series that meets the conditions, was measured, and lies where the input lies."""
    paths = _find_series(snapshot, column, conditions, config)
    if not paths:
        raise _LeftOut(f"no series of the study meets the conditions of with.{column}")
    header = _read_header(paths[0])
    if any(_is_computed(each) for each in (header, *map(_read_header, paths[1:]))):
        raise _LeftOut(f"the series of with.{column} states that it was computed; a target is measured")
    if reference is not None and not _is_in_frame(header, reference):
        raise _LeftOut(f"the series of with.{column} does not state the frame of reference of the input")
    return paths


def _find_drawn(
    snapshot: StudySnapshot, column: str, conditions: Mapping[str, Condition], reference: Dataset | None, config: Config
) -> Sequence[Path]:
    """Return the Segmentation that a person drew, if the study has one. Raises _LeftOut for one that a program made."""
    paths = _find_series(snapshot, column, conditions, config)
    if not paths:
        return ()
    header = _read_header(paths[0])
    kinds = {str(item.get("SegmentAlgorithmType", "")) for item in header.get("SegmentSequence", ())}
    if header.get("Modality") != _SEG or not kinds or not kinds <= set(_BY_HAND):
        raise _LeftOut(f"the series of with.{column} is no Segmentation whose segments are all {' or '.join(_BY_HAND)}")
    if not _is_in_frame(header, reference):
        raise _LeftOut(f"the series of with.{column} does not state the frame of reference of the input")
    return paths


def _find_accepted(decision: Decision, split: str, config: Config) -> Sequence[Path]:
    """Return the job's own Segmentation, which a reader accepted. Raises _LeftOut where it may not be a target."""
    if not decision.is_accepted:
        raise _LeftOut(f"no person drew its label map, and its result was {decision.verdict}, not accepted by a reader")
    if split == "test":
        raise _LeftOut("its label map is the model's own, accepted as it was: it cannot test the model that made it")
    rows = [row for row in decision.job.outputs if row.kind == "segmentation" and not row.rendition]
    if len(rows) != 1 or rows[0].expired_at is not None:
        raise _LeftOut(f"its result has {len(rows)} segmentations, or retention deleted it; one is needed")
    return (spool.path(config.spool_dir, rows[0].sha256),)


def _find_series(
    snapshot: StudySnapshot, column: str, conditions: Mapping[str, Condition], config: Config
) -> Sequence[Path]:
    found = [each for each in snapshot.usable_series if each.matches(conditions)]
    if len(found) > 1:
        raise _LeftOut(f"{len(found)} series of the study meet the conditions of with.{column}; one is needed")
    return _paths(found[0].instances, config) if found else ()


def _paths(instances: Iterable[Instance], config: Config) -> tuple[Path, ...]:
    return tuple(spool.path(config.spool_dir, each.sha256) for each in instances)


def _read_header(path: Path) -> Dataset:
    try:
        return dcmread(path, stop_before_pixels=True)
    except OSError:
        raise _LeftOut("one of its files is not in the spool") from None


def _is_in_frame(ds: Dataset, reference: Dataset | None) -> bool:
    mine, other = (str(each.get("FrameOfReferenceUID") or "") if each else "" for each in (ds, reference))
    return bool(mine) and mine == other


def _is_computed(ds: Dataset) -> bool:
    """Return whether the header says that a program made the image from others, this node or another one."""
    words = " ".join(str(ds.get(each) or "") for each in ("ImageType", *_MARKED_IN))
    return ds.get("SyntheticData") == "YES" or "SYNTHETIC" in words.upper()
