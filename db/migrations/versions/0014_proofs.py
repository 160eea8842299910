"""Proofs that destinations keep what was delivered to them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.models import Moment

revision = "0014"
down_revision = "0013"

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "proofs",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("delivery_id", _BIG, nullable=False),
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column("state", _states("proofstate", "sent", "committed", "verified", "unproven"), nullable=False),
        sa.Column("step", _states("proofstep", "request", "report", "read_back", "none"), nullable=False),
        sa.Column("study_uid", sa.String(64), nullable=False),
        sa.Column("series_uid", sa.String(64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False),
        sa.Column("sop_class_uid", sa.String(64), nullable=False),
        sa.Column("transaction_uid", sa.String(64), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("resends", sa.Integer(), nullable=False),
        sa.Column("begun_at", Moment(), nullable=False),
        sa.Column("not_before", Moment(), nullable=False),
        sa.Column("proven_at", Moment(), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["delivery_id"], ["deliveries.id"], name=op.f("fk_proofs_delivery_id_deliveries")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_proofs")),
        sa.UniqueConstraint("delivery_id", name=op.f("uq_proofs_delivery_id")),
    )
    op.create_index(op.f("ix_proofs_transaction_uid"), "proofs", ["transaction_uid"])
    op.create_index(op.f("ix_proofs_state_step_not_before"), "proofs", ["state", "step", "not_before"])


def downgrade() -> None:
    """What destinations have proven is lost; the deliveries remain."""
    op.drop_table("proofs")


def _states(name: str, *values: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=16)
