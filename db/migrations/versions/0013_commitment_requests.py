"""Storage commitments requested of this node, and the reports on them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.models import Moment

revision = "0013"
down_revision = "0012"

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    state = sa.Enum(
        "waiting", "sending", "sent", "given_up",
        name="reportstate", native_enum=False, create_constraint=True, length=16,
    )  # fmt: skip
    op.create_table(
        "commitment_requests",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("transaction_uid", sa.String(64), nullable=False),
        sa.Column("ae_title", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("verdicts", sa.JSON(), nullable=False),
        sa.Column("state", state, nullable=False),
        sa.Column("created_at", Moment(), nullable=False),
        sa.Column("sent_at", Moment(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column("leased_until", Moment(), nullable=True),
        sa.Column("not_before", Moment(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commitment_requests")),
        sa.UniqueConstraint("transaction_uid", name=op.f("uq_commitment_requests_transaction_uid")),
    )
    op.create_index(op.f("ix_commitment_requests_state_not_before"), "commitment_requests", ["state", "not_before"])


def downgrade() -> None:
    """Reports that were not sent yet are lost; the requesters ask again."""
    op.drop_table("commitment_requests")
