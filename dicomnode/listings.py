"""What listings tell of rows: the same for the command line's ``--json`` and for the web's ``/api``.

No row here names a patient: studies are told by their UIDs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.orm import joinedload, selectinload

from db import deployments as deployment_rows
from db import studies as study_rows
from db.models import Deployment, Instance, Job, JobInput, Output, Series, Study
from db.states import JobState
from dicomnode.errors import NotFound
from dicomnode.routing import routing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import Session

    from dicomnode.config import Config
    from model_zoo.bundle import BundleFacts

__all__ = [
    "became",
    "comparisons",
    "deployments",
    "explained",
    "job",
    "job_facts",
    "jobs",
    "model",
    "models",
    "peers",
    "studies",
    "study",
    "study_facts",
]

_OF_STUDY = ("id", "study_uid", "state", "revision", "opened_at", "last_received_at", "completed_at", "completed_by")
_OF_JOB = (
    "id", "state", "route", "pipeline", "model", "revision", "attempts", "priority", "worker", "progress", "step",
    "reason", "supersedes_id", "shadow_of_id", "created_at", "started_at", "finished_at",
)  # fmt: skip
_OF_MODEL = ("licence", "trained_on", "intended_use", "task")


def studies(session: Session, *, limit: int | None = None, offset: int = 0) -> list[dict[str, Any]]:
    """Every study, the newest last."""
    count = select(func.count(Instance.id)).join(Series).where(Series.study_id == Study.id).scalar_subquery()
    found = session.execute(select(Study, count).order_by(Study.id).limit(limit).offset(offset))
    return [_row(study, _OF_STUDY) | {"instances": count} for study, count in found]


def study(session: Session, uid: str) -> Study:
    """The study of that UID. Raises NotFound."""
    found = study_rows.find_by_uid(session, uid)
    if found is None:
        raise NotFound(f"no study {uid}: 'dicomnode studies list' shows all")
    return found


def study_facts(session: Session, found: Study, *, most_series: int | None = None) -> dict[str, Any]:
    """One study with its series, or so many of them, and jobs."""
    count = func.count(Instance.id)
    of_study = select(Series, count).join(Instance, isouter=True).where(Series.study_id == found.id)
    rows = session.execute(of_study.group_by(Series.id).order_by(Series.id).limit(most_series))
    series = [_series(row, number) for row, number in rows]
    with_results = selectinload(Job.outputs).selectinload(Output.deliveries)
    mine = select(Job).where(Job.study_id == found.id).order_by(Job.id).options(with_results)
    return _row(found, _OF_STUDY) | {"series": series, "jobs": [_brief(each) for each in session.scalars(mine)]}


def explained(session: Session, found: Study, config: Config) -> list[dict[str, Any]]:
    """Per route which series of a study it takes, on which attributes, or why none; and what became of its jobs."""
    told = became(session, found)
    verdicts = routing.explain_study(session, found, config.routes)
    return [asdict(verdict) | {"jobs": told.get(verdict.route, [])} for verdict in verdicts]


def became(session: Session, found: Study) -> dict[str, list[dict[str, Any]]]:
    """By route: state, verdict and reason of a study's jobs."""
    told: dict[str, list[dict[str, Any]]] = {}
    for each in session.scalars(select(Job).where(Job.study_id == found.id).order_by(Job.id)):
        verdict = str(each.report.get("verdict", ""))
        facts = {"id": each.id, "state": str(each.state), "verdict": verdict, "reason": each.reason}
        told.setdefault(each.route, []).append(facts)
    return told


def jobs(
    session: Session, state: JobState | None = None, *, limit: int | None = None, offset: int = 0
) -> list[dict[str, Any]]:
    """Every job, or those in a state; the newest last."""
    query = select(Job).options(joinedload(Job.study)).order_by(Job.id).limit(limit).offset(offset)
    found = session.scalars(query if state is None else query.where(Job.state == state))
    return [_job(each) for each in found]


def job(session: Session, id: int) -> Job:
    """The job of that number. Raises NotFound."""
    found = session.get(Job, id)
    if found is None:
        raise NotFound(f"no job {id}: 'dicomnode jobs list' shows all")
    return found


def job_facts(session: Session, found: Job) -> dict[str, Any]:
    """One job: inputs, results, deliveries, and what its run reports."""
    inputs = select(JobInput).where(JobInput.job_id == found.id).options(joinedload(JobInput.instance))
    outputs = select(Output).where(Output.job_id == found.id).options(selectinload(Output.deliveries))
    return _job(found) | {
        "key": found.key,
        "options": found.options,
        "destinations": found.destinations,
        "report": found.report,
        "inputs": [
            {"name": each.name, "sop_instance_uid": each.instance.sop_instance_uid}
            for each in session.scalars(inputs.order_by(JobInput.id))
        ],
        "outputs": [_output(each) for each in session.scalars(outputs.order_by(Output.id))],
    }


