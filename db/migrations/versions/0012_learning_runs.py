"""Learning runs: training on decided cases, and the comparison of both versions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.models import Moment

revision = "0012"
down_revision = "0011"

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    state = sa.Enum(
        "exporting", "training", "evaluated", "failed",
        name="learningstate", native_enum=False, create_constraint=True, length=16,
    )  # fmt: skip
    op.create_table(
        "learning_runs",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("pipeline", sa.String(), nullable=False),
        sa.Column("recipe", sa.String(), nullable=False),
        sa.Column("base", sa.String(), nullable=False),
        sa.Column("base_digest", sa.String(64), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("model_digest", sa.String(), nullable=False),
        sa.Column("state", state, nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("cases", sa.JSON(), nullable=False),
        sa.Column("scores", sa.JSON(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("nights", sa.Integer(), nullable=False),
        sa.Column("idle_nights", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("created_at", Moment(), nullable=False),
        sa.Column("begun_at", Moment(), nullable=False),
        sa.Column("ended_at", Moment(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_learning_runs")),
    )
    is_open = sa.text("ended_at IS NULL")
    op.create_index(
        "uq_learning_runs_open", "learning_runs", ["name"], unique=True, sqlite_where=is_open, postgresql_where=is_open
    )


def downgrade() -> None:
    """The record of the runs is lost; the versions that they installed remain."""
    op.drop_table("learning_runs")
