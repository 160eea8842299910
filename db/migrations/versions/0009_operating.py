"""Rows that retention has expired, and workers that are alive."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.models import Moment

revision = "0009"
down_revision = "0008"

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_COLUMNS = (
    ("studies", "expired_at"),
    ("series", "expired_at"),
    ("instances", "expired_at"),
    ("instances", "removed_at"),
    ("outputs", "expired_at"),
    ("outputs", "removed_at"),
    ("quarantine", "removed_at"),
)


def upgrade() -> None:
    op.create_table(
        "workers",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("started_at", Moment(), nullable=False),
        sa.Column("seen_at", Moment(), nullable=False),
        sa.Column("gpus", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
        sa.UniqueConstraint("name", name=op.f("uq_workers_name")),
    )
    for table, column in _COLUMNS:
        op.add_column(table, sa.Column(column, Moment(), nullable=True))
    op.create_index(op.f("ix_instances_sha256"), "instances", ["sha256"])
    op.create_index(op.f("ix_outputs_sha256"), "outputs", ["sha256"])


def downgrade() -> None:
    """An older schema cannot say that files are gone: their rows stay, and 'storage verify' of later names them."""
    op.drop_index(op.f("ix_outputs_sha256"), "outputs")
    op.drop_index(op.f("ix_instances_sha256"), "instances")
    for table, column in reversed(_COLUMNS):
        op.drop_column(table, column)
    op.drop_table("workers")
