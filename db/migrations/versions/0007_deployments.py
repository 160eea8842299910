"""Versions of models that pipelines use, since when and by whom; shadow jobs to be compared."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.models import Moment

revision = "0007"
down_revision = "0006"

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_IN_FORCE = sa.text("ended_at IS NULL")


def upgrade() -> None:
    mode = sa.Enum(
        "current", "shadow", "share", name="deploymentmode", native_enum=False, create_constraint=True, length=16
    )
    op.create_table(
        "deployments",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("pipeline", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("mode", mode, nullable=False),
        sa.Column("percent", sa.Double(), nullable=True),
        sa.Column("who", sa.String(), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("started_at", Moment(), nullable=False),
        sa.Column("ended_at", Moment(), nullable=True),
        sa.Column("ended_by", sa.String(), nullable=False),
        sa.Column("replaced_id", _BIG, nullable=True),
        sa.ForeignKeyConstraint(
            ["replaced_id"], ["deployments.id"], name=op.f("fk_deployments_replaced_id_deployments")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployments")),
    )
    op.create_index(
        op.f("ix_deployments_pipeline_mode"), "deployments", ["pipeline", "mode"],
        unique=True, sqlite_where=_IN_FORCE, postgresql_where=_IN_FORCE,
    )  # fmt: skip
    op.add_column("jobs", sa.Column("model_digest", sa.String(), nullable=False, server_default=sa.text("''")))
    op.add_column("jobs", sa.Column("helper_models", sa.JSON(), nullable=True))
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("shadow_of_id", _BIG, nullable=True))
        table.create_foreign_key(op.f("fk_jobs_shadow_of_id_jobs"), "jobs", ["shadow_of_id"], ["id"])
    op.create_index(op.f("ix_jobs_shadow_of_id"), "jobs", ["shadow_of_id"])


def downgrade() -> None:
    """Jobs that ran beside others deliver nothing and are of no use to an older schema: they are ended."""
    op.execute("UPDATE jobs SET state = 'cancelled' WHERE shadow_of_id IS NOT NULL AND state IN ('ready', 'running')")
    op.drop_index(op.f("ix_jobs_shadow_of_id"), "jobs")
    with op.batch_alter_table("jobs") as table:
        table.drop_constraint(op.f("fk_jobs_shadow_of_id_jobs"), type_="foreignkey")
        table.drop_column("shadow_of_id")
    for name in ("helper_models", "model_digest"):
        op.drop_column("jobs", name)
    op.drop_table("deployments")
