"""The tables. Patient data lives here and in the spool, and nowhere else."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from sqlalchemy import JSON, BigInteger, DateTime, Enum, ForeignKey, Index, Integer, MetaData, String, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

from db.states import DeliveryState, JobState, QuarantineState, SearchState, StudyState

__all__ = [
    "Base",
    "Chain",
    "Delivery",
    "Event",
    "Instance",
    "Job",
    "JobInput",
    "Moment",
    "Output",
    "PriorSearch",
    "Quarantine",
    "Series",
    "Study",
]

_BIG = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER PRIMARY KEY is SQLite's row id

Pk = Annotated[int, mapped_column(_BIG, primary_key=True)]
Uid = Annotated[str, mapped_column(String(64))]
Digest = Annotated[str, mapped_column(String(64))]


class Moment(TypeDecorator[datetime]):
    """An aware UTC datetime; SQLite would drop the zone, PostgreSQL would answer in the session's."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment without time zone cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _checked(states: type[StrEnum]) -> Enum:
    """A column of the enum's values (SQLAlchemy would store the names), checked by the database."""
    return Enum(
        states,
        native_enum=False,
        create_constraint=True,
        length=16,
        name=states.__name__.lower(),
        values_callable=lambda kind: [member.value for member in kind],
    )


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: Moment,
        dict[str, Any]: JSON,
        list[str]: JSON,
        StudyState: _checked(StudyState),
        JobState: _checked(JobState),
        DeliveryState: _checked(DeliveryState),
        QuarantineState: _checked(QuarantineState),
        SearchState: _checked(SearchState),
    }


class Study(Base):
    """A study as received. ``revision`` grows when an instance arrives after completion."""

    __tablename__ = "studies"

    id: Mapped[Pk]
    study_uid: Mapped[Uid] = mapped_column(unique=True)
    state: Mapped[StudyState] = mapped_column(default=StudyState.RECEIVING)
    revision: Mapped[int] = mapped_column(default=1)
    patient_id: Mapped[str] = mapped_column(default="")
    patient_name: Mapped[str] = mapped_column(default="")
    accession_number: Mapped[str] = mapped_column(default="")
    study_date: Mapped[str] = mapped_column(default="")
    study_description: Mapped[str] = mapped_column(default="")
    opened_at: Mapped[datetime]
    last_received_at: Mapped[datetime]
    completed_at: Mapped[datetime | None]
    completed_by: Mapped[str] = mapped_column(default="")

    series: Mapped[list[Series]] = relationship(back_populates="study", order_by="Series.id")
    jobs: Mapped[list[Job]] = relationship(back_populates="study", order_by="Job.id")

    __table_args__ = (Index(None, "state", "last_received_at"), Index(None, "patient_id"))


class Series(Base):
    """A series; ``attributes`` are the DICOM keywords and values of its first instance, for the routes."""

    __tablename__ = "series"

    id: Mapped[Pk]
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"))
    series_uid: Mapped[Uid]
    modality: Mapped[str] = mapped_column(default="")
    attributes: Mapped[dict[str, Any]]

    study: Mapped[Study] = relationship(back_populates="series")
    instances: Mapped[list[Instance]] = relationship(back_populates="series", order_by="Instance.id")

    __table_args__ = (UniqueConstraint("study_id", "series_uid"),)


class Instance(Base):
    """One acknowledged SOP instance and its file in the spool."""

    __tablename__ = "instances"

    id: Mapped[Pk]
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), index=True)
    revision: Mapped[int]
    sop_instance_uid: Mapped[Uid] = mapped_column(unique=True)
    sop_class_uid: Mapped[Uid]
    transfer_syntax_uid: Mapped[Uid]
    sha256: Mapped[Digest]
    size_bytes: Mapped[int] = mapped_column(_BIG)
    relative_path: Mapped[str]
    sender_ae_title: Mapped[str]
    sender_address: Mapped[str]
    received_at: Mapped[datetime]

    series: Mapped[Series] = relationship(back_populates="instances")


class Job(Base):
    """One pipeline on one input. ``key`` is a digest of all that decides the result, so the work is done once."""

    __tablename__ = "jobs"

    id: Mapped[Pk]
    key: Mapped[Digest] = mapped_column(unique=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"), index=True)
    revision: Mapped[int]
    supersedes_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"))
    route: Mapped[str]
    pipeline: Mapped[str]
    model: Mapped[str] = mapped_column(default="")
    options: Mapped[dict[str, Any]]
    destinations: Mapped[list[str]]
    priority: Mapped[int] = mapped_column(default=0)
    state: Mapped[JobState] = mapped_column(default=JobState.READY)
    attempts: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str] = mapped_column(default="")
    leased_until: Mapped[datetime | None]
    not_before: Mapped[datetime]
    reason: Mapped[str] = mapped_column(default="")
    progress: Mapped[float] = mapped_column(default=0.0)
    step: Mapped[str] = mapped_column(default="")
    report: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    study: Mapped[Study] = relationship(back_populates="jobs")
    inputs: Mapped[list[JobInput]] = relationship(order_by="JobInput.id")
    outputs: Mapped[list[Output]] = relationship(back_populates="job", order_by="Output.id")

    __table_args__ = (Index(None, "state", "priority", "not_before"),)


