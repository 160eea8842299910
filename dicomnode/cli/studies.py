"""``dicomnode studies``."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomnode.cli import context

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from db.models import Study
    from dicomnode.config import Config
    from dicomnode.routing import Verdict

__all__ = ["app"]

app = typer.Typer()

StudyUid = Annotated[str, typer.Argument(metavar="UID", help="The Study Instance UID.")]


@app.command("list")
def list_studies(ctx: typer.Context, as_json: context.AsJson = False) -> None:
    """Every study, the newest last."""
    from sqlalchemy import func, select

    from db.engine import readers
    from db.models import Instance, Series, Study

    instances = select(func.count(Instance.id)).join(Series).where(Series.study_id == Study.id).scalar_subquery()
    with readers(context.engine(context.config(ctx)))() as session:
        found = session.execute(select(Study, instances).order_by(Study.id)).all()
    rows = [_row(study) | {"instances": count} for study, count in found]
    columns = ["study_uid", "state", "revision", "instances", "last_received_at", "completed_by"]
    context.print_rows(rows, columns, as_json=as_json)


@app.command()
def show(ctx: typer.Context, uid: StudyUid, as_json: context.AsJson = False) -> None:
    """One study: its series, its jobs and their results."""
    from db.engine import readers

    with readers(context.engine(context.config(ctx)))() as session:
        study = _study(session, uid)
        series = [_series(each) for each in study.series]
        jobs = [_job(job) for job in study.jobs]
    if as_json:
        context.print_json(_row(study) | {"series": series, "jobs": jobs})
        return
    lines = [{"what": name, "value": value} for name, value in _row(study).items()]
    context.print_rows(lines, ["what", "value"], as_json=False)
    context.print_rows(series, ["series_uid", "modality", "description", "instances"], as_json=False)
    context.print_rows(jobs, ["id", "route", "state", "revision", "results", "delivered", "reason"], as_json=False)


@app.command()
def explain(
    ctx: typer.Context,
    what: Annotated[str, typer.Argument(metavar="UID|FILE", help="A study that is here, or a DICOM file.")],
    as_json: context.AsJson = False,
) -> None:
    """Which route matched on which attribute, or why none did, and what became of its jobs."""
    config = context.config(ctx)
    became = _became(config, what)
    rows = [asdict(verdict) | {"jobs": became.get(verdict.route, [])} for verdict in _verdicts(config, what)]
    if as_json:
        context.print_json(rows)
        return
    cells = [
        row
        | {
            "series": "\n".join(row["matched"]),
            "jobs": "\n".join(f"job {job['id']} {job['state']}: {job['reason']}".rstrip(": ") for job in row["jobs"]),
        }
        for row in rows
    ]
    context.print_rows(cells, ["route", "pipeline", "series", "why", "jobs"], as_json=False)


@app.command()
def close(ctx: typer.Context, uid: StudyUid) -> None:
    """Take a study as complete now, without waiting."""
    from db.engine import sessions
    from dicomnode import completion

    with sessions(context.engine(context.config(ctx))).begin() as session:
        study = completion.close(session, uid, now=datetime.now(UTC))
    print(f"study {uid} is {study.state}, revision {study.revision}")


@app.command()
def replay(
    ctx: typer.Context,
    uid: StudyUid,
    model: Annotated[str, typer.Option(metavar="NAME@VERSION", help="Another model than the job's.")] = "",
    as_json: context.AsJson = False,
) -> None:
    """Run the study's finished jobs again, deliver nothing, and say what differs."""
    from db.engine import readers
    from dicomnode import replaying

    config = context.config(ctx)
    context.log_to_stderr()
    with readers(context.engine(config))() as session:
        tasks = replaying.finished(session, config, _study(session, uid), model)
    differences = [row for done in tasks for row in replaying.compare(done, config)]
    context.print_rows(differences, ["job", "kind", "result", "largest_difference", "psnr_db"], as_json=as_json)


def _verdicts(config: Config, what: str) -> list[Verdict]:
    from db.engine import readers
    from dicomnode import headers, routing

    if Path(what).is_file():
        return routing.explain_file(headers.read(Path(what)), config.routes)
    with readers(context.engine(config))() as session:
        return routing.explain_study(session, _study(session, what), config.routes)


def _became(config: Config, what: str) -> dict[str, list[dict[str, Any]]]:
    """By route: state, verdict and reason of the jobs of a study that is here."""
    from db.engine import readers

    if Path(what).is_file():
        return {}
    found: dict[str, list[dict[str, Any]]] = {}
    with readers(context.engine(config))() as session:
        for job in _study(session, what).jobs:
            verdict = str(job.report.get("verdict", ""))
            told = {"id": job.id, "state": str(job.state), "verdict": verdict, "reason": job.reason}
            found.setdefault(job.route, []).append(told)
    return found


def _study(session: Session, uid: str) -> Study:
    from db import studies
    from dicomnode.errors import NotFound

    study = studies.by_uid(session, uid)
    if study is None:
        raise NotFound(f"no study {uid}: 'dicomnode studies list' shows all")
    return study


def _row(study: Study) -> dict[str, Any]:
    names = ["id", "study_uid", "state", "revision", "opened_at", "last_received_at", "completed_at", "completed_by"]
    return {name: getattr(study, name) for name in names}


def _series(series: Any) -> dict[str, Any]:
    return {
        "series_uid": series.series_uid,
        "modality": series.modality,
        "description": series.attributes.get("SeriesDescription", ""),
        "instances": len(series.instances),
    }


def _job(job: Any) -> dict[str, Any]:
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
