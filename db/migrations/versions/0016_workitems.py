"""The worklist: workitems, subscriptions to them, and events that wait to be sent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.models import Moment

revision = "0016"
down_revision = "0015"

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    state = sa.Enum(
        "SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED",
        name="workitemstate", native_enum=False, create_constraint=True, length=16,
    )  # fmt: skip
    op.create_table(
        "workitems",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("uid", sa.String(64), nullable=False),
        sa.Column("state", state, nullable=False),
        sa.Column("patient_id", sa.String(), nullable=False),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.Column("transaction_uid", sa.String(64), nullable=False),
        sa.Column("performer", sa.String(), nullable=False),
        sa.Column("is_own", sa.Boolean(), nullable=False),
        sa.Column("cancel_reason", sa.String(), nullable=False),
        sa.Column("created_at", Moment(), nullable=False),
        sa.Column("updated_at", Moment(), nullable=False),
        sa.Column("ended_at", Moment(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workitems")),
        sa.UniqueConstraint("uid", name=op.f("uq_workitems_uid")),
    )
    op.create_index(op.f("ix_workitems_state_id"), "workitems", ["state", "id"])
    op.create_index(op.f("ix_workitems_patient_id"), "workitems", ["patient_id"])
    _create_subscriptions()


def _create_subscriptions() -> None:
    op.create_table(
        "workitem_subscriptions",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("ae_title", sa.String(), nullable=False),
        sa.Column("uid", sa.String(64), nullable=False),
        sa.Column("deletion_lock", sa.Boolean(), nullable=False),
        sa.Column("matching", sa.JSON(), nullable=False),
        sa.Column("created_at", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workitem_subscriptions")),
        sa.UniqueConstraint("ae_title", "uid", name=op.f("uq_workitem_subscriptions_ae_title_uid")),
    )
    op.create_index(op.f("ix_workitem_subscriptions_uid"), "workitem_subscriptions", ["uid"])
    op.create_table(
        "workitem_events",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("ae_title", sa.String(), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("created_at", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workitem_events")),
    )
    op.create_index(op.f("ix_workitem_events_ae_title_id"), "workitem_events", ["ae_title", "id"])


def downgrade() -> None:
    """The worklist is lost; jobs and results of workitems stay."""
    for table in ("workitem_events", "workitem_subscriptions", "workitems"):
        op.drop_table(table)
