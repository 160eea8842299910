"""Statements that find rows by DICOM keys: received rows, and new results, which no archive has sent back.

A result is found once: not when an archive has returned it (it is a received instance then), and not for a second job
that made the same object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Select,
    SQLColumnExpression,
    String,
    cast,
    column,
    func,
    literal,
    literal_column,
    or_,
    select,
)
from sqlalchemy.orm import InstrumentedAttribute, aliased

from db import keywords, matching
from db.keywords import Kind
from db.models import Instance, Job, Output, Series, Study
from db.states import JobState

__all__ = [
    "Criteria",
    "select_new_results",
    "select_patients",
    "select_received_images",
    "select_received_series",
    "select_result_images",
    "select_result_series",
    "select_studies",
]

Condition = ColumnElement[bool]

_FOLDED: Mapping[str, InstrumentedAttribute[str]] = {
    "PatientName": Study.patient_folded,
    "ReferringPhysicianName": Study.referring_physician_folded,
}
_OF_INSTANCES: Mapping[str, ColumnElement[str] | InstrumentedAttribute[str]] = {
    "SOPInstanceUID": Instance.sop_instance_uid,
    "SOPClassUID": Instance.sop_class_uid,
    "AvailableTransferSyntaxUID": Instance.transfer_syntax_uid,
}
_INSTANCE_NUMBER = {
    "sqlite": """CAST(JSON_EXTRACT(instances.attributes, '$."InstanceNumber"') AS VARCHAR)""",
    "postgresql": "(instances.attributes ->> 'InstanceNumber')",
}
"""Exact expression of the index ix_instances_number: with a parameter in it the index would not be used."""
_OF_RESULTS: Mapping[str, InstrumentedAttribute[str]] = {
    "SOPInstanceUID": Output.sop_instance_uid,
    "SOPClassUID": Output.sop_class_uid,
    "AvailableTransferSyntaxUID": Output.transfer_syntax_uid,
    "SeriesInstanceUID": Output.series_uid,
}
_OF_SERIES: Mapping[str, InstrumentedAttribute[str]] = {
    "SeriesInstanceUID": Series.series_uid,
    "Modality": Series.modality,
}


@dataclass(frozen=True)
class Criteria:
    """Keys with a value, the states of jobs whose results are visible, and the database's dialect.

    ``combined`` and ``fuzzy``: as in ``catalogue.Query``.
    """

    keys: Mapping[str, str]
    states: tuple[JobState, ...]
    dialect: str
    combined: bool = False
    fuzzy: bool = False

    def condition(self, keyword: str, kind: Kind, column: SQLColumnExpression[Any]) -> Condition:
        """Return the condition that the column matches the key."""
        return matching.make_condition(keyword, kind, column, self.keys[keyword], self.dialect)


def select_studies(criteria: Criteria) -> Select[Any]:
    """Select the ids of studies, the newest first."""
    return select(Study.id).where(Study.expired_at.is_(None), *_study(criteria)).order_by(Study.id.desc())


def select_patients(criteria: Criteria) -> Select[Any]:
    """Select for each patient (Patient ID and issuer) the id of the newest study, which describes the patient.

    A study without a Patient ID belongs to no patient here.
    """
    here = (Study.expired_at.is_(None), Study.patient_id != "")
    newest = select(func.max(Study.id)).where(*here).group_by(Study.patient_id, Study.issuer_of_patient_id)
    return select_studies(criteria).where(Study.id.in_(newest))


def select_received_series(criteria: Criteria) -> Select[Any]:
    """Select the ids of received series."""
    query = _in_studies(select(Series.id), criteria).where(Series.expired_at.is_(None), *_series(criteria))
    return query.order_by(Series.study_id, Series.id)


def select_result_series(criteria: Criteria) -> Select[Any]:
    """Select for each series of new results only the id of its first result."""
    same = (Series.study_id == Job.study_id, Series.series_uid == Output.series_uid, Series.expired_at.is_(None))
    known = select(Series.id).where(*same).exists()
    query = select_new_results(select(func.min(Output.id)), criteria.states).where(
        ~known, *_result_conditions(criteria, keywords.SERIES)
    )
    return _of_jobs(query, criteria).group_by(Job.study_id, Output.series_uid).order_by(func.min(Output.id))


def select_received_images(criteria: Criteria) -> Select[Any]:
    """Select the ids of received instances; without keys of studies or series one index yields them in order."""
    above = [*_study(criteria), *_series(criteria)]
    query = select(Instance.id).where(Instance.expired_at.is_(None), *_image(criteria))
    if above:
        series = _in_studies(select(Series.id), criteria).where(*_series(criteria))
        query = query.where(Instance.series_id.in_(series))
    return query.order_by(Instance.series_id, Instance.id)


def select_result_images(criteria: Criteria) -> Select[Any]:
    """Select the ids of new results."""
    conditions = [*_result_conditions(criteria, keywords.SERIES), *_result_conditions(criteria, keywords.IMAGE)]
    query = select_new_results(select(Output.id), criteria.states).where(*conditions)
    return _of_jobs(query, criteria).order_by(Output.id)


def select_new_results(statement: Any, states: Sequence[JobState]) -> Select[Any]:
    """Restrict a selection from outputs and their jobs to visible results that no archive has sent back."""
    back = (Instance.sop_instance_uid == Output.sop_instance_uid, Instance.expired_at.is_(None))
    returned = select(Instance.id).where(*back).exists()
    output, job = aliased(Output), aliased(Job)
    same = (
        output.sop_instance_uid == Output.sop_instance_uid,
        output.id < Output.id,
        output.rendition == "",
        output.expired_at.is_(None),
        job.state.in_(states),
        job.shadow_of_id.is_(None),
    )
    earlier = select(output.id).join(job, output.job_id == job.id).where(*same).exists()
    joined: Select[Any] = statement.select_from(Output).join(Job, Output.job_id == Job.id)
    return joined.where(*_are_visible(states), ~returned, ~earlier)


def _are_visible(states: Sequence[JobState]) -> tuple[Condition, ...]:
    """Return the conditions of visible results: of no shadow job, no rendition for single destinations, not expired."""
    return Job.state.in_(states), Job.shadow_of_id.is_(None), Output.rendition == "", Output.expired_at.is_(None)


def _in_studies(statement: Select[Any], criteria: Criteria) -> Select[Any]:
    """Join the statement with studies only where it has keys of theirs."""
    conditions = _study(criteria)
    return statement.join(Study, Series.study_id == Study.id).where(*conditions) if conditions else statement


def _of_jobs(statement: Select[Any], criteria: Criteria) -> Select[Any]:
    conditions = _study(criteria)
    return statement.join(Study, Job.study_id == Study.id).where(*conditions) if conditions else statement


def _study(criteria: Criteria) -> list[Condition]:
    conditions: list[Condition] = []
    keys = [keyword for keyword in keywords.STUDY if criteria.keys.get(keyword)]
    if criteria.combined and {"StudyDate", "StudyTime"} <= set(keys):
        keys = [keyword for keyword in keys if keyword not in ("StudyDate", "StudyTime")]
        both = criteria.keys["StudyDate"], criteria.keys["StudyTime"]
        conditions.append(matching.make_moment_condition(Study.study_date, Study.study_time, *both))
    return conditions + [
        _of_study(criteria, keyword) for keyword in keys if keywords.STUDY[keyword] is not Kind.RETURNED
    ]


def _of_study(criteria: Criteria, keyword: str) -> Condition:
    if keyword in keywords.COUNTS:
        return _has_in_study(criteria, keyword)
    if keyword in _FOLDED and criteria.fuzzy:
        return matching.make_fuzzy_condition(keyword, _FOLDED[keyword], criteria.keys[keyword], criteria.dialect)
    column = _FOLDED.get(keyword) or getattr(Study, keywords.STUDY_COLUMNS[keyword])
    return criteria.condition(keyword, keywords.STUDY[keyword], column)


def _has_in_study(criteria: Criteria, keyword: str) -> Condition:
    """Return the condition that something in the study has one of the modalities or SOP classes of the key.

    Only Study is correlated: the enclosing statement may select from series and jobs, too.
    """
    results = select(Job.study_id).join(Output, Output.job_id == Job.id)
    if keyword == "ModalitiesInStudy":
        received = select(Series.study_id).where(criteria.condition(keyword, Kind.CODE, Series.modality))
        received = received.where(Series.expired_at.is_(None))
        results = results.where(criteria.condition(keyword, Kind.CODE, _as_text(Output.attributes, "Modality")))
    else:
        of_class = criteria.condition(keyword, Kind.UID, Instance.sop_class_uid)
        received = select(Series.study_id).join(Instance).where(of_class, Instance.expired_at.is_(None))
        results = results.where(criteria.condition(keyword, Kind.UID, Output.sop_class_uid))
    received = received.where(Series.study_id == Study.id).correlate(Study)
    results = results.where(Job.study_id == Study.id, *_are_visible(criteria.states)).correlate(Study)
    return or_(received.exists(), results.exists())


def _series(criteria: Criteria) -> list[Condition]:
    return [
        criteria.condition(keyword, kind, _OF_SERIES.get(keyword, _as_text(Series.attributes, keyword)))
        for keyword, kind in keywords.SERIES.items()
        if criteria.keys.get(keyword) and kind is not Kind.RETURNED and keywords.IN_SEQUENCES not in keyword
    ] + _of_items(criteria, Series.attributes)


def _of_items(criteria: Criteria, attributes: InstrumentedAttribute[Any]) -> list[Condition]:
    """Return conditions that some item of each sequence matches all keys of that sequence."""
    names_by_sequence: dict[str, list[str]] = {}
    for keyword in criteria.keys.keys() & keywords.SERIES.keys():
        sequence, inside, name = keyword.partition(keywords.IN_SEQUENCES)
        if inside and criteria.keys[keyword]:
            names_by_sequence.setdefault(sequence, []).append(name)
    return [_some_item(criteria, attributes, sequence, names) for sequence, names in names_by_sequence.items()]


def _some_item(
    criteria: Criteria, attributes: InstrumentedAttribute[Any], sequence: str, names: list[str]
) -> Condition:
    unfold = func.json_each if criteria.dialect == "sqlite" else func.json_array_elements
    item = unfold(attributes[sequence]).table_valued(column("value", JSON), name="item")
    conditions = [
        criteria.condition(keyword, keywords.SERIES[keyword], cast(item.c.value[name].as_string(), String))
        for name in names
        for keyword in [f"{sequence}{keywords.IN_SEQUENCES}{name}"]
    ]
    return select(literal(1)).select_from(item).where(*conditions).correlate(attributes.class_).exists()


def _image(criteria: Criteria) -> list[Condition]:
    indexed = {**_OF_INSTANCES, "InstanceNumber": literal_column(_INSTANCE_NUMBER[criteria.dialect], String())}
    return [
        criteria.condition(keyword, kind, indexed.get(keyword, _as_text(Instance.attributes, keyword)))
        for keyword, kind in keywords.IMAGE.items()
        if criteria.keys.get(keyword)
    ]


def _result_conditions(criteria: Criteria, kinds: Mapping[str, Kind]) -> list[Condition]:
    """Return conditions on a result, whose own row holds the attributes of its series and instance."""
    return [
        criteria.condition(keyword, kind, _OF_RESULTS.get(keyword, _as_text(Output.attributes, keyword)))
        for keyword, kind in kinds.items()
        if criteria.keys.get(keyword) and kind is not Kind.RETURNED and keywords.IN_SEQUENCES not in keyword
    ] + (_of_items(criteria, Output.attributes) if kinds is keywords.SERIES else [])


def _as_text(attributes: InstrumentedAttribute[Any], keyword: str) -> ColumnElement[str]:
    """Return one attribute as text, numbers included: a cast to a number would fail on a value that is not one."""
    return cast(attributes[keyword].as_string(), String)
