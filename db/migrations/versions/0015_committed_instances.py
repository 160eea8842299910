"""Instances that were committed to a requester, which may then have deleted its own copy."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.models import Moment

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Mark the instances of requests that came before this column was there, too."""
    op.add_column("instances", sa.Column("committed_at", Moment(), nullable=True))
    requests = sa.table("commitment_requests", sa.column("verdicts", sa.JSON()), sa.column("created_at", Moment()))
    instances = sa.table("instances", sa.column("sop_instance_uid", sa.String()), sa.column("committed_at", Moment()))
    connection = op.get_bind()
    for verdicts, created_at in connection.execute(sa.select(requests.c.verdicts, requests.c.created_at)).all():
        for _, uid, failure_reason in verdicts:
            if failure_reason == 0:
                marked = sa.update(instances).where(instances.c.sop_instance_uid == uid)
                connection.execute(marked.values(committed_at=created_at))


def downgrade() -> None:
    op.drop_column("instances", "committed_at")
