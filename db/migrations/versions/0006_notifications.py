"""Notifications of the receivers of a job's events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.models import Moment

revision = "0006"
down_revision = "0005"

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_STATES = ("waiting", "sending", "sent", "given_up")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("notify", sa.JSON(), nullable=True))
    state = sa.Enum(*_STATES, name="notificationstate", native_enum=False, create_constraint=True, length=16)
    op.create_table(
        "notifications",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("job_id", _BIG, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("run_at", Moment(), nullable=False),
        sa.Column("event_id", sa.String(36), nullable=False),
        sa.Column("told", sa.String(), nullable=False),
        sa.Column("state", state, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column("leased_until", Moment(), nullable=True),
        sa.Column("not_before", Moment(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("created_at", Moment(), nullable=False),
        sa.Column("sent_at", Moment(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_notifications_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notifications")),
        sa.UniqueConstraint(
            "job_id", "event", "name", "run_at", name=op.f("uq_notifications_job_id_event_name_run_at")
        ),
    )
    op.create_index(op.f("ix_notifications_state_not_before"), "notifications", ["state", "not_before"])


def downgrade() -> None:
    op.drop_table("notifications")
    op.drop_column("jobs", "notify")
