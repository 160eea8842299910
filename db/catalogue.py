"""Search of the node's holdings, received instances and results of its jobs, by the matching of PS3.4 C.2.2.2.

One answer serves every protocol (C-FIND, C-MOVE, C-GET, QIDO, WADO) and the dashboard: DICOM keywords and values come
in, plain values go out. A result that an archive has sent back is one instance, not two. Results of jobs that are held,
refused, discarded or failed are not found; ``include_held`` finds the held ones.
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
"""Matches loaded at once."""


@dataclass(frozen=True)
class Query:
    """Query of the catalogue.

    ``keys``: keyword to the value to match, as DICOM writes it: one value; UIDs separated by backslashes; ``*`` and
    ``?`` in text; ``from-to``, ``from-`` and ``-to`` for dates and times; empty for any. Keys of the level and of the
    levels above it are matched (relational); keywords that ``supported_keywords`` lacks are ignored.
    ``counts``: keywords that are read from other rows and therefore returned only on demand: ModalitiesInStudy,
    SOPClassesInStudy, NumberOfStudyRelatedSeries, NumberOfStudyRelatedInstances, NumberOfSeriesRelatedInstances,
    and at PATIENT level NumberOfPatientRelatedStudies, ...Series and ...Instances.
    They may be requested at a lower level, too (the study's counts with each series).
    ``combined``: True where StudyDate and StudyTime are one moment (PS3.4 C.2.2.2.5; always so in QIDO-RS).
    ``fuzzy``: True where every word of the key for a person's name must begin some word of the name.
    ``limit`` and ``offset`` page through an order that does not change unless rows do: studies newest first; series
    and instances as they came, results after what was received.
    """

    level: Level
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    counts: frozenset[str] = frozenset()
    include_held: bool = False
    combined: bool = False
    fuzzy: bool = False
    limit: int | None = None
    offset: int = 0


@dataclass(frozen=True)
class StoredObject:
    """Instance and its file: ``spool.path(root, sha256)``.

    ``is_result``: True for our own result, which is sent only after ``marking.check`` has passed it. ``is_held``: True
    where the result waits for a person's decision.
    """

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
    """Match of a query.

    ``attributes``: keyword to value (text, number, or a list of them) of its level and all levels above, unknown ones
    left out. ``stored``: at IMAGE level only.
    """

    level: Level
    attributes: Mapping[str, Any] = field(repr=False)
    stored: StoredObject | None = None


def supported_keywords(level: Level) -> frozenset[str]:
    """Return the keywords that can be matched or returned at this level, those of the levels above included."""
    if level == "PATIENT":
        return frozenset(keywords.PATIENT)
    levels = (keywords.STUDY, keywords.SERIES, keywords.IMAGE)[: get_args(Level).index(level)]
    return frozenset(keyword for each in levels for keyword in each)


def find_unmatched(keys: Mapping[str, str]) -> list[str]:
    """Return the supported keywords with a value that no search matches, such as the numbers of related instances."""
    kinds = {**keywords.PATIENT, **keywords.KINDS}
    return [keyword for keyword, value in keys.items() if value and kinds[keyword] is keywords.Kind.RETURNED]


def search(session: Session, query: Query) -> list[Match]:
    """Return one page of matches. Raises BadValue."""
    return list(scan(session, query))


def scan(session: Session, query: Query) -> Iterator[Match]:
    """Yield all matches (``limit`` and ``offset`` apply), loaded in small groups, for answers that are sent one by one.

    The set of matches is fixed at the start: rows that are added later are not in it. Raises BadValue.
    """
    criteria = _make_criteria(session, query)
    rows = iter(_page(session, query, *_statements(query.level, criteria)))
    while group := list(islice(rows, _GROUP)):
        yield from _load(tallies.CountScope(session, criteria.states), query, group)


def count(session: Session, query: Query) -> int:
    """Return the number of matches on all pages. Raises BadValue."""
    statements = _statements(query.level, _make_criteria(session, query))
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
    """Return the instances of a study, of some of its series, or some of their instances, for retrieval.

    ``patient``: keys that the patient must match; without a study, all instances of that patient are returned.
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
"""True for a result, and the id of the row."""

_Statement = Select[Any]


def _make_criteria(session: Session, query: Query) -> Criteria:
    states = (JobState.DONE, JobState.HELD) if query.include_held else (JobState.DONE,)
    keys = {
        keyword: value for keyword, value in query.keys.items() if value.strip("*\\ ")
    }  # asterisks alone match any value
    for keyword, value in keys.items():
        if keyword in keywords.KINDS:
            matching.check_value(keyword, keywords.KINDS[keyword], value)
    dialect = session.get_bind().dialect.name
    return Criteria(keys, states, dialect, combined=query.combined, fuzzy=query.fuzzy)


def _statements(level: Level, criteria: Criteria) -> tuple[_Statement, _Statement | None]:
    """Return the statements for received rows and for new results; patients and studies are always received."""
    if level == "PATIENT":
        return finding.select_patients(criteria), None
    if level == "STUDY":
        return finding.select_studies(criteria), None
    if level == "SERIES":
        return finding.select_received_series(criteria), finding.select_result_series(criteria)
    return finding.select_received_images(criteria), finding.select_result_images(criteria)


def _page(session: Session, query: Query, received: _Statement, results: _Statement | None) -> list[_Row]:
    rows = [(False, id) for id in session.scalars(received.limit(query.limit).offset(query.offset))]
    remaining = None if query.limit is None else query.limit - len(rows)
    if results is None or remaining == 0:
        return rows
    skipped = query.offset - _number_of(session, received) if query.offset and not rows else 0
    return rows + [(True, id) for id in session.scalars(results.limit(remaining).offset(skipped))]


def _number_of(session: Session, statement: _Statement) -> int:
    return session.scalar(select(func.count()).select_from(statement.order_by(None).subquery())) or 0


def _load(scope: tallies.CountScope, query: Query, rows: Sequence[_Row]) -> list[Match]:
    """Return the matches of some rows in their order, without rows that were deleted meanwhile."""
    ids = {kind: [id for result, id in rows if result is kind] for kind in (False, True)}
    found: dict[_Row, tuple[int, Match]] = {}
    if query.level in ("PATIENT", "STUDY"):
        for study in scope.session.scalars(select(Study).where(Study.id.in_(ids[False]))):
            attributes = _of_study(study)
            attributes = keywords.pick(attributes, keywords.PATIENT) if query.level == "PATIENT" else attributes
            found[False, study.id] = study.id, Match(query.level, attributes)
    elif query.level == "SERIES":
        for series, study in scope.session.execute(_with_study(select(Series, Study), Series.id, ids[False])):
            found[False, series.id] = study.id, Match("SERIES", _of_study(study) | _of_series(series))
    else:
        statement = _with_study(select(Instance, Series, Study).join(Instance.series), Instance.id, ids[False])
        for instance, series, study in scope.session.execute(statement):
            found[False, instance.id] = study.id, _image(instance, series, study)
    for output, state, study in scope.session.execute(_results(ids[True])) if ids[True] else ():
        found[True, output.id] = study.id, _result(query.level, output, study, state is JobState.HELD)
    return _add_counts(scope, query, [found[row] for row in rows if row in found])


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
    attributes = row.attributes or {}
    series = keywords.pick(attributes, keywords.SERIES) | {"SeriesInstanceUID": row.series_uid}
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
    return Match("IMAGE", _of_study(study) | series | _of_image(stored, attributes), stored)


def _of_image(stored: StoredObject, attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return keywords.pick(attributes or {}, keywords.IMAGE_STORED) | {
        "SOPInstanceUID": stored.sop_instance_uid,
        "SOPClassUID": stored.sop_class_uid,
        "AvailableTransferSyntaxUID": stored.transfer_syntax_uid,
    }


def _add_counts(scope: tallies.CountScope, query: Query, found: Sequence[tuple[int, Match]]) -> list[Match]:
    """Add the requested counts to the matches."""
    if not query.counts & keywords.COUNTS:
        return [match for _, match in found]
    tally = tallies.count_in_patients if query.level == "PATIENT" else tallies.count_in_studies
    of_studies = tally(scope, [id for id, _ in found], query.counts)
    pairs = [(id, str(match.attributes.get("SeriesInstanceUID", ""))) for id, match in found]
    in_series = "NumberOfSeriesRelatedInstances" in query.counts and query.level in ("SERIES", "IMAGE")
    of_series = tallies.count_in_series(scope, pairs) if in_series else {}
    return [
        Match(
            match.level,
            {**match.attributes, **of_studies[pair[0]], **_if_add_counts(of_series.get(pair))},
            match.stored,
        )
        for pair, (_, match) in zip(pairs, found, strict=True)
    ]


def _if_add_counts(number: int | None) -> dict[str, Any]:
    return {} if number is None else {"NumberOfSeriesRelatedInstances": number}
