"""The first schema: what was received, the work on it, and the audit chain."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.models import Moment

revision = "0001"
down_revision = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
UID = sa.String(64)
DIGEST = sa.String(64)


def upgrade() -> None:
    _create_chain()
    _create_events()
    _create_studies()
    _create_series()
    _create_instances()
    _create_quarantine()
    _create_jobs()
    _create_job_inputs()
    _create_outputs()
    _create_deliveries()


def _states(name: str, *values: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=16)


def _create_chain() -> None:
    chain = op.create_table(
        "chain",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("seq", BIG, nullable=False),
        sa.Column("hash", DIGEST, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_chain"),
    )
    op.bulk_insert(chain, [{"id": 1, "seq": 0, "hash": "0" * 64}])


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("seq", BIG, autoincrement=False, nullable=False),
        sa.Column("at", Moment(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("subject_id", sa.String(), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("previous", DIGEST, nullable=False),
        sa.Column("hash", DIGEST, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_events"),
    )
    op.create_index(op.f("ix_events_subject_subject_id"), "events", ["subject", "subject_id"])


def _create_studies() -> None:
    op.create_table(
        "studies",
        sa.Column("id", BIG, nullable=False),
        sa.Column("study_uid", UID, nullable=False),
        sa.Column("state", _states("studystate", "receiving", "complete", "routed"), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("patient_id", sa.String(), nullable=False),
        sa.Column("patient_name", sa.String(), nullable=False),
        sa.Column("accession_number", sa.String(), nullable=False),
        sa.Column("study_date", sa.String(), nullable=False),
        sa.Column("study_description", sa.String(), nullable=False),
        sa.Column("opened_at", Moment(), nullable=False),
        sa.Column("last_received_at", Moment(), nullable=False),
        sa.Column("completed_at", Moment(), nullable=True),
        sa.Column("completed_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_studies"),
        sa.UniqueConstraint("study_uid", name="uq_studies_study_uid"),
    )
    op.create_index(op.f("ix_studies_state_last_received_at"), "studies", ["state", "last_received_at"])


def _create_series() -> None:
    op.create_table(
        "series",
        sa.Column("id", BIG, nullable=False),
        sa.Column("study_id", BIG, nullable=False),
        sa.Column("series_uid", UID, nullable=False),
        sa.Column("modality", sa.String(), nullable=False),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_series_study_id_studies"),
        sa.PrimaryKeyConstraint("id", name="pk_series"),
        sa.UniqueConstraint("study_id", "series_uid", name="uq_series_study_id_series_uid"),
    )


def _create_instances() -> None:
    op.create_table(
        "instances",
        sa.Column("id", BIG, nullable=False),
        sa.Column("series_id", BIG, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("sop_instance_uid", UID, nullable=False),
        sa.Column("sop_class_uid", UID, nullable=False),
        sa.Column("transfer_syntax_uid", UID, nullable=False),
        sa.Column("sha256", DIGEST, nullable=False),
        sa.Column("size_bytes", BIG, nullable=False),
        sa.Column("relative_path", sa.String(), nullable=False),
        sa.Column("sender_ae_title", sa.String(), nullable=False),
        sa.Column("sender_address", sa.String(), nullable=False),
        sa.Column("received_at", Moment(), nullable=False),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name="fk_instances_series_id_series"),
        sa.PrimaryKeyConstraint("id", name="pk_instances"),
        sa.UniqueConstraint("sop_instance_uid", name="uq_instances_sop_instance_uid"),
    )
    op.create_index(op.f("ix_instances_series_id"), "instances", ["series_id"])


def _create_quarantine() -> None:
    op.create_table(
        "quarantine",
        sa.Column("id", BIG, nullable=False),
        sa.Column("state", _states("quarantinestate", "kept", "released", "discarded"), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("sha256", DIGEST, nullable=False),
        sa.Column("size_bytes", BIG, nullable=False),
        sa.Column("relative_path", sa.String(), nullable=False),
        sa.Column("study_uid", sa.String(), nullable=False),
        sa.Column("series_uid", sa.String(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("sop_class_uid", sa.String(), nullable=False),
        sa.Column("sender_ae_title", sa.String(), nullable=False),
        sa.Column("sender_address", sa.String(), nullable=False),
        sa.Column("received_at", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_quarantine"),
    )


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", BIG, nullable=False),
        sa.Column("key", DIGEST, nullable=False),
        sa.Column("study_id", BIG, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("supersedes_id", BIG, nullable=True),
        sa.Column("route", sa.String(), nullable=False),
        sa.Column("pipeline", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("destinations", sa.JSON(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column(
            "state", _states("jobstate", "ready", "running", "held", "done", "dead", "cancelled"), nullable=False
        ),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column("leased_until", Moment(), nullable=True),
        sa.Column("not_before", Moment(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("step", sa.String(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("created_at", Moment(), nullable=False),
        sa.Column("started_at", Moment(), nullable=True),
        sa.Column("finished_at", Moment(), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_jobs_study_id_studies"),
        sa.ForeignKeyConstraint(["supersedes_id"], ["jobs.id"], name="fk_jobs_supersedes_id_jobs"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("key", name="uq_jobs_key"),
    )
    op.create_index(op.f("ix_jobs_state_priority_not_before"), "jobs", ["state", "priority", "not_before"])
    op.create_index(op.f("ix_jobs_study_id"), "jobs", ["study_id"])


def _create_job_inputs() -> None:
    op.create_table(
        "job_inputs",
        sa.Column("id", BIG, nullable=False),
        sa.Column("job_id", BIG, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("instance_id", BIG, nullable=False),
        sa.ForeignKeyConstraint(["instance_id"], ["instances.id"], name="fk_job_inputs_instance_id_instances"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_inputs_job_id_jobs"),
        sa.PrimaryKeyConstraint("id", name="pk_job_inputs"),
        sa.UniqueConstraint("job_id", "name", "instance_id", name="uq_job_inputs_job_id_name_instance_id"),
    )
    op.create_index(op.f("ix_job_inputs_instance_id"), "job_inputs", ["instance_id"])


def _create_outputs() -> None:
    op.create_table(
        "outputs",
        sa.Column("id", BIG, nullable=False),
        sa.Column("job_id", BIG, nullable=False),
        sa.Column("sop_instance_uid", UID, nullable=False),
        sa.Column("sop_class_uid", UID, nullable=False),
        sa.Column("series_uid", UID, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("sha256", DIGEST, nullable=False),
        sa.Column("size_bytes", BIG, nullable=False),
        sa.Column("relative_path", sa.String(), nullable=False),
        sa.Column("created_at", Moment(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_outputs_job_id_jobs"),
        sa.PrimaryKeyConstraint("id", name="pk_outputs"),
        sa.UniqueConstraint("job_id", "sop_instance_uid", name="uq_outputs_job_id_sop_instance_uid"),
    )
    op.create_index(op.f("ix_outputs_sop_instance_uid"), "outputs", ["sop_instance_uid"])


def _create_deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", BIG, nullable=False),
        sa.Column("output_id", BIG, nullable=False),
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column("state", _states("deliverystate", "waiting", "sending", "delivered", "given_up"), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column("leased_until", Moment(), nullable=True),
        sa.Column("not_before", Moment(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("created_at", Moment(), nullable=False),
        sa.Column("delivered_at", Moment(), nullable=True),
        sa.ForeignKeyConstraint(["output_id"], ["outputs.id"], name="fk_deliveries_output_id_outputs"),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
        sa.UniqueConstraint("output_id", "destination", name="uq_deliveries_output_id_destination"),
    )
    op.create_index(op.f("ix_deliveries_state_not_before"), "deliveries", ["state", "not_before"])
