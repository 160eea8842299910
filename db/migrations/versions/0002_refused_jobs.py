"""Jobs that are refused end in a state of their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_BEFORE = ("ready", "running", "held", "done", "dead", "cancelled")
_AFTER = ("ready", "running", "held", "done", "refused", "dead", "cancelled")


def upgrade() -> None:
    _change(_BEFORE, _AFTER)


def downgrade() -> None:
    op.execute("UPDATE jobs SET state = 'dead' WHERE state = 'refused'")
    _change(_AFTER, _BEFORE)


def _change(before: tuple[str, ...], after: tuple[str, ...]) -> None:
    with op.batch_alter_table("jobs") as table:
        table.alter_column("state", existing_type=_states(before), type_=_states(after), existing_nullable=False)


def _states(values: tuple[str, ...]) -> sa.Enum:
    return sa.Enum(*values, name="jobstate", native_enum=False, create_constraint=True, length=16)
