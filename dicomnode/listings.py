"""Rows of the database and of node.toml as listings: one form for the command line's ``--json`` and the web's ``/api``.

No listing names a patient: studies are identified by their UIDs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.orm import joinedload, selectinload

from db import deployments as deployment_rows
from db import quarantine, workitems
from db import studies as study_rows
from db.models import Delivery, Deployment, Instance, Job, JobInput, Output, Series, Study
from db.states import DeliveryState, JobState, ProofState
from dicomnode.errors import NotFound
from dicomnode.routing import routing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import Session

    from dicomnode.config import Config
    from model_zoo.bundle import BundleFacts

__all__ = [
    "describe_job",
    "describe_model",
    "describe_study",
    "explain_routes",
    "find_job",
    "find_study",
    "list_comparisons",
    "list_deployments",
    "list_jobs",
    "list_ledger",
    "list_models",
    "list_peers",
    "list_studies",
    "resolve_study",
    "summarize_jobs",
]

_OF_STUDY = ("id", "study_uid", "state", "revision", "opened_at", "last_received_at", "completed_at", "completed_by")
_OF_JOB = (
    "id", "state", "route", "pipeline", "model", "revision", "attempts", "priority", "worker", "progress", "step",
    "reason", "supersedes_id", "shadow_of_id", "created_at", "started_at", "finished_at",
)  # fmt: skip
_OF_MODEL = ("licence", "trained_on", "intended_use", "task")


def list_studies(session: Session, *, limit: int | None = None, offset: int = 0) -> list[dict[str, Any]]:
    """List every study, the newest last. A study in state "routed" with no ``jobs`` is one that no route took."""
    instances = select(func.count(Instance.id)).join(Series).where(Series.study_id == Study.id).scalar_subquery()
    jobs = select(func.count(Job.id)).where(Job.study_id == Study.id).scalar_subquery()
    rows = session.execute(select(Study, instances, jobs).order_by(Study.id).limit(limit).offset(offset))
    return [_select_columns(study, _OF_STUDY) | {"instances": images, "jobs": made} for study, images, made in rows]


def find_study(session: Session, uid: str) -> Study:
    """Return the study of that UID. Raises NotFound."""
    study = study_rows.find_by_uid(session, uid)
    if study is None:
        raise NotFound(f"no study {uid}: 'dicomnode studies list' shows all")
    return study


def resolve_study(session: Session, text: str) -> Study:
    """Return the study of that UID, of that number, or the only one whose UID begins so; a beginning has a dot.

    Raises NotFound.
    """
    if text.isascii() and text.isdigit() and len(text) < 10:
        if (numbered := session.get(Study, int(text))) is not None:
            return numbered
        raise NotFound(f"no study has the number {text}: 'dicomnode studies list' shows all")
    study = study_rows.find_by_uid(session, text)
    if study is not None or "." not in text:
        return study or find_study(session, text)
    begins_so = select(Study).where(Study.study_uid.startswith(text, autoescape=True)).limit(2)
    found = session.scalars(begins_so).all()
    if len(found) == 2:
        raise NotFound(f"several studies have a UID that begins with {text}: give more of it, or the study's number")
    return found[0] if found else find_study(session, text)


def describe_study(session: Session, study: Study, *, most_series: int | None = None) -> dict[str, Any]:
    """Describe one study with its jobs and its series, at most ``most_series`` of them."""
    count = func.count(Instance.id)
    of_study = select(Series, count).join(Instance, isouter=True).where(Series.study_id == study.id)
    rows = session.execute(of_study.group_by(Series.id).order_by(Series.id).limit(most_series))
    series = [_describe_series(row, number) for row, number in rows]
    with_results = selectinload(Job.outputs).selectinload(Output.deliveries)
    mine = select(Job).where(Job.study_id == study.id).order_by(Job.id).options(with_results)
    return _select_columns(study, _OF_STUDY) | {
        "quarantined": quarantine.count_undecided(session, study.study_uid),
        "series": series,
        "jobs": [_summarize_job(each) for each in session.scalars(mine)],
        "workitems": [
            {"uid": each.uid, "state": each.state} for each in workitems.list_open_of_study(session, study.study_uid)
        ],
    }


def explain_routes(session: Session, study: Study, config: Config) -> list[dict[str, Any]]:
    """Explain by route which series of a study match, on which attributes, or why none; with the state of its jobs."""
    jobs_by_route = summarize_jobs(session, study)
    verdicts = routing.explain_study(session, study, config.routes)
    return [asdict(verdict) | {"jobs": jobs_by_route.get(verdict.route, [])} for verdict in verdicts]


def summarize_jobs(session: Session, study: Study) -> dict[str, list[dict[str, Any]]]:
    """Return by route the state, verdict and reason of a study's jobs."""
    by_route: dict[str, list[dict[str, Any]]] = {}
    for each in session.scalars(select(Job).where(Job.study_id == study.id).order_by(Job.id)):
        verdict = str(each.report.get("verdict", ""))
        facts = {"id": each.id, "state": str(each.state), "verdict": verdict, "reason": each.reason}
        by_route.setdefault(each.route, []).append(facts)
    return by_route


