"""What the node holds: received instances and the results of its jobs, found by the matching of PS3.4 C.2.2.2.

One answer for every wire (C-FIND, C-MOVE, C-GET, QIDO, WADO) and for the dashboard. Nothing here knows a wire: DICOM
keywords and values come in, plain values go out. A result that an archive has sent back is one instance, not two.
Results of jobs that are held, refused, discarded or failed are not found; ``include_held`` finds the held ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Any, Literal, get_args

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from db import finding, keywords, matching, tallies
from db.finding import Criteria
from db.matching import BadValue
from db.models import Instance, Job, Output, Series, Study
from db.states import JobState

__all__ = [
    "BadValue",
    "Level",
    "Match",
    "Query",
    "StoredObject",
    "count",
    "find_objects",
    "scan",
    "search",
    "supported_keywords",
]

Level = Literal["PATIENT", "STUDY", "SERIES", "IMAGE"]

_GROUP = 200
"""So many matches are loaded at once."""


@dataclass(frozen=True)
class Query:
    """What is asked.

    ``keys``: keyword to the value to match, as DICOM writes it: one value; UIDs separated by backslashes; ``*`` and
    ``?`` in text; ``from-to``, ``from-`` and ``-to`` for dates and times; empty for any. Keys of the level and of the
    levels above it are matched (relational); those that ``supported`` does not name are ignored, so ask it first.
    ``wanted``: keywords that cost a look at other rows and are therefore told only on demand: ModalitiesInStudy,
    SOPClassesInStudy, NumberOfStudyRelatedSeries, NumberOfStudyRelatedInstances, NumberOfSeriesRelatedInstances,
    and at PATIENT level NumberOfPatientRelatedStudies, ...Series and ...Instances.
    Asking for them at a lower level is allowed (the study's counts with each series).
    ``combined``: StudyDate and StudyTime are one moment (PS3.4 C.2.2.2.5; always so in QIDO-RS).
    ``fuzzy``: every word of a person's name must begin some word of the name.
    ``limit`` and ``offset`` page through an order that does not change unless rows do: studies newest first; series
    and instances as they came, results after what was received.
    """

    level: Level
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    wanted: frozenset[str] = frozenset()
    include_held: bool = False
    combined: bool = False
    fuzzy: bool = False
    limit: int | None = None
    offset: int = 0


@dataclass(frozen=True)
class StoredObject:
    """One instance and its file: ``spool.path(root, sha256)``. ``is_result``: a result of ours, which goes on no wire
    before ``marking.check`` has passed it; ``is_held``: it waits for a person's decision."""

    study_uid: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    sha256: str
    size_bytes: int
    is_result: bool = False
    is_held: bool = False


@dataclass(frozen=True)
class Match:
    """One answer. ``attributes``: keyword to value (text, number, or a list of them) of its level and of all above,
    what is not known left out; ``stored`` at IMAGE level only."""

    level: Level
    attributes: Mapping[str, Any] = field(repr=False)
    stored: StoredObject | None = None


def supported_keywords(level: Level) -> frozenset[str]:
    """The keywords that can be matched or are told at this level, those of the levels above included."""
    if level == "PATIENT":
        return frozenset(keywords.PATIENT)
    levels = (keywords.STUDY, keywords.SERIES, keywords.IMAGE)[: get_args(Level).index(level)]
    return frozenset(keyword for each in levels for keyword in each)


def search(session: Session, query: Query) -> list[Match]:
    """One page of matches. Raises BadValue."""
    return list(scan(session, query))


def scan(session: Session, query: Query) -> Iterator[Match]:
    """All matches (``limit`` and ``offset`` apply), loaded in small groups: for who answers one by one.

    What matches is decided at the start; rows that come later are not among it. Raises BadValue.
    """
    wanted = _wanted(session, query)
    rows = iter(_page(session, query, *_statements(query.level, wanted)))
    while group := list(islice(rows, _GROUP)):
        yield from _load(tallies.CountScope(session, wanted.states), query, group)


def count(session: Session, query: Query) -> int:
    """How many matches there are, whatever the page. Raises BadValue."""
    statements = _statements(query.level, _wanted(session, query))
    return sum(_number_of(session, statement) for statement in statements if statement is not None)


def find_objects(
    session: Session,
    *,
    study_uid: str = "",
    series_uids: Sequence[str] = (),
    sop_instance_uids: Sequence[str] = (),
    patient: Mapping[str, str] = MappingProxyType({}),
    include_held: bool = False,
) -> list[StoredObject]:
    """The instances of a study, of some of its series, or some of their instances, for retrieval.

    ``patient``: keys of the patient that they must be of; without a study, all instances of that patient.
    Raises ValueError for neither a study nor a patient.
    """
    if not study_uid and not patient:
        raise ValueError("instances are retrieved of a study or of a patient")
    keys = {
        **patient,
        "StudyInstanceUID": study_uid,
        "SeriesInstanceUID": "\\".join(series_uids),
        "SOPInstanceUID": "\\".join(sop_instance_uids),
    }
    matches = scan(session, Query("IMAGE", keys, include_held=include_held))
    return [match.stored for match in matches if match.stored]


_Row = tuple[bool, int]
"""Whether a result, and the row's id."""

_Statement = Select[Any]


def _wanted(session: Session, query: Query) -> Criteria:
    states = (JobState.DONE, JobState.HELD) if query.include_held else (JobState.DONE,)
    keys = {keyword: value for keyword, value in query.keys.items() if value.strip("*\\ ")}  # only stars: any value
    for keyword, value in keys.items():
        if keyword in keywords.KINDS:
            matching.check_value(keyword, keywords.KINDS[keyword], value)
    dialect = session.get_bind().dialect.name
    return Criteria(keys, states, dialect, combined=query.combined, fuzzy=query.fuzzy)


def _statements(level: Level, wanted: Criteria) -> tuple[_Statement, _Statement | None]:
    """Of what was received, and of new results. A study is always received: results belong to one."""
    if level == "PATIENT":
        return finding.select_patients(wanted), None
    if level == "STUDY":
        return finding.select_studies(wanted), None
    if level == "SERIES":
        return finding.select_received_series(wanted), finding.select_result_series(wanted)
    return finding.select_received_images(wanted), finding.select_result_images(wanted)


def _page(session: Session, query: Query, received: _Statement, results: _Statement | None) -> list[_Row]:
    found = [(False, id) for id in session.scalars(received.limit(query.limit).offset(query.offset))]
    left = None if query.limit is None else query.limit - len(found)
    if results is None or left == 0:
        return found
    skipped = query.offset - _number_of(session, received) if query.offset and not found else 0
    return found + [(True, id) for id in session.scalars(results.limit(left).offset(skipped))]


def _number_of(session: Session, statement: _Statement) -> int:
    return session.scalar(select(func.count()).select_from(statement.order_by(None).subquery())) or 0


def _load(seen: tallies.CountScope, query: Query, rows: Sequence[_Row]) -> list[Match]:
    """The matches of some rows in their order; what was deleted meanwhile is left out."""
    ids = {kind: [id for result, id in rows if result is kind] for kind in (False, True)}
    found: dict[_Row, tuple[int, Match]] = {}
    if query.level in ("PATIENT", "STUDY"):
        for study in seen.session.scalars(select(Study).where(Study.id.in_(ids[False]))):
            told = _of_study(study)
            attributes = keywords.pick(told, keywords.PATIENT) if query.level == "PATIENT" else told
            found[False, study.id] = study.id, Match(query.level, attributes)
    elif query.level == "SERIES":
        for series, study in seen.session.execute(_with_study(select(Series, Study), Series.id, ids[False])):
            found[False, series.id] = study.id, Match("SERIES", _of_study(study) | _of_series(series))
    else:
        statement = _with_study(select(Instance, Series, Study).join(Instance.series), Instance.id, ids[False])
        for instance, series, study in seen.session.execute(statement):
            found[False, instance.id] = study.id, _image(instance, series, study)
    for output, state, study in seen.session.execute(_results(ids[True])) if ids[True] else ():
        found[True, output.id] = study.id, _result(query.level, output, study, state is JobState.HELD)
    return _counted(seen, query, [found[row] for row in rows if row in found])


def _with_study(statement: Any, column: Any, ids: Sequence[int]) -> Any:
    return statement.join(Study, Series.study_id == Study.id).where(column.in_(ids))


def _results(ids: Sequence[int]) -> Any:
    joined = select(Output, Job.state, Study).join(Job, Output.job_id == Job.id).join(Study, Job.study_id == Study.id)
    return joined.where(Output.id.in_(ids))


def _of_study(study: Study) -> dict[str, Any]:
    values = {keyword: getattr(study, column) for keyword, column in keywords.STUDY_COLUMNS.items()}
    return {keyword: value for keyword, value in values.items() if value}


def _of_series(series: Series) -> dict[str, Any]:
    values = keywords.pick(series.attributes, keywords.SERIES)
    return (
        values | {"SeriesInstanceUID": series.series_uid} | ({"Modality": series.modality} if series.modality else {})
    )


def _image(row: Instance, series: Series, study: Study) -> Match:
    stored = StoredObject(
        study.study_uid,
        series.series_uid,
        row.sop_instance_uid,
        row.sop_class_uid,
        row.transfer_syntax_uid,
        row.sha256,
        row.size_bytes,
    )
    return Match("IMAGE", _of_study(study) | _of_series(series) | _of_image(stored, row.attributes), stored)


def _result(level: Level, row: Output, study: Study, held: bool) -> Match:
    kept = row.attributes or {}
    series = keywords.pick(kept, keywords.SERIES) | {"SeriesInstanceUID": row.series_uid}
    if level == "SERIES":
        return Match("SERIES", _of_study(study) | series)
    stored = StoredObject(
        study.study_uid,
        row.series_uid,
        row.sop_instance_uid,
        row.sop_class_uid,
        row.transfer_syntax_uid,
        row.sha256,
        row.size_bytes,
        is_result=True,
        is_held=held,
    )
    return Match("IMAGE", _of_study(study) | series | _of_image(stored, kept), stored)


def _of_image(stored: StoredObject, kept: Mapping[str, Any] | None) -> dict[str, Any]:
    return keywords.pick(kept or {}, keywords.IMAGE_STORED) | {
        "SOPInstanceUID": stored.sop_instance_uid,
        "SOPClassUID": stored.sop_class_uid,
        "AvailableTransferSyntaxUID": stored.transfer_syntax_uid,
    }


def _counted(seen: tallies.CountScope, query: Query, found: Sequence[tuple[int, Match]]) -> list[Match]:
    """With what other rows have to be looked at for, as far as it is wanted."""
    if not query.wanted & keywords.COUNTS:
        return [match for _, match in found]
    tally = tallies.count_in_patients if query.level == "PATIENT" else tallies.count_in_studies
    of_studies = tally(seen, [id for id, _ in found], query.wanted)
    pairs = [(id, str(match.attributes.get("SeriesInstanceUID", ""))) for id, match in found]
    in_series = "NumberOfSeriesRelatedInstances" in query.wanted and query.level in ("SERIES", "IMAGE")
    of_series = tallies.count_in_series(seen, pairs) if in_series else {}
    return [
        Match(
            match.level,
            {**match.attributes, **of_studies[pair[0]], **_if_counted(of_series.get(pair))},
            match.stored,
        )
        for pair, (_, match) in zip(pairs, found, strict=True)
    ]


def _if_counted(number: int | None) -> dict[str, Any]:
    return {} if number is None else {"NumberOfSeriesRelatedInstances": number}
