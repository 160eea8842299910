"""The tables. Patient data is stored here and in the spool, and nowhere else.

``expired_at``: when retention withdrew the row from the node's holdings (db/retention.py). ``removed_at``: when its
file was deleted.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, UniqueConstraint, text
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, mapped_column, relationship

from db.account_rows import Account, WebSession
from db.base import BIG, Base, Digest, Leased, Moment, OptionalText, Pk, Uid
from db.commitment_requests import CommitmentRequest
from db.events import Chain, Event
from db.learning_run import LearningRun
from db.proof_rows import Proof
from db.states import (
    TRIAL_PREFIX,
    DeliveryState,
    DeploymentMode,
    JobState,
    NotificationState,
    QuarantineState,
    ReadingVerdict,
    RetrievalPurpose,
    RetrievalState,
    StudyState,
)
from db.workitem_rows import Workitem

__all__ = [
    "Account",
    "Base",
    "Chain",
    "CommitmentRequest",
    "Delivery",
    "Deployment",
    "Event",
    "Instance",
    "Job",
    "JobInput",
    "LearningRun",
    "Moment",
    "Notification",
    "Output",
    "Proof",
    "Quarantine",
    "Reading",
    "Retrieval",
    "Series",
    "Study",
    "WebSession",
    "Workitem",
]

_EXPLICIT = "1.2.840.10008.1.2.1"  # Explicit VR Little Endian


class Study(Base):
    """Study as received. ``revision`` grows when an instance arrives after completion.

    Searches match against the ``folded`` names (db/keywords.py).
    """

    __tablename__ = "studies"

    id: Mapped[Pk]
    study_uid: Mapped[Uid] = mapped_column(unique=True)
    state: Mapped[StudyState] = mapped_column(default=StudyState.RECEIVING)
    revision: Mapped[int] = mapped_column(default=1)
    patient_id: Mapped[str] = mapped_column(default="")
    patient_name: Mapped[str] = mapped_column(default="")
    accession_number: Mapped[str] = mapped_column(default="")
    study_date: Mapped[str] = mapped_column(default="")
    study_description: Mapped[str] = mapped_column(default="")
    study_time: Mapped[OptionalText]
    study_id: Mapped[OptionalText]
    referring_physician_name: Mapped[OptionalText]
    referring_physician_folded: Mapped[OptionalText]
    patient_folded: Mapped[OptionalText]
    issuer_of_patient_id: Mapped[OptionalText]
    patient_birth_date: Mapped[OptionalText]
    patient_sex: Mapped[OptionalText]
    opened_at: Mapped[datetime]
    last_received_at: Mapped[datetime]
    completed_at: Mapped[datetime | None]
    completed_by: Mapped[str] = mapped_column(default="")
    expired_at: Mapped[datetime | None]

    series: Mapped[list[Series]] = relationship(back_populates="study", order_by="Series.id")
    jobs: Mapped[list[Job]] = relationship(back_populates="study", order_by="Job.id")

    __table_args__ = (
        Index(None, "state", "last_received_at"),
        Index(None, "patient_id"),
        Index(None, "accession_number"),
        Index(None, "study_date"),
    )


class Series(Base):
    """Series; ``attributes`` are the DICOM keywords and values of its first instance, for the routes."""

    __tablename__ = "series"

    id: Mapped[Pk]
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"))
    series_uid: Mapped[Uid] = mapped_column(index=True)
    modality: Mapped[str] = mapped_column(default="")
    attributes: Mapped[dict[str, Any]]
    expired_at: Mapped[datetime | None]

    study: Mapped[Study] = relationship(back_populates="series")
    instances: Mapped[list[Instance]] = relationship(back_populates="series", order_by="Instance.id")

    __table_args__ = (UniqueConstraint("study_id", "series_uid"),)


class Instance(Base):
    """Acknowledged SOP instance and its file in the spool.

    ``committed_at``: when the node last committed it to a requester, which may have deleted its own copy since.
    ``attributes``: ``keywords.IMAGE_STORED``; None in rows of older schemas until ``backfill`` has read the file again.
    """

    __tablename__ = "instances"

    id: Mapped[Pk]
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"))
    revision: Mapped[int]
    sop_instance_uid: Mapped[Uid] = mapped_column(unique=True)
    sop_class_uid: Mapped[Uid]
    transfer_syntax_uid: Mapped[Uid]
    sha256: Mapped[Digest]
    size_bytes: Mapped[int] = mapped_column(BIG)
    relative_path: Mapped[str]
    sender_ae_title: Mapped[str]
    sender_address: Mapped[str]
    received_at: Mapped[datetime]
    attributes: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    committed_at: Mapped[datetime | None]
    expired_at: Mapped[datetime | None]
    removed_at: Mapped[datetime | None]

    series: Mapped[Series] = relationship(back_populates="instances")

    __table_args__ = (Index(None, "series_id", "id", "expired_at"), Index(None, "sha256"))


class Job(Leased, Base):
    """Run of one pipeline on one input. ``key`` is a digest of all that decides the result, so the work is done once.

    ``notify``: names of the receivers of notifications, each with its events. ``model_digest``: digest of the weights
    that were deployed when the job was routed, empty where its route names the model. ``helper_models``: by bundle, the
    version that was deployed then.
    ``shadow_of_id``: the primary job of a shadow job, which is compared with it and delivers nothing.
    """

    __tablename__ = "jobs"

    id: Mapped[Pk]
    key: Mapped[Digest] = mapped_column(unique=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"), index=True)
    revision: Mapped[int]
    supersedes_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"))
    route: Mapped[str]
    pipeline: Mapped[str]
    model: Mapped[str] = mapped_column(default="")
    options: Mapped[dict[str, Any]]
    destinations: Mapped[list[str]]
    notify: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    priority: Mapped[int] = mapped_column(default=0)
    state: Mapped[JobState] = mapped_column(default=JobState.READY)
    progress: Mapped[float] = mapped_column(default=0.0)
    step: Mapped[str] = mapped_column(default="")
    report: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    model_digest: Mapped[OptionalText]
    helper_models: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    shadow_of_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"), index=True)

    study: Mapped[Study] = relationship(back_populates="jobs")
    shadow_of: Mapped[Job | None] = relationship(remote_side="Job.id", foreign_keys="Job.shadow_of_id")
    inputs: Mapped[list[JobInput]] = relationship(order_by="JobInput.id")
    outputs: Mapped[list[Output]] = relationship(back_populates="job", order_by="Output.id")

    __table_args__ = (Index(None, "state", "priority", "not_before"),)

    @property
    def state_name(self) -> str:
        """State in words: that of a job whose held result was discarded is "discarded"."""
        return "discarded" if self.is_discarded else str(self.state)

    @property
    def is_discarded(self) -> bool:
        """True for a held result that a person did not release: its job is cancelled."""
        return self.state is JobState.CANCELLED and self.report.get("verdict") == "hold"

    @hybrid_property
    def is_trial(self) -> bool:
        """True where a person started the job to try a pipeline: its route is none of node.toml."""
        return self.route.startswith(TRIAL_PREFIX)


class JobInput(Base):
    """Instance that a job reads, under the name of the input."""

    __tablename__ = "job_inputs"

    id: Mapped[Pk]
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    name: Mapped[str]
    instance_id: Mapped[int] = mapped_column(ForeignKey("instances.id"), index=True)

    instance: Mapped[Instance] = relationship()

    __table_args__ = (UniqueConstraint("job_id", "name", "instance_id"),)


class Output(Base):
    """Result object and its file in the spool. ``attributes``: ``keywords.RESULT_STORED``, as with instances.

    ``rendition``: empty for the node's own form, which searches find; else the form that some destination gets instead.
    ``destinations``: those of the job's destinations that get the object; None: all. ``spare_for``: destinations that
    get it if they refuse their first choice.
    """

    __tablename__ = "outputs"

    id: Mapped[Pk]
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    sop_instance_uid: Mapped[Uid] = mapped_column(index=True)
    sop_class_uid: Mapped[Uid]
    series_uid: Mapped[Uid] = mapped_column(index=True)
    kind: Mapped[str]
    sha256: Mapped[Digest]
    size_bytes: Mapped[int] = mapped_column(BIG)
    relative_path: Mapped[str]
    created_at: Mapped[datetime]
    transfer_syntax_uid: Mapped[Uid] = mapped_column(default=_EXPLICIT, server_default=_EXPLICIT)
    attributes: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    rendition: Mapped[OptionalText]
    destinations: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    spare_for: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    expired_at: Mapped[datetime | None]
    removed_at: Mapped[datetime | None]

    job: Mapped[Job] = relationship(back_populates="outputs")
    deliveries: Mapped[list[Delivery]] = relationship(back_populates="output", order_by="Delivery.id")

    __table_args__ = (UniqueConstraint("job_id", "sop_instance_uid"), Index(None, "sha256"))


class Delivery(Leased, Base):
    """Delivery of one result object to one destination."""

    __tablename__ = "deliveries"

    id: Mapped[Pk]
    output_id: Mapped[int] = mapped_column(ForeignKey("outputs.id"))
    destination: Mapped[str]
    state: Mapped[DeliveryState] = mapped_column(default=DeliveryState.WAITING)
    created_at: Mapped[datetime]
    delivered_at: Mapped[datetime | None]

    output: Mapped[Output] = relationship(back_populates="deliveries")
    proof: Mapped[Proof | None] = relationship()

    __table_args__ = (UniqueConstraint("output_id", "destination"), Index(None, "state", "not_before"))


class Notification(Leased, Base):
    """Notification of one receiver of one event in one run of a job.

    ``event_id``: the same in every attempt. ``message``: the reason or summary that the receiver is sent.
    """

    __tablename__ = "notifications"

    id: Mapped[Pk]
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    name: Mapped[str]
    event: Mapped[str]
    run_at: Mapped[datetime]
    event_id: Mapped[str] = mapped_column(String(36))
    message: Mapped[str] = mapped_column("told")
    state: Mapped[NotificationState] = mapped_column(default=NotificationState.WAITING)
    created_at: Mapped[datetime]
    sent_at: Mapped[datetime | None]

    job: Mapped[Job] = relationship()

    __table_args__ = (UniqueConstraint("job_id", "event", "name", "run_at"), Index(None, "state", "not_before"))


class Reading(Base):
    """Decision of a reader, with initials ``who``, on a job's result; ``sentence``: the one that the reader saw."""

    __tablename__ = "readings"

    id: Mapped[Pk]
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), index=True)
    verdict: Mapped[ReadingVerdict]
    who: Mapped[str]
    reason: Mapped[str]
    sentence: Mapped[str]
    model: Mapped[str]
    created_at: Mapped[datetime]

    job: Mapped[Job] = relationship()