class JobInput(Base):
    """An instance that a job takes, under the name of the input."""

    __tablename__ = "job_inputs"

    id: Mapped[Pk]
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    name: Mapped[str]
    instance_id: Mapped[int] = mapped_column(ForeignKey("instances.id"), index=True)

    instance: Mapped[Instance] = relationship()

    __table_args__ = (UniqueConstraint("job_id", "name", "instance_id"),)


class Output(Base):
    """A result object and its file in the spool."""

    __tablename__ = "outputs"

    id: Mapped[Pk]
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    sop_instance_uid: Mapped[Uid] = mapped_column(index=True)
    sop_class_uid: Mapped[Uid]
    series_uid: Mapped[Uid]
    kind: Mapped[str]
    sha256: Mapped[Digest]
    size_bytes: Mapped[int] = mapped_column(_BIG)
    relative_path: Mapped[str]
    created_at: Mapped[datetime]

    job: Mapped[Job] = relationship(back_populates="outputs")
    deliveries: Mapped[list[Delivery]] = relationship(back_populates="output", order_by="Delivery.id")

    __table_args__ = (UniqueConstraint("job_id", "sop_instance_uid"),)


class Delivery(Base):
    """One result object for one destination, until it is there or given up."""

    __tablename__ = "deliveries"

    id: Mapped[Pk]
    output_id: Mapped[int] = mapped_column(ForeignKey("outputs.id"))
    destination: Mapped[str]
    state: Mapped[DeliveryState] = mapped_column(default=DeliveryState.WAITING)
    attempts: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str] = mapped_column(default="")
    leased_until: Mapped[datetime | None]
    not_before: Mapped[datetime]
    reason: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime]
    delivered_at: Mapped[datetime | None]

    output: Mapped[Output] = relationship(back_populates="deliveries")

    __table_args__ = (UniqueConstraint("output_id", "destination"), Index(None, "state", "not_before"))


class PriorSearch(Base):
    """The search at a peer for the earlier examination that a route wants of a study's revision; ``prior_study_uid`` is
    what the peer named, and ``series_uids`` those of its series that are fetched."""

    __tablename__ = "prior_searches"

    id: Mapped[Pk]
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"))
    revision: Mapped[int]
    route: Mapped[str]
    peer: Mapped[str]
    state: Mapped[SearchState] = mapped_column(default=SearchState.WANTED)
    prior_study_uid: Mapped[Uid] = mapped_column(default="", index=True)
    series_uids: Mapped[list[str]]
    reason: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime]
    found_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    study: Mapped[Study] = relationship()

    __table_args__ = (UniqueConstraint("study_id", "revision", "route"), Index(None, "state"))


class Quarantine(Base):
    """A file that ingest kept but did not accept, and why."""

    __tablename__ = "quarantine"

    id: Mapped[Pk]
    state: Mapped[QuarantineState] = mapped_column(default=QuarantineState.KEPT)
    reason: Mapped[str]
    sha256: Mapped[Digest]
    size_bytes: Mapped[int] = mapped_column(_BIG)
    relative_path: Mapped[str]
    study_uid: Mapped[str] = mapped_column(default="")
    series_uid: Mapped[str] = mapped_column(default="")
    sop_instance_uid: Mapped[str] = mapped_column(default="")
    sop_class_uid: Mapped[str] = mapped_column(default="")
    sender_ae_title: Mapped[str]
    sender_address: Mapped[str]
    received_at: Mapped[datetime]


class Event(Base):
    """One link of the audit chain: ``hash`` covers the event and the hash before it."""

    __tablename__ = "events"

    seq: Mapped[int] = mapped_column(_BIG, primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    subject: Mapped[str]
    subject_id: Mapped[str]
    event: Mapped[str]
    detail: Mapped[dict[str, Any]]
    previous: Mapped[Digest]
    hash: Mapped[Digest]

    __table_args__ = (Index(None, "subject", "subject_id"),)


class Chain(Base):
    """The head of the audit chain: one row, locked last in every transaction that writes events."""

    __tablename__ = "chain"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(_BIG)
    hash: Mapped[Digest]
