"""Counts of the content of patients, studies and series, for one page of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import String, and_, cast, func, select
from sqlalchemy.orm import Session, aliased

from db.finding import select_new_results
from db.models import Instance, Job, Output, Series, Study
from db.states import JobState

__all__ = ["CountScope", "count_in_patients", "count_in_series", "count_in_studies"]

_HELD = Series.expired_at.is_(None)


@dataclass(frozen=True)
class CountScope:
    """Session, and the states of jobs whose results are counted."""

    session: Session
    states: tuple[JobState, ...]


_Count = Callable[[CountScope, Sequence[int]], Mapping[int, int]]
_PART = 1000


def count_in_studies(scope: CountScope, ids: Iterable[int], requested: Iterable[str]) -> dict[int, dict[str, Any]]:
    """Return by study the values of those requested keywords that are counts."""
    ids = sorted(set(ids))
    found: dict[int, dict[str, Any]] = {id: {} for id in ids}
    for keyword in sorted(_OF_STUDIES.keys() & set(requested)):
        for id, value in _OF_STUDIES[keyword](scope, ids).items():
            found[id][keyword] = value
    return found


def count_in_patients(scope: CountScope, ids: Iterable[int], requested: Iterable[str]) -> dict[int, dict[str, Any]]:
    """Return by patient, identified by the id of one of its studies, the values of those requested counts."""
    studies = _studies_of_patients(scope, sorted(set(ids)))
    every = [study for own in studies.values() for study in own]
    counts = {
        keyword: _in_parts(scope, every, _OF_PATIENTS[keyword]) for keyword in _OF_PATIENTS.keys() & set(requested)
    }
    return {
        patient: {keyword: sum(each[study] for study in own) for keyword, each in counts.items()}
        for patient, own in studies.items()
    }


def _studies_of_patients(scope: CountScope, ids: Sequence[int]) -> dict[int, list[int]]:
    other = aliased(Study)
    same_id = other.patient_id == Study.patient_id
    same_issuer = other.issuer_of_patient_id == Study.issuer_of_patient_id
    pairs = select(Study.id, other.id).join(other, and_(same_id, same_issuer)).where(Study.id.in_(ids))
    found: dict[int, list[int]] = {id: [] for id in ids}
    for patient, study in scope.session.execute(pairs.where(other.expired_at.is_(None))):
        found[patient].append(study)
    return found


def _in_parts(scope: CountScope, ids: Sequence[int], count: _Count) -> dict[int, int]:
    """Count in parts with few enough ids for one statement."""
    found: dict[int, int] = {}
    for start in range(0, len(ids), _PART):
        found |= count(scope, ids[start : start + _PART])
    return found


def count_in_series(scope: CountScope, pairs: Sequence[tuple[int, str]]) -> dict[tuple[int, str], int]:
    """Return the number of instances of each series, by the study's id and the series' UID."""
    uids = sorted({uid for _, uid in pairs})
    received = select(Series.study_id, Series.series_uid, func.count(Instance.id)).join(Instance)
    received = received.where(Series.series_uid.in_(uids), Instance.expired_at.is_(None)).group_by(
        Series.study_id, Series.series_uid
    )
    results = select_new_results(select(Job.study_id, Output.series_uid, func.count(Output.id)), scope.states)
    results = results.where(Output.series_uid.in_(uids)).group_by(Job.study_id, Output.series_uid)
    found: dict[tuple[int, str], int] = {}
    for statement in (received, results):
        for study, uid, number in scope.session.execute(statement):
            found[study, uid] = found.get((study, uid), 0) + number
    return found


def _instances(scope: CountScope, ids: Sequence[int]) -> dict[int, int]:
    received = (
        select(Series.study_id, func.count(Instance.id))
        .join(Instance)
        .where(Series.study_id.in_(ids), Instance.expired_at.is_(None))
    )
    results = select_new_results(select(Job.study_id, func.count(Output.id)), scope.states).where(Job.study_id.in_(ids))
    found = dict.fromkeys(ids, 0)
    for statement in (received.group_by(Series.study_id), results.group_by(Job.study_id)):
        for study, number in scope.session.execute(statement):
            found[study] += number
    return found


def _series(scope: CountScope, ids: Sequence[int]) -> dict[int, int]:
    received = select(Series.study_id, Series.series_uid).where(Series.study_id.in_(ids), _HELD)
    results = select_new_results(select(Job.study_id, Output.series_uid), scope.states).where(Job.study_id.in_(ids))
    return {study: len(uids) for study, uids in _collect_distinct(scope, ids, received, results).items()}


def _modalities(scope: CountScope, ids: Sequence[int]) -> dict[int, list[str]]:
    received = select(Series.study_id, Series.modality).where(Series.study_id.in_(ids), _HELD)
    modality = cast(Output.attributes["Modality"].as_string(), String)
    results = select_new_results(select(Job.study_id, modality), scope.states).where(Job.study_id.in_(ids))
    return _collect_distinct(scope, ids, received, results)


def _classes(scope: CountScope, ids: Sequence[int]) -> dict[int, list[str]]:
    received = (
        select(Series.study_id, Instance.sop_class_uid)
        .join(Instance)
        .where(Series.study_id.in_(ids), Instance.expired_at.is_(None))
    )
    results = select_new_results(select(Job.study_id, Output.sop_class_uid), scope.states).where(Job.study_id.in_(ids))
    return _collect_distinct(scope, ids, received, results)


def _collect_distinct(scope: CountScope, ids: Sequence[int], *statements: Any) -> dict[int, list[str]]:
    """Return by study the distinct values that the statements yield, sorted."""
    found: dict[int, set[str]] = {id: set() for id in ids}
    for statement in statements:
        for study, value in scope.session.execute(statement.distinct()):
            found[study] |= {value} if value else set()
    return {study: sorted(values) for study, values in found.items()}


_OF_STUDIES: Mapping[str, Callable[[CountScope, Sequence[int]], Mapping[int, Any]]] = {
    "ModalitiesInStudy": _modalities,
    "SOPClassesInStudy": _classes,
    "NumberOfStudyRelatedSeries": _series,
    "NumberOfStudyRelatedInstances": _instances,
}
_OF_PATIENTS: Mapping[str, _Count] = {
    "NumberOfPatientRelatedStudies": lambda scope, ids: dict.fromkeys(ids, 1),
    "NumberOfPatientRelatedSeries": _series,
    "NumberOfPatientRelatedInstances": _instances,
}
"""Count of each study that is summed for a patient."""