def models(config: Config | None = None) -> list[dict[str, Any]]:
    """Every bundle on this node, without a configuration the shipped ones: version, digest, licence, intended use."""
    from dicomnode.deployment import models as bundles
    from model_zoo import registry

    return [_model(facts) for facts in (registry.installed() if config is None else bundles.list_bundles(config))]


def model(name: str, config: Config | None = None) -> dict[str, Any]:
    """Everything that the bundle NAME or NAME@VERSION says of itself. Raises BundleError."""
    from dicomnode.deployment import models as bundles
    from model_zoo import registry

    bundle, _, version = name.partition("@")
    facts = registry.find(bundle, version or None) if config is None else bundles.find_bundle(name, config)
    return {**facts.metadata, "folder": str(facts.path)}


def deployments(session: Session, pipeline: str = "", *, in_force: bool = False) -> list[dict[str, Any]]:
    """Who deployed what when, of one pipeline or of all; the newest first."""
    found = deployment_rows.list_history(session, pipeline)
    return [_deployment(row) for row in found if row.ended_at is None or not in_force]


def comparisons(session: Session, pipeline: str, *, limit: int | None = None) -> list[dict[str, Any]]:
    """Per study what a version that ran beside another made of it, against what went out; the newest first."""
    mine = (Job.pipeline == pipeline, Job.shadow_of_id.is_not(None))
    query = select(Job).where(*mine).options(joinedload(Job.study)).order_by(Job.id.desc()).limit(limit)
    return [_comparison(each) for each in session.scalars(query)]


def peers(config: Config) -> list[dict[str, Any]]:
    """The peers of node.toml."""
    return [peer.model_dump(mode="json") for peer in config.peers]


def _row(found: Study | Job, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(found, name) for name in names}


def _series(series: Series, instances: int) -> dict[str, Any]:
    return {
        "series_uid": series.series_uid,
        "modality": series.modality,
        "description": series.attributes.get("SeriesDescription", ""),
        "instances": instances,
    }


def _brief(found: Job) -> dict[str, Any]:
    deliveries = [each for output in found.outputs for each in output.deliveries]
    return {
        "id": found.id,
        "route": found.route,
        "pipeline": found.pipeline,
        "state": found.state,
        "revision": found.revision,
        "results": len(found.outputs),
        "delivered": f"{sum(each.delivered_at is not None for each in deliveries)}/{len(deliveries)}",
        "reason": found.reason,
    }


def _job(found: Job) -> dict[str, Any]:
    return _row(found, _OF_JOB) | {"study_uid": found.study.study_uid}


def _deployment(row: Deployment) -> dict[str, Any]:
    names = ("id", "pipeline", "digest", "mode", "percent", "who", "why", "started_at", "ended_at", "ended_by")
    return {"model": deployment_rows.format_model(row)} | {name: getattr(row, name) for name in names}


def _comparison(found: Job) -> dict[str, Any]:
    """The worst of each kind; everything is in the job's report."""
    told: Mapping[str, Any] = found.report.get("comparison", {})
    before, after = told.get("before", {}), told.get("after", {})
    images = [row for row in told.get("results", []) if row["psnr_db"] is not None]
    overlaps = [row["dice"] for row in told.get("results", []) if row["dice"] is not None]
    numbers = [row for row in told.get("numbers", []) if row["difference"] is not None]
    most = max(numbers, key=_relative, default=None)
    return {
        "study_uid": found.study.study_uid,
        "job": found.shadow_of_id,
        "shadow_job": found.id,
        "state": str(found.state),
        "before": before.get("model", ""),
        "before_digest": before.get("digest", ""),
        "after": after.get("model", "") or found.model,
        "after_digest": after.get("digest", "") or found.model_digest,
        "verdicts": f"{before.get('verdict', '')} / {after.get('verdict', '')}" if told else found.reason,
        "identical": bool(told) and all("differs" not in row["result"] for row in told["results"]),
        "psnr_db": min((row["psnr_db"] for row in images), default=None),
        "dice": min(overlaps, default=None),
        "number": _in_words(most) if most and most["difference"] else "",
        "numbers": numbers,
        "before_s": before.get("seconds"),
        "after_s": after.get("seconds"),
    }


def _relative(number: Mapping[str, Any]) -> float:
    scale = max(abs(number["before"]), abs(number["after"]))
    return abs(number["difference"]) / scale if scale else 0.0


def _in_words(number: Mapping[str, Any]) -> str:
    name = ": ".join(word for word in (number["group"], number["name"]) if word)
    return f"{name} {number['before']:.4g} to {number['after']:.4g}"


def _output(output: Output) -> dict[str, Any]:
    return {
        "kind": output.kind,
        "sop_instance_uid": output.sop_instance_uid,
        "sop_class_uid": output.sop_class_uid,
        "sha256": output.sha256,
        "deliveries": {each.destination: str(each.state) for each in output.deliveries},
    }


def _model(facts: BundleFacts) -> dict[str, Any]:
    said: Mapping[str, Any] = {key: facts.metadata.get(key, "") for key in _OF_MODEL}
    return {"name": facts.name, "version": facts.version, "digest": facts.digest, **said}
