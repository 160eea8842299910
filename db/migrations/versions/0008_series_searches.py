"""Searches at a peer also for series that a study lacks here: what for, which came whole, and when to try again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.models import Moment

revision = "0008"
down_revision = "0007"

_ONE_OF_A_ROUTE = "uq_prior_searches_study_id_revision_route"
_ONE_OF_A_PURPOSE = "uq_prior_searches_study_id_revision_route_purpose"


def upgrade() -> None:
    with op.batch_alter_table("prior_searches") as table:
        table.alter_column("state", existing_type=_states(), type_=_states(), existing_nullable=False)
        table.add_column(sa.Column("purpose", _purposes(), nullable=False, server_default="prior"))
        table.add_column(sa.Column("arrived_uids", sa.JSON(), nullable=True))
        table.add_column(sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")))
        table.add_column(sa.Column("not_before", Moment(), nullable=True))
        table.drop_constraint(op.f(_ONE_OF_A_ROUTE), type_="unique")
        table.create_unique_constraint(op.f(_ONE_OF_A_PURPOSE), ["study_id", "revision", "route", "purpose"])


def downgrade() -> None:
    """Searches for series are of no use to an older schema: they go, what they brought stays."""
    op.execute("DELETE FROM prior_searches WHERE purpose = 'series'")
    with op.batch_alter_table("prior_searches") as table:
        table.drop_constraint(op.f(_ONE_OF_A_PURPOSE), type_="unique")
        table.drop_constraint(op.f("ck_prior_searches_searchpurpose"), type_="check")
        for name in ("not_before", "attempts", "arrived_uids", "purpose"):
            table.drop_column(name)
        table.alter_column("state", existing_type=_states(), type_=_states(), existing_nullable=False)
        table.create_unique_constraint(op.f(_ONE_OF_A_ROUTE), ["study_id", "revision", "route"])


def _states() -> sa.Enum:
    states = ("wanted", "fetching", "arrived", "ended")
    return sa.Enum(*states, name="searchstate", native_enum=False, create_constraint=True, length=16)


def _purposes() -> sa.Enum:
    return sa.Enum("prior", "series", name="searchpurpose", native_enum=False, create_constraint=True, length=16)
