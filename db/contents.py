"""Content of studies, and inputs and results of jobs, by series, for pages that show pictures of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session, joinedload, selectinload

from db.models import Delivery, Instance, Job, JobInput, Output, Series, Study
from db.states import DeliveryState, JobState, ProofState

__all__ = [
    "DeliverySummary",
    "ReceivedSeries",
    "ResultSeries",
    "find_middle_files",
    "find_page_files",
    "find_result_series",
    "list_files",
    "list_input_series",
    "list_jobs",
    "list_prior_series",
    "list_received_series",
    "list_results",
    "summarize_deliveries",
]

_OWN = Output.rendition == ""
"""Condition that excludes renditions for single destinations."""
_HELD = Instance.expired_at.is_(None)
_NO_PICTURES = ("SR", "KO", "PR", "REG", "RWV", "DOC", "PLAN", "RTPLAN", "ECG", "AU")


@dataclass(frozen=True)
class ReceivedSeries:
    """Received series and its size."""

    row: Series
    instances: int
    size_bytes: int


@dataclass(frozen=True)
class ResultSeries:
    """Series of results of a job; ``modality`` and ``description`` are empty where its row lacks them."""

    job_id: int
    series_uid: str
    kind: str
    description: str
    modality: str
    instances: int
    first_sha256: str


@dataclass(frozen=True)
class DeliverySummary:
    """Deliveries of a job to one destination: their number by state and by proof, and the last failure of each."""

    job_id: int
    destination: str
    states: dict[DeliveryState, int]
    reason: str
    attempts: int
    next_at: datetime | None
    delivered_at: datetime | None
    proofs: dict[ProofState, int]
    proof_reason: str


def list_received_series(session: Session, study_id: int, *, limit: int) -> list[ReceivedSeries]:
    """Return the first ``limit`` received series of the study, in the order of their arrival."""
    query = (
        select(Series, func.count(Instance.id), func.coalesce(func.sum(Instance.size_bytes), 0))
        .join(Instance, Instance.series_id == Series.id, isouter=True)
        .where(Series.study_id == study_id)
        .group_by(Series.id)
        .order_by(Series.id)
        .limit(limit)
    )
    return [ReceivedSeries(row, count, int(size)) for row, count, size in session.execute(query)]


def list_results(session: Session, job_ids: Sequence[int]) -> dict[int, list[ResultSeries]]:
    """Return by job its series of results, in the order in which they were written."""
    query = select(Output).where(Output.job_id.in_(job_ids), _OWN).order_by(Output.id)
    series: dict[tuple[int, str], list[Output]] = {}
    for output in session.scalars(query):
        series.setdefault((output.job_id, output.series_uid), []).append(output)
    found: dict[int, list[ResultSeries]] = {}
    for (job_id, uid), outputs in series.items():
        attributes = outputs[0].attributes or {}
        description, modality = str(attributes.get("SeriesDescription", "")), str(attributes.get("Modality", ""))
        one = ResultSeries(job_id, uid, outputs[0].kind, description, modality, len(outputs), outputs[0].sha256)
        found.setdefault(job_id, []).append(one)
    return found


def list_input_series(session: Session, job_ids: Sequence[int]) -> dict[int, list[tuple[str, Series]]]:
    """Return by job its input series with the names of the inputs; the one that the route matched comes first."""
    query = (
        select(JobInput.job_id, JobInput.name, func.min(JobInput.id), Series)
        .join(Instance, JobInput.instance_id == Instance.id)
        .join(Series, Instance.series_id == Series.id)
        .where(JobInput.job_id.in_(job_ids))
        .group_by(JobInput.job_id, JobInput.name, Series.id)
        .order_by(JobInput.job_id, func.min(JobInput.id))
    )
    found: dict[int, list[tuple[str, Series]]] = {}
    for job_id, name, _, series in session.execute(query):
        found.setdefault(job_id, []).append((name, series))
    return found


def list_prior_series(session: Session, job_id: int) -> dict[str, tuple[str, str]]:
    """Return by UID the name of the input and the study date of a job's input series of earlier studies."""
    query = (
        select(Series.series_uid, JobInput.name, Study.study_date)
        .join(Instance, Instance.series_id == Series.id)
        .join(JobInput, JobInput.instance_id == Instance.id)
        .join(Study, Series.study_id == Study.id)
        .join(Job, JobInput.job_id == Job.id)
        .where(Job.id == job_id, Series.study_id != Job.study_id)
        .order_by(JobInput.id)
    )
    return {uid: (name, date) for uid, name, date in session.execute(query)}