def list_ledger(session: Session, study: Study) -> list[dict[str, Any]]:
    """List what became of a study: instances, job, model with digest, each result, its destination and the proof."""
    of_output = selectinload(Job.outputs).selectinload(Output.deliveries).joinedload(Delivery.proof)
    of_input = selectinload(Job.inputs).joinedload(JobInput.instance)
    mine = select(Job).where(Job.study_id == study.id).order_by(Job.id).options(of_output, of_input)
    return [row for job in session.scalars(mine) for row in _describe_ledger(job)]


def list_jobs(
    session: Session, state: JobState | None = None, *, limit: int | None = None, offset: int = 0
) -> list[dict[str, Any]]:
    """List every job, or those in a state; the newest last."""
    query = select(Job).options(joinedload(Job.study)).order_by(Job.id).limit(limit).offset(offset)
    rows = session.scalars(query if state is None else query.where(Job.state == state))
    return [_describe_columns(each) for each in rows]


def find_job(session: Session, id: int) -> Job:
    """Return the job of that number. Raises NotFound."""
    job = session.get(Job, id)
    if job is None:
        raise NotFound(f"no job {id}: 'dicomnode jobs list' shows all")
    return job


def describe_job(session: Session, job: Job) -> dict[str, Any]:
    """Describe one job: its inputs, results and deliveries, and the report of its run."""
    inputs = select(JobInput).where(JobInput.job_id == job.id).options(joinedload(JobInput.instance))
    outputs = select(Output).where(Output.job_id == job.id).options(selectinload(Output.deliveries))
    return _describe_columns(job) | {
        "key": job.key,
        "options": job.options,
        "destinations": job.destinations,
        "report": job.report,
        "inputs": [
            {"name": each.name, "sop_instance_uid": each.instance.sop_instance_uid}
            for each in session.scalars(inputs.order_by(JobInput.id))
        ],
        "outputs": [_describe_output(each) for each in session.scalars(outputs.order_by(Output.id))],
    }


def list_models(config: Config | None = None) -> list[dict[str, Any]]:
    """List every bundle on this node, without a configuration the shipped ones: version, digest, licence, use."""
    from dicomnode.deployment import models as bundles
    from model_zoo import registry

    return [
        _describe_bundle(facts)
        for facts in (registry.list_bundles() if config is None else bundles.list_bundles(config))
    ]


def describe_model(name: str, config: Config | None = None) -> dict[str, Any]:
    """Return the whole metadata of the bundle NAME or NAME@VERSION. Raises BundleError."""
    from dicomnode.deployment import models as bundles
    from model_zoo import registry

    bundle, _, version = name.partition("@")
    facts = registry.find(bundle, version or None) if config is None else bundles.find_bundle(name, config)
    return {**facts.metadata, "folder": str(facts.path)}


def list_deployments(session: Session, pipeline: str = "", *, in_force: bool = False) -> list[dict[str, Any]]:
    """List the deployments, of one pipeline or of all, with person and time; the newest first."""
    history = deployment_rows.list_history(session, pipeline)
    return [_describe_deployment(row) for row in history if row.ended_at is None or not in_force]


def list_comparisons(session: Session, pipeline: str, *, limit: int | None = None) -> list[dict[str, Any]]:
    """List by study the results of a shadow version compared with those delivered; the newest first."""
    mine = (Job.pipeline == pipeline, Job.shadow_of_id.is_not(None))
    query = select(Job).where(*mine).options(joinedload(Job.study)).order_by(Job.id.desc()).limit(limit)
    return [_describe_comparison(each) for each in session.scalars(query)]


def list_peers(config: Config) -> list[dict[str, Any]]:
    """List the peers of node.toml."""
    return [peer.model_dump(mode="json") for peer in config.peers]


