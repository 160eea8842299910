"""Indexes that find pages deep in all instances, and an instance by its number, without a look at the rows."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"

_OLD, _NEW = "ix_instances_series_id_id", "ix_instances_series_id_id_expired_at"
_NUMBER = {
    "sqlite": """CAST(JSON_EXTRACT(attributes, '$."InstanceNumber"') AS VARCHAR)""",
    "postgresql": "(attributes ->> 'InstanceNumber')",
}
"""As db/finding.py asks: an index on an expression serves only who writes it the same way."""


def upgrade() -> None:
    op.drop_index(op.f(_OLD), "instances")
    op.create_index(op.f(_NEW), "instances", ["series_id", "id", "expired_at"])
    number = _NUMBER[op.get_bind().dialect.name]
    op.execute(f"CREATE INDEX ix_instances_number ON instances (({number}), series_id, id, expired_at)")


def downgrade() -> None:
    op.execute("DROP INDEX ix_instances_number")
    op.drop_index(op.f(_NEW), "instances")
    op.create_index(op.f(_OLD), "instances", ["series_id", "id"])
