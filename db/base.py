"""Types of columns, the columns of leased rows, and the declarative base, which names the constraints."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from sqlalchemy import JSON, BigInteger, DateTime, Enum, Integer, MetaData, String, text
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from db.states import (
    DeliveryState,
    DeploymentMode,
    JobState,
    LearningState,
    NotificationState,
    ProofState,
    ProofStep,
    QuarantineState,
    ReadingVerdict,
    ReportState,
    RetrievalPurpose,
    RetrievalState,
    Role,
    StudyState,
    WorkitemState,
)

__all__ = ["BIG", "Base", "Digest", "Leased", "Moment", "OptionalText", "Pk", "Uid"]

BIG = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER PRIMARY KEY is SQLite's row id

Pk = Annotated[int, mapped_column(BIG, primary_key=True)]
Uid = Annotated[str, mapped_column(String(64))]
Digest = Annotated[str, mapped_column(String(64))]
OptionalText = Annotated[str, mapped_column(default="", server_default=text("''"))]
"""Text of a column that was added to a table with rows: empty where it is not known."""


class Moment(TypeDecorator[datetime]):
    """Aware UTC datetime: SQLite would drop the time zone, PostgreSQL would return that of the connection."""

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


def _checked(states: type[StrEnum], name: str = "") -> Enum:
    """Return a column type of the enum's values (SQLAlchemy would store the names), checked by the database."""
    return Enum(
        states,
        native_enum=False,
        create_constraint=True,
        length=16,
        name=name or states.__name__.lower(),
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
        LearningState: _checked(LearningState),
        DeliveryState: _checked(DeliveryState),
        DeploymentMode: _checked(DeploymentMode),
        NotificationState: _checked(NotificationState),
        ProofState: _checked(ProofState),
        ProofStep: _checked(ProofStep),
        QuarantineState: _checked(QuarantineState),
        ReadingVerdict: _checked(ReadingVerdict),
        ReportState: _checked(ReportState),
        RetrievalPurpose: _checked(RetrievalPurpose, "searchpurpose"),
        RetrievalState: _checked(RetrievalState, "searchstate"),
        Role: _checked(Role),
        WorkitemState: _checked(WorkitemState),
    }


class Leased:
    """Columns of a row that one worker at a time works on (db/leases.py).

    ``attempts``: leases so far. ``not_before``: earliest moment of the next one. ``reason``: of the last failure.
    """

    attempts: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str] = mapped_column(default="")
    leased_until: Mapped[datetime | None]
    not_before: Mapped[datetime]
    reason: Mapped[str] = mapped_column(default="")
