"""Studies that workitems name as inputs, so that retention keeps those of open workitems."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_INPUTS, _STUDY = "00404021", "0020000D"
"""Input Information Sequence and Study Instance UID."""


def upgrade() -> None:
    op.create_table(
        "workitem_studies",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("workitem_id", _BIG, nullable=False),
        sa.Column("study_uid", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["workitem_id"], ["workitems.id"], name=op.f("fk_workitem_studies_workitem_id_workitems")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workitem_studies")),
        sa.UniqueConstraint("workitem_id", "study_uid", name=op.f("uq_workitem_studies_workitem_id_study_uid")),
    )
    op.create_index(op.f("ix_workitem_studies_study_uid"), "workitem_studies", ["study_uid"])
    _name_studies()


def downgrade() -> None:
    """Retention no longer keeps the studies of open workitems."""
    op.drop_table("workitem_studies")


def _name_studies() -> None:
    """Add the studies of the workitems that are here."""
    bind = op.get_bind()
    studies = sa.table("workitem_studies", sa.column("workitem_id"), sa.column("study_uid"))
    for id, content in bind.execute(sa.text("SELECT id, attributes FROM workitems")).all():
        attributes = json.loads(content) if isinstance(content, str) else content
        for study_uid in sorted({*_values(attributes, _STUDY), *_of_inputs(attributes)}):
            bind.execute(studies.insert().values(workitem_id=id, study_uid=study_uid))


def _of_inputs(attributes: Mapping[str, Any]) -> Iterator[str]:
    for item in attributes.get(_INPUTS, {}).get("Value", []):
        if isinstance(item, dict):
            yield from _values(item, _STUDY)


def _values(elements: Mapping[str, Any], tag: str) -> list[str]:
    found = elements.get(tag, {}).get("Value", [])
    return [value.strip() for value in found[:1] if isinstance(value, str) and value.strip()]
