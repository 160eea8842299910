"""Retrieval of the inputs of a workitem from a peer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.models import Moment

revision = "0019"
down_revision = "0018"

_COLUMNS = ("retrieve_at", "retrieve_attempts", "retrieve_reason", "retrieve_from")


def upgrade() -> None:
    with op.batch_alter_table("workitems") as table:
        table.add_column(sa.Column("retrieve_from", sa.String(), nullable=False, server_default=sa.text("''")))
        table.add_column(sa.Column("retrieve_reason", sa.String(), nullable=False, server_default=sa.text("''")))
        table.add_column(sa.Column("retrieve_attempts", sa.Integer(), nullable=False, server_default=sa.text("0")))
        table.add_column(sa.Column("retrieve_at", Moment(), nullable=True))


def downgrade() -> None:
    """Workitems wait for inputs that somebody sends."""
    with op.batch_alter_table("workitems") as table:
        for name in _COLUMNS:
            table.drop_column(name)
