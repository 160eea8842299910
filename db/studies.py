"""Studies, series and instances: registration of arrivals, and completion of studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Literal, cast

from sqlalchemy import Executable, Table, bindparam, select, update
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.orm import Session

from db import audit, keywords
from db.models import Instance, Output, Quarantine, Series, Study
from db.states import StudyState

__all__ = [
    "Arrival",
    "InstanceFacts",
    "Registration",
    "Sender",
    "StoredFile",
    "close",
    "find_by_uid",
    "lock_due_for_completion",
    "make_search_columns",
    "quarantine",
    "register_instance",
    "register_instances",
]


@dataclass(frozen=True)
class InstanceFacts:
    """Attributes of a data set for rows and routes, without its pixels."""

    study_uid: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    modality: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    patient_id: str = field(default="", repr=False)
    patient_name: str = field(default="", repr=False)
    accession_number: str = field(default="", repr=False)
    study_date: str = field(default="", repr=False)
    study_description: str = field(default="", repr=False)


@dataclass(frozen=True)
class StoredFile:
    """File in the spool."""

    sha256: str
    size_bytes: int
    relative_path: str


@dataclass(frozen=True)
class Sender:
    """Sender of an instance; ``account``: the one that sent it over the web, if any."""

    ae_title: str
    address: str
    account: str = ""


@dataclass(frozen=True)
class Arrival:
    """Instance that is in the spool and has no row yet."""

    facts: InstanceFacts
    file: StoredFile
    sender: Sender


@dataclass(frozen=True)
class Registration:
    """Outcome of one arrival. ``conflict``: the SOP Instance UID is known with other content; nothing was written.

    ``opened_study_id``: the study where the instance is the first of it, or of a new revision.
    """

    kind: Literal["new", "duplicate", "conflict"]
    instance_id: int | None
    opened_study_id: int | None = None


@dataclass
class _LockedStudy:
    """Study whose row this transaction has locked, with the ids of its series by UID.

    ``is_opened``: the present arrival opened the study or its revision. ``is_touched``: an instance of it was accepted.
    """

    id: int
    state: StudyState
    revision: int
    is_opened: bool = False
    is_touched: bool = False
    series: dict[str, int] = field(default_factory=dict)


_SEARCH_COLUMNS = frozenset(
    {
        "study_time",
        "study_id",
        "referring_physician_name",
        "issuer_of_patient_id",
        "patient_birth_date",
        "patient_sex",
    }
)

# Ingest runs these for every instance: built once, and on the connection, they cost a third of what they would.
_LOCK_STUDY = select(Study.id, Study.state, Study.revision).where(Study.study_uid == bindparam("uid")).with_for_update()
_TOUCH_STUDY = (
    update(cast(Table, Study.__table__))
    .where(Study.id == bindparam("study"))
    .values(last_received_at=bindparam("now"), expired_at=None)
)
_FIND_SERIES = select(Series.id, Series.expired_at).where(
    Series.study_id == bindparam("study"), Series.series_uid == bindparam("uid")
)
_FIND_INSTANCE = select(Instance.id, Instance.sha256).where(Instance.sop_instance_uid == bindparam("uid"))


def register_instance(
    session: Session, *, facts: InstanceFacts, file: StoredFile, sender: Sender, now: datetime
) -> Registration:
    """Register one instance as ``register_instances`` does."""
    return register_instances(session, [Arrival(facts, file, sender)], now=now)[0]


def register_instances(session: Session, arrivals: Sequence[Arrival], *, now: datetime) -> list[Registration]:
    """Write rows and events of several instances at once; return the outcomes in the order of the arrivals.

    Studies are locked in the order of their UIDs, so that parallel batches cannot deadlock.
    """
    answers: dict[int, Registration] = {}
    studies: dict[str, _LockedStudy] = {}
    for at in sorted(range(len(arrivals)), key=lambda at: arrivals[at].facts.study_uid):
        with audit.act_for(arrivals[at].sender.account):  # one request's thread writes the rows of others, too
            answers[at] = _register(session, studies, arrivals[at], now)
    return [answers[at] for at in range(len(arrivals))]


def quarantine(
    session: Session,
    *,
    file: StoredFile,
    reason: str,
    facts: InstanceFacts | None,
    sender: Sender,
    now: datetime,
    received_at: datetime | None = None,
) -> int:
    """Quarantine a file that is not accepted, with the reason, for a person to decide on; return its row's id.

    ``received_at``: time of its reception, where that is not now.
    """
    uids = ("study_uid", "series_uid", "sop_instance_uid", "sop_class_uid")
    row = Quarantine(
        reason=reason,
        sha256=file.sha256,
        size_bytes=file.size_bytes,
        relative_path=file.relative_path,
        sender_ae_title=sender.ae_title,
        sender_address=sender.address,
        received_at=received_at or now,
        **({name: getattr(facts, name) for name in uids} if facts else {}),
    )
    session.add(row)
    session.flush()
    detail = {"reason": reason, "sha256": file.sha256, "sender": sender.ae_title}
    audit.append(session, subject="quarantine", subject_id=row.id, event="quarantined", detail=detail, now=now)
    return row.id


def find_by_uid(session: Session, study_uid: str) -> Study | None:
    """Return the study with that Study Instance UID, or None."""
    return session.scalar(select(Study).where(Study.study_uid == study_uid))


def lock_due_for_completion(session: Session, *, quiet_s: float, maximum_s: float, now: datetime) -> list[Study]:
    """Return the receiving studies that were quiet or open for long enough, locked until the commit."""
    quiet = Study.last_received_at <= now - timedelta(seconds=quiet_s)
    old = Study.opened_at <= now - timedelta(seconds=maximum_s)
    query = select(Study).where(Study.state == StudyState.RECEIVING, quiet | old).order_by(Study.study_uid)
    return list(session.scalars(query.with_for_update(skip_locked=True)))


def make_search_columns(attributes: Mapping[str, Any], patient_name: str) -> dict[str, str]:
    """Return the columns of a study that only searches use, from the attributes of its first instance."""
    columns = {
        column: keywords.join_values(attributes.get(keyword))
        for keyword, column in keywords.STUDY_COLUMNS.items()
        if column in _SEARCH_COLUMNS
    }
    columns["patient_folded"] = keywords.fold_name(patient_name)
    columns["referring_physician_folded"] = keywords.fold_name(columns["referring_physician_name"])
    return columns


def close(session: Session, study: Study, *, reason: str, now: datetime) -> None:
    """Complete the study's revision."""
    study.completed_at, study.completed_by = now, reason
    audit.transition(session, study, StudyState.COMPLETE, reason=reason, now=now)


