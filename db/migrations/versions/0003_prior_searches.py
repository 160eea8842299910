"""Searches for earlier examinations at a peer; studies are found by their patient."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.models import Moment

revision = "0003"
down_revision = "0002"

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_STATES = ("wanted", "fetching", "arrived", "ended")


def upgrade() -> None:
    op.create_table(
        "prior_searches",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("study_id", _BIG, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("route", sa.String(), nullable=False),
        sa.Column("peer", sa.String(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(*_STATES, name="searchstate", native_enum=False, create_constraint=True, length=16),
            nullable=False,
        ),
        sa.Column("prior_study_uid", sa.String(64), nullable=False),
        sa.Column("series_uids", sa.JSON(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("created_at", Moment(), nullable=False),
        sa.Column("found_at", Moment(), nullable=True),
        sa.Column("ended_at", Moment(), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_prior_searches_study_id_studies")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prior_searches")),
        sa.UniqueConstraint("study_id", "revision", "route", name=op.f("uq_prior_searches_study_id_revision_route")),
    )
    op.create_index(op.f("ix_prior_searches_state"), "prior_searches", ["state"])
    op.create_index(op.f("ix_prior_searches_prior_study_uid"), "prior_searches", ["prior_study_uid"])
    op.create_index(op.f("ix_studies_patient_id"), "studies", ["patient_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_studies_patient_id"), "studies")
    op.drop_table("prior_searches")
