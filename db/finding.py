"""The statements that find rows by DICOM keys: received ones, and results of ours that nobody sent back.

A result is told once: not when an archive has returned it (it is a received instance then), and not for a second job
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
"""Word for word what ix_instances_number is on: a parameter in it, and the index would not serve."""
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
    """Keys with a value, in which states a job's results are seen, and how the database spells a pattern."""

    keys: Mapping[str, str]
    states: tuple[JobState, ...]
    dialect: str
    combined: bool = False
    fuzzy: bool = False

    def condition(self, keyword: str, kind: Kind, column: SQLColumnExpression[Any]) -> Condition:
        return matching.make_condition(keyword, kind, column, self.keys[keyword], self.dialect)


def select_studies(wanted: Criteria) -> Select[Any]:
    """Ids, the newest first."""
    return select(Study.id).where(Study.expired_at.is_(None), *_study(wanted)).order_by(Study.id.desc())


def select_patients(wanted: Criteria) -> Select[Any]:
    """Of each patient, an identifier with its issuer, the id of the newest study, by which the patient is described.

    A study without a Patient ID is of no patient here.
    """
    here = (Study.expired_at.is_(None), Study.patient_id != "")
    newest = select(func.max(Study.id)).where(*here).group_by(Study.patient_id, Study.issuer_of_patient_id)
    return select_studies(wanted).where(Study.id.in_(newest))


def select_received_series(wanted: Criteria) -> Select[Any]:
    """Ids of series of which something was received."""
    found = _in_studies(select(Series.id), wanted).where(Series.expired_at.is_(None), *_series(wanted))
    return found.order_by(Series.study_id, Series.id)


def select_result_series(wanted: Criteria) -> Select[Any]:
    """For each series that holds new results only, the id of its first one."""
    same = (Series.study_id == Job.study_id, Series.series_uid == Output.series_uid, Series.expired_at.is_(None))
    known = select(Series.id).where(*same).exists()
    found = select_new_results(select(func.min(Output.id)), wanted.states).where(
        ~known, *_kept(wanted, keywords.SERIES)
    )
    return _of_jobs(found, wanted).group_by(Job.study_id, Output.series_uid).order_by(func.min(Output.id))


def select_received_images(wanted: Criteria) -> Select[Any]:
    """Ids of received instances. Without keys of studies or series one index gives them in their order."""
    above = [*_study(wanted), *_series(wanted)]
    found = select(Instance.id).where(Instance.expired_at.is_(None), *_image(wanted))
    if above:
        series = _in_studies(select(Series.id), wanted).where(*_series(wanted))
        found = found.where(Instance.series_id.in_(series))
    return found.order_by(Instance.series_id, Instance.id)


def select_result_images(wanted: Criteria) -> Select[Any]:
    """Ids of new results."""
    conditions = [*_kept(wanted, keywords.SERIES), *_kept(wanted, keywords.IMAGE)]
    found = select_new_results(select(Output.id), wanted.states).where(*conditions)
    return _of_jobs(found, wanted).order_by(Output.id)


def select_new_results(statement: Any, states: Sequence[JobState]) -> Select[Any]:
    """A selection from outputs and their jobs, of results that are seen and were not sent back."""
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
    return joined.where(*_told(states), ~returned, ~earlier)


def _told(states: Sequence[JobState]) -> tuple[Condition, ...]:
    """Not those of a job that only runs to be compared, nor the form that only some destination wanted, nor what has
    expired."""
    return Job.state.in_(states), Job.shadow_of_id.is_(None), Output.rendition == "", Output.expired_at.is_(None)


def _in_studies(statement: Select[Any], wanted: Criteria) -> Select[Any]:
    """Joined with studies only where their keys matter."""
    conditions = _study(wanted)
    return statement.join(Study, Series.study_id == Study.id).where(*conditions) if conditions else statement


def _of_jobs(statement: Select[Any], wanted: Criteria) -> Select[Any]:
    conditions = _study(wanted)
    return statement.join(Study, Job.study_id == Study.id).where(*conditions) if conditions else statement


def _study(wanted: Criteria) -> list[Condition]:
    conditions: list[Condition] = []
    asked = [keyword for keyword in keywords.STUDY if wanted.keys.get(keyword)]
    if wanted.combined and {"StudyDate", "StudyTime"} <= set(asked):
        asked = [keyword for keyword in asked if keyword not in ("StudyDate", "StudyTime")]
        both = wanted.keys["StudyDate"], wanted.keys["StudyTime"]
        conditions.append(matching.make_moment_condition(Study.study_date, Study.study_time, *both))
    return conditions + [_of_study(wanted, keyword) for keyword in asked if keywords.STUDY[keyword] is not Kind.TOLD]


