"""Columns that searches match: more of a study's attributes, some of each instance's and result's.

Studies are described from the first of their series here and now; the attributes of instances and results need their
files and stay empty until the node has read them (dicomnode/maintenance/backfill.py).
"""

from __future__ import annotations

import unicodedata
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_FROM_SERIES = {
    "study_time": "StudyTime",
    "study_id": "StudyID",
    "referring_physician_name": "ReferringPhysicianName",
    "issuer_of_patient_id": "IssuerOfPatientID",
    "patient_birth_date": "PatientBirthDate",
    "patient_sex": "PatientSex",
}
_OF_STUDIES = (*_FROM_SERIES, "referring_physician_folded", "patient_folded")
_EXPLICIT = "1.2.840.10008.1.2.1"
_INDEXES = (
    ("ix_studies_accession_number", "studies", ["accession_number"]),
    ("ix_studies_study_date", "studies", ["study_date"]),
    ("ix_series_series_uid", "series", ["series_uid"]),
    ("ix_instances_series_id_id", "instances", ["series_id", "id"]),
    ("ix_outputs_series_uid", "outputs", ["series_uid"]),
)


def upgrade() -> None:
    for name in _OF_STUDIES:
        op.add_column("studies", sa.Column(name, sa.String(), nullable=False, server_default=sa.text("''")))
    op.add_column("instances", sa.Column("attributes", sa.JSON(), nullable=True))
    op.add_column("outputs", sa.Column("attributes", sa.JSON(), nullable=True))
    syntax = sa.Column("transfer_syntax_uid", sa.String(64), nullable=False, server_default=_EXPLICIT)
    op.add_column("outputs", syntax)
    for name, table, columns in _INDEXES:
        op.create_index(op.f(name), table, columns)
    op.drop_index(op.f("ix_instances_series_id"), "instances")
    _describe_studies()


def downgrade() -> None:
    op.create_index(op.f("ix_instances_series_id"), "instances", ["series_id"])
    for name, table, _ in reversed(_INDEXES):
        op.drop_index(op.f(name), table)
    op.drop_column("outputs", "transfer_syntax_uid")
    op.drop_column("outputs", "attributes")
    op.drop_column("instances", "attributes")
    for name in reversed(_OF_STUDIES):
        op.drop_column("studies", name)


def _describe_studies() -> None:
    studies = sa.table("studies", *(sa.column(name) for name in ("id", "patient_name", *_OF_STUDIES)))
    series = sa.table("series", sa.column("id"), sa.column("study_id"), sa.column("attributes", sa.JSON()))
    first = sa.select(sa.func.min(series.c.id)).group_by(series.c.study_id).scalar_subquery()
    described = sa.select(series.c.study_id, series.c.attributes).where(series.c.id.in_(first))
    known = {row.study_id: row.attributes or {} for row in op.get_bind().execute(described)}
    names = op.get_bind().execute(sa.select(studies.c.id, studies.c.patient_name)).all()
    change = sa.update(studies).where(studies.c.id == sa.bindparam("row"))
    change = change.values({name: sa.bindparam(name) for name in _OF_STUDIES})
    rows = [{"row": id} | _columns(known.get(id, {}), name) for id, name in names]
    if rows:
        op.get_bind().execute(change, rows)


def _columns(attributes: dict[str, Any], patient_name: str) -> dict[str, str]:
    columns = {column: _worded(attributes.get(keyword)) for column, keyword in _FROM_SERIES.items()}
    columns["referring_physician_folded"] = _folded(columns["referring_physician_name"])
    return columns | {"patient_folded": _folded(patient_name)}


def _worded(value: Any) -> str:
    if value is None:
        return ""
    return "\\".join(map(str, value)) if isinstance(value, list) else str(value)


def _folded(name: str) -> str:
    """Fold a name as db/keywords.py did when this migration was written."""
    groups = [group.rstrip(" ^") for group in unicodedata.normalize("NFKC", name).casefold().split("=")]
    return f"={'='.join(groups)}=" if any(groups) else ""