def _select_columns(row: Study | Job, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def _describe_series(series: Series, instances: int) -> dict[str, Any]:
    return {
        "series_uid": series.series_uid,
        "modality": series.modality,
        "description": series.attributes.get("SeriesDescription", ""),
        "instances": instances,
    }


def _summarize_job(job: Job) -> dict[str, Any]:
    deliveries = [each for output in job.outputs for each in output.deliveries]
    return {
        "id": job.id,
        "route": job.route,
        "pipeline": job.pipeline,
        "state": job.state,
        "revision": job.revision,
        "results": len(job.outputs),
        "delivered": f"{sum(each.delivered_at is not None for each in deliveries)}/{len(deliveries)}",
        "reason": job.reason,
    }


def _describe_columns(job: Job) -> dict[str, Any]:
    return _select_columns(job, _OF_JOB) | {"study_uid": job.study.study_uid}


def _describe_ledger(job: Job) -> list[dict[str, Any]]:
    made = {
        "instances": [each.instance.sop_instance_uid for each in job.inputs],
        "job": job.id,
        "pipeline": job.pipeline,
        "model": str(job.report.get("model") or job.model),
        "digest": str(job.report.get("digest") or job.model_digest),
    }
    pairs: list[tuple[Output | None, Delivery | None]] = []
    for output in job.outputs:
        pairs += [(output, delivery) for delivery in output.deliveries] or [(output, None)]
    return [made | _describe_proof(job, output, delivery) for output, delivery in pairs or [(None, None)]]


def _describe_proof(job: Job, output: Output | None, delivery: Delivery | None) -> dict[str, Any]:
    """Describe a result, where it went, and what proves that it is there; without a result the state of its job."""
    proof = delivery.proof if delivery is not None else None
    is_sent = delivery is not None and delivery.state is DeliveryState.DELIVERED
    state = "not delivered" if delivery is None else str(delivery.state)
    if is_sent:
        state = str(proof.state) if proof is not None else str(ProofState.SENT)
    return {
        "result": output.sop_instance_uid if output else "",
        "kind": output.kind if output else "",
        "destination": delivery.destination if delivery else "",
        "proof": state if output else str(job.state),
        "sent_at": delivery.delivered_at if delivery else None,
        "proven_at": proof.proven_at if proof and is_sent else None,
        "sent_as": proof.sop_instance_uid if proof else "",
        "transaction_uid": proof.transaction_uid if proof else "",
        "reason": (proof.reason if proof and is_sent else delivery.reason if delivery else job.reason),
    }


def _describe_deployment(row: Deployment) -> dict[str, Any]:
    names = ("id", "pipeline", "digest", "mode", "percent", "who", "why", "started_at", "ended_at", "ended_by")
    return {"model": deployment_rows.format_model(row)} | {name: getattr(row, name) for name in names}


def _describe_comparison(job: Job) -> dict[str, Any]:
    """Return the worst value of each kind; the job's report holds all of them."""
    comparison: Mapping[str, Any] = job.report.get("comparison", {})
    before, after = comparison.get("before", {}), comparison.get("after", {})
    images = [row for row in comparison.get("results", []) if row["psnr_db"] is not None]
    overlaps = [row["dice"] for row in comparison.get("results", []) if row["dice"] is not None]
    numbers = [row for row in comparison.get("numbers", []) if row["difference"] is not None]
    most = max(numbers, key=_relative_difference, default=None)
    return {
        "study_uid": job.study.study_uid,
        "job": job.shadow_of_id,
        "shadow_job": job.id,
        "state": str(job.state),
        "before": before.get("model", ""),
        "before_digest": before.get("digest", ""),
        "after": after.get("model", "") or job.model,
        "after_digest": after.get("digest", "") or job.model_digest,
        "verdicts": f"{before.get('verdict', '')} / {after.get('verdict', '')}" if comparison else job.reason,
        "identical": bool(comparison) and all("differs" not in row["result"] for row in comparison["results"]),
        "psnr_db": min((row["psnr_db"] for row in images), default=None),
        "dice": min(overlaps, default=None),
        "number": _describe_change(most) if most and most["difference"] else "",
        "numbers": numbers,
        "before_s": before.get("seconds"),
        "after_s": after.get("seconds"),
    }


def _relative_difference(number: Mapping[str, Any]) -> float:
    scale = max(abs(number["before"]), abs(number["after"]))
    return abs(number["difference"]) / scale if scale else 0.0


def _describe_change(number: Mapping[str, Any]) -> str:
    name = ": ".join(part for part in (number["group"], number["name"]) if part)
    return f"{name} {number['before']:.4g} to {number['after']:.4g}"


def _describe_output(output: Output) -> dict[str, Any]:
    return {
        "kind": output.kind,
        "sop_instance_uid": output.sop_instance_uid,
        "sop_class_uid": output.sop_class_uid,
        "sha256": output.sha256,
        "deliveries": {each.destination: str(each.state) for each in output.deliveries},
    }


def _describe_bundle(facts: BundleFacts) -> dict[str, Any]:
    described: Mapping[str, Any] = {key: facts.metadata.get(key, "") for key in _OF_MODEL}
    return {"name": facts.name, "version": facts.version, "digest": facts.digest, **described}