def list_files(session: Session, job_id: int, series_uid: str) -> list[tuple[str, str]]:
    """Return kind ("" for an input) and SHA-256 of a job's files of one series, of its results or else its inputs."""
    here = (Output.job_id == job_id, Output.series_uid == series_uid, Output.expired_at.is_(None))
    outputs = select(Output.kind, Output.sha256).where(*here, _OWN)
    found = session.execute(outputs.order_by(Output.id)).all()
    if not found:
        inputs = select(Instance.sha256).join(JobInput, JobInput.instance_id == Instance.id)
        inputs = inputs.join(Series, Instance.series_id == Series.id)
        inputs = inputs.where(JobInput.job_id == job_id, Series.series_uid == series_uid, Instance.expired_at.is_(None))
        return [("", sha256) for sha256 in session.scalars(inputs.order_by(JobInput.id))]
    return [(kind, sha256) for kind, sha256 in found]


def find_result_series(session: Session, series_uid: str) -> ResultSeries | None:
    """Return the series of results with that UID of the newest job that has it, or None."""
    query = select(Output.job_id).where(Output.series_uid == series_uid, _OWN, Output.expired_at.is_(None))
    job_id = session.scalar(query.order_by(Output.job_id.desc()).limit(1))
    results = list_results(session, [job_id]).get(job_id, []) if job_id is not None else []
    return next((each for each in results if each.series_uid == series_uid), None)


def find_page_files(session: Session, job_id: int) -> list[str]:
    """Return SHA-256 of a job's report page as an image, in a list, empty without one."""
    query = select(Output.sha256).where(Output.job_id == job_id, Output.kind == "report page")
    return list(
        session.scalars(query.where(Output.expired_at.is_(None)).order_by(Output.rendition, Output.id).limit(1))
    )


def find_middle_files(session: Session, study_id: int, series_uid: str = "", *, limit: int = 4) -> list[str]:
    """Return SHA-256 of the middle instance of each series, or of that one; received series first, then results."""
    counted = select(Series.id, func.count(Instance.id)).join(Instance).where(Series.study_id == study_id, _HELD)
    counted = counted.where(Series.series_uid == series_uid if series_uid else Series.modality.not_in(_NO_PICTURES))
    found: list[str] = []
    for id, count in session.execute(counted.group_by(Series.id).order_by(Series.id).limit(limit)).all():
        one = select(Instance.sha256).where(Instance.series_id == id, _HELD).order_by(Instance.id)
        found += session.scalars(one.offset(count // 2).limit(1)).all()
    results = select(Output.sha256).join(Job).where(Job.study_id == study_id, _OWN, Output.expired_at.is_(None))
    results = results.where(Output.series_uid == series_uid) if series_uid else results
    by_label = results.order_by(Output.kind != "labelled image", Output.job_id.desc(), Output.id)
    digests = list(session.scalars(by_label.limit(500 if series_uid else limit)))
    return found + (digests[len(digests) // 2 :] if series_uid else digests)


def summarize_deliveries(session: Session, job_ids: Sequence[int]) -> dict[int, list[DeliverySummary]]:
    """Return by job a summary of its deliveries to each destination."""
    query = select(Output.job_id, Delivery).join(Delivery, Delivery.output_id == Output.id)
    query = query.options(joinedload(Delivery.proof))
    rows: dict[tuple[int, str], list[Delivery]] = {}
    for job_id, delivery in session.execute(query.where(Output.job_id.in_(job_ids)).order_by(Delivery.id)):
        rows.setdefault((job_id, delivery.destination), []).append(delivery)
    found: dict[int, list[DeliverySummary]] = {}
    for (job_id, destination), mine in rows.items():
        found.setdefault(job_id, []).append(_summarize(job_id, destination, mine))
    return found


def _summarize(job_id: int, destination: str, rows: Sequence[Delivery]) -> DeliverySummary:
    states: dict[DeliveryState, int] = {}
    for row in rows:
        states[row.state] = states.get(row.state, 0) + 1
    open_rows = [row for row in rows if row.state is not DeliveryState.DELIVERED]
    waiting = [row.not_before for row in rows if row.state is DeliveryState.WAITING]
    delivered = [row.delivered_at for row in rows if row.delivered_at is not None]
    reason = next((row.reason for row in reversed(open_rows) if row.reason), "")
    attempts = max((row.attempts for row in rows), default=0)
    found = [row.proof for row in rows if row.proof is not None and row.state is DeliveryState.DELIVERED]
    owed = [proof for proof in found if proof.is_owed]
    proofs = Counter(proof.state for proof in found if proof.is_owed or proof.proven_at is not None)
    unproven = next((proof.reason for proof in owed if proof.reason), "")
    return DeliverySummary(
        job_id, destination, states, reason, attempts, min(waiting, default=None), max(delivered, default=None),
        dict(proofs), unproven,
    )  # fmt: skip


def list_jobs(session: Session, states: Sequence[JobState], *, limit: int, offset: int = 0) -> list[Job]:
    """Return jobs in those states with their studies, the oldest first."""
    query = select(Job).where(Job.state.in_(states)).options(selectinload(Job.study)).order_by(Job.finished_at, Job.id)
    return list(session.scalars(query.limit(limit).offset(offset)))
