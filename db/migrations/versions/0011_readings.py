"""Decisions of readers on results: the local quality record."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.models import Moment

revision = "0011"
down_revision = "0010"

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    verdict = sa.Enum(
        "accepted", "rejected", name="readingverdict", native_enum=False, create_constraint=True, length=16
    )
    op.create_table(
        "readings",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("job_id", _BIG, nullable=False),
        sa.Column("verdict", verdict, nullable=False),
        sa.Column("who", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("sentence", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("created_at", Moment(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_readings_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_readings")),
    )
    op.create_index(op.f("ix_readings_job_id"), "readings", ["job_id"])


def downgrade() -> None:
    """The record is lost; the objects that stated the decisions remain with their jobs."""
    op.drop_table("readings")