def _of_study(wanted: Criteria, keyword: str) -> Condition:
    if keyword in keywords.COUNTS:
        return _somewhere(wanted, keyword)
    if keyword in _FOLDED and wanted.fuzzy:
        return matching.make_fuzzy_condition(keyword, _FOLDED[keyword], wanted.keys[keyword], wanted.dialect)
    stated = _FOLDED.get(keyword) or getattr(Study, keywords.STUDY_COLUMNS[keyword])
    return wanted.condition(keyword, keywords.STUDY[keyword], stated)


def _somewhere(wanted: Criteria, keyword: str) -> Condition:
    """ModalitiesInStudy and SOPClassesInStudy: something in the study has one of them.

    Only the study is the one of the statement around it, which may look at series and jobs, too.
    """
    results = select(Job.study_id).join(Output, Output.job_id == Job.id)
    if keyword == "ModalitiesInStudy":
        received = select(Series.study_id).where(wanted.condition(keyword, Kind.CODE, Series.modality))
        received = received.where(Series.expired_at.is_(None))
        results = results.where(wanted.condition(keyword, Kind.CODE, _word(Output.attributes, "Modality")))
    else:
        of_class = wanted.condition(keyword, Kind.UID, Instance.sop_class_uid)
        received = select(Series.study_id).join(Instance).where(of_class, Instance.expired_at.is_(None))
        results = results.where(wanted.condition(keyword, Kind.UID, Output.sop_class_uid))
    received = received.where(Series.study_id == Study.id).correlate(Study)
    results = results.where(Job.study_id == Study.id, *_told(wanted.states)).correlate(Study)
    return or_(received.exists(), results.exists())


def _series(wanted: Criteria) -> list[Condition]:
    return [
        wanted.condition(keyword, kind, _OF_SERIES.get(keyword, _word(Series.attributes, keyword)))
        for keyword, kind in keywords.SERIES.items()
        if wanted.keys.get(keyword) and kind is not Kind.TOLD and keywords.IN_SEQUENCES not in keyword
    ] + _of_items(wanted, Series.attributes)


def _of_items(wanted: Criteria, attributes: InstrumentedAttribute[Any]) -> list[Condition]:
    """That some item of a sequence has all the keys that are asked of it."""
    asked: dict[str, list[str]] = {}
    for keyword in wanted.keys.keys() & keywords.SERIES.keys():
        sequence, inside, name = keyword.partition(keywords.IN_SEQUENCES)
        if inside and wanted.keys[keyword]:
            asked.setdefault(sequence, []).append(name)
    return [_some_item(wanted, attributes, sequence, names) for sequence, names in asked.items()]


def _some_item(wanted: Criteria, attributes: InstrumentedAttribute[Any], sequence: str, names: list[str]) -> Condition:
    unfold = func.json_each if wanted.dialect == "sqlite" else func.json_array_elements
    item = unfold(attributes[sequence]).table_valued(column("value", JSON), name="item")
    conditions = [
        wanted.condition(keyword, keywords.SERIES[keyword], cast(item.c.value[name].as_string(), String))
        for name in names
        for keyword in [f"{sequence}{keywords.IN_SEQUENCES}{name}"]
    ]
    return select(literal(1)).select_from(item).where(*conditions).correlate(attributes.class_).exists()


def _image(wanted: Criteria) -> list[Condition]:
    indexed = {**_OF_INSTANCES, "InstanceNumber": literal_column(_INSTANCE_NUMBER[wanted.dialect], String())}
    return [
        wanted.condition(keyword, kind, indexed.get(keyword, _word(Instance.attributes, keyword)))
        for keyword, kind in keywords.IMAGE.items()
        if wanted.keys.get(keyword)
    ]


def _kept(wanted: Criteria, kinds: Mapping[str, Kind]) -> list[Condition]:
    """On a result, whose attributes of series and instance stand in its own row."""
    return [
        wanted.condition(keyword, kind, _OF_RESULTS.get(keyword, _word(Output.attributes, keyword)))
        for keyword, kind in kinds.items()
        if wanted.keys.get(keyword) and kind is not Kind.TOLD and keywords.IN_SEQUENCES not in keyword
    ] + (_of_items(wanted, Output.attributes) if kinds is keywords.SERIES else [])


def _word(attributes: InstrumentedAttribute[Any], keyword: str) -> ColumnElement[str]:
    """One attribute as text, numbers included: a cast to a number would fail where somebody sent words."""
    return cast(attributes[keyword].as_string(), String)
