"""Results in the forms that single destinations want."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("outputs", sa.Column("rendition", sa.String(), nullable=False, server_default=sa.text("''")))
    op.add_column("outputs", sa.Column("destinations", sa.JSON(), nullable=True))
    op.add_column("outputs", sa.Column("spare_for", sa.JSON(), nullable=True))


def downgrade() -> None:
    for name in ("spare_for", "destinations", "rendition"):
        op.drop_column("outputs", name)