def _register(session: Session, studies: dict[str, _LockedStudy], arrival: Arrival, now: datetime) -> Registration:
    facts = arrival.facts
    study = studies.get(facts.study_uid) or _lock_study(session, facts.study_uid)
    series_id = _series_id(session, study, facts.series_uid) if study else None
    if study is None or series_id is None:
        if known := _find_registered(
            session, arrival
        ):  # a conflicting instance must not leave an empty study or series
            return known
        study = study or _new_study(session, facts, now)
        series_id = series_id or _new_series(session, study, facts)
    studies[facts.study_uid] = study
    late = study.state is not StudyState.RECEIVING
    values = _instance_values(arrival, series_id, study.revision + late, now)
    instance_id = _insert_new(session, Instance, values) or _revive_expired(session, values)
    known = None if instance_id is not None else _find_registered(session, arrival) or Registration("conflict", None)
    if known is None or known.kind == "duplicate":
        _touch(session, study, now)
    if known is not None:
        return known
    if late and not _is_own_result(session, facts.sop_instance_uid):
        _reopen(session, study, now)
    detail = {"sha256": arrival.file.sha256, "study": study.id, "sender": arrival.sender.ae_title}
    audit.append(session, subject="instances", subject_id=instance_id, event="received", detail=detail, now=now)
    opened, study.is_opened = study.id if study.is_opened else None, False
    return Registration("new", instance_id, opened)


def _revive_expired(session: Session, values: dict[str, Any]) -> int | None:
    """Return the id of an expired instance that was sent again, updated with its new file, or None."""
    gone = (Instance.sop_instance_uid == values["sop_instance_uid"], Instance.series_id == values["series_id"])
    again = update(Instance).where(*gone, Instance.expired_at.is_not(None)).values(expired_at=None, removed_at=None)
    statement = again.values(values).returning(Instance.id).execution_options(synchronize_session=False)
    return session.scalar(statement)


def _lock_study(session: Session, study_uid: str) -> _LockedStudy | None:
    row = session.connection().execute(_LOCK_STUDY, {"uid": study_uid}).one_or_none()
    return _LockedStudy(row.id, row.state, row.revision) if row else None