class Retrieval(Base):
    """The search at a peer for what a route wants of a study's revision: the earlier examination, or series that it
    lacks here. ``prior_study_uid``: the earlier study that the peer named. ``series_uids``: those that are fetched;
    ``arrived_uids``: those of them that are here whole. ``not_before``: when a peer that failed is asked again."""

    __tablename__ = "prior_searches"

    id: Mapped[Pk]
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"))
    revision: Mapped[int]
    route: Mapped[str]
    peer: Mapped[str]
    state: Mapped[RetrievalState] = mapped_column(default=RetrievalState.WANTED)
    prior_study_uid: Mapped[Uid] = mapped_column(default="", index=True)
    series_uids: Mapped[list[str]]
    reason: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime]
    found_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    purpose: Mapped[RetrievalPurpose] = mapped_column(default=RetrievalPurpose.PRIOR, server_default="prior")
    arrived_uids: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    attempts: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    not_before: Mapped[datetime | None]

    study: Mapped[Study] = relationship()

    __table_args__ = (UniqueConstraint("study_id", "revision", "route", "purpose"), Index(None, "state"))


class Deployment(Base):
    """Version of a model that a pipeline uses, or used until ``ended_at``.

    ``percent``: share of the studies, where the mode is share. ``replaced_id``: the deployment before, to which a
    rollback returns.
    """

    __tablename__ = "deployments"

    id: Mapped[Pk]
    pipeline: Mapped[str]
    name: Mapped[str]
    version: Mapped[str]
    digest: Mapped[Digest]
    mode: Mapped[DeploymentMode]
    percent: Mapped[float | None]
    who: Mapped[str]
    why: Mapped[str]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    ended_by: Mapped[str] = mapped_column(default="")
    replaced_id: Mapped[int | None] = mapped_column(ForeignKey("deployments.id"))

    __table_args__ = (
        Index(
            None, "pipeline", "mode", unique=True, sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
    )  # fmt: skip


class Quarantine(Base):
    """File that ingest stored but did not accept, and the reason."""

    __tablename__ = "quarantine"

    id: Mapped[Pk]
    state: Mapped[QuarantineState] = mapped_column(default=QuarantineState.KEPT)
    reason: Mapped[str]
    sha256: Mapped[Digest]
    size_bytes: Mapped[int] = mapped_column(BIG)
    relative_path: Mapped[str]
    study_uid: Mapped[str] = mapped_column(default="")
    series_uid: Mapped[str] = mapped_column(default="")
    sop_instance_uid: Mapped[str] = mapped_column(default="")
    sop_class_uid: Mapped[str] = mapped_column(default="")
    sender_ae_title: Mapped[str]
    sender_address: Mapped[str]
    received_at: Mapped[datetime]
    removed_at: Mapped[datetime | None]