def _touch(session: Session, study: _LockedStudy, now: datetime) -> None:
    """Mark the study as active, once in a batch; content that goes into quarantine does not."""
    if not study.is_touched:
        session.connection().execute(_TOUCH_STUDY, {"study": study.id, "now": now})
        study.is_touched = True


def _new_study(session: Session, facts: InstanceFacts, now: datetime) -> _LockedStudy:
    values = {
        "study_uid": facts.study_uid,
        "state": StudyState.RECEIVING,
        "revision": 1,
        "patient_id": facts.patient_id,
        "patient_name": facts.patient_name,
        "accession_number": facts.accession_number,
        "study_date": facts.study_date,
        "study_description": facts.study_description,
        **make_search_columns(facts.attributes, facts.patient_name),
        "opened_at": now,
        "last_received_at": now,
        "completed_by": "",
    }
    _insert_new(session, Study, values)  # or a parallel transaction did
    study = _lock_study(session, facts.study_uid)
    if study is None:
        raise LookupError("a study row vanished while an instance was registered")
    study.is_opened = True
    return study


def _instance_values(arrival: Arrival, series_id: int, revision: int, now: datetime) -> dict[str, Any]:
    facts, file, sender = arrival.facts, arrival.file, arrival.sender
    return {
        "series_id": series_id,
        "revision": revision,
        "sop_instance_uid": facts.sop_instance_uid,
        "sop_class_uid": facts.sop_class_uid,
        "transfer_syntax_uid": facts.transfer_syntax_uid,
        "sha256": file.sha256,
        "size_bytes": file.size_bytes,
        "relative_path": file.relative_path,
        "sender_ae_title": sender.ae_title,
        "sender_address": sender.address,
        "received_at": now,
        "attributes": keywords.pick(facts.attributes, keywords.IMAGE_STORED),
    }


def _series_id(session: Session, study: _LockedStudy, series_uid: str) -> int | None:
    if series_uid not in study.series:
        found = session.connection().execute(_FIND_SERIES, {"study": study.id, "uid": series_uid}).one_or_none()
        if found is None:
            return None
        if found.expired_at is not None:
            session.execute(update(Series).where(Series.id == found.id).values(expired_at=None))
        study.series[series_uid] = found.id
    return study.series[series_uid]


def _new_series(session: Session, study: _LockedStudy, facts: InstanceFacts) -> int:
    values = {
        "study_id": study.id,
        "series_uid": facts.series_uid,
        "modality": facts.modality,
        "attributes": dict(facts.attributes),
    }
    series_id = _insert_new(session, Series, values)  # cannot meet a parallel one: the study is locked
    if series_id is None:
        raise LookupError("a series row appeared in a locked study")
    study.series[facts.series_uid] = series_id
    return series_id


def _find_registered(session: Session, arrival: Arrival) -> Registration | None:
    """Return a duplicate or conflict where the SOP Instance UID has a row, or None."""
    row = session.connection().execute(_FIND_INSTANCE, {"uid": arrival.facts.sop_instance_uid}).one_or_none()
    if row is None:
        return None
    return Registration("duplicate" if row.sha256 == arrival.file.sha256 else "conflict", row.id)


def _is_own_result(session: Session, sop_instance_uid: str) -> bool:
    """Return whether the instance is our own result, which must not start work when an archive returns it."""
    return session.scalar(select(Output.id).where(Output.sop_instance_uid == sop_instance_uid).limit(1)) is not None


def _reopen(session: Session, study: _LockedStudy, now: datetime) -> None:
    row = session.get_one(Study, study.id, populate_existing=True)
    row.revision += 1
    row.opened_at, row.completed_at, row.completed_by = now, None, ""
    audit.transition(session, row, StudyState.RECEIVING, reason=f"late instance opens revision {row.revision}", now=now)
    session.flush()
    study.state, study.revision, study.is_opened = row.state, row.revision, True


def _insert_new(session: Session, table: type[Study | Series | Instance], values: dict[str, Any]) -> int | None:
    """Return the new row's id, or None where a unique column has the value, also from a parallel transaction."""
    connection = session.connection()
    new_id: int | None = connection.scalar(_insert(connection.dialect.name, table), values)
    return new_id


@cache
def _insert(dialect: str, table: type[Study | Series | Instance]) -> Executable:
    insert = insert_sqlite if dialect == "sqlite" else insert_postgresql
    rows = cast(Table, table.__table__)
    return insert(rows).on_conflict_do_nothing().returning(rows.c.id)
