"""``dicomnode jobs``."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomnode.cli import context

if TYPE_CHECKING:
    from db.models import Job

__all__ = ["app"]

app = typer.Typer()

JobId = Annotated[int, typer.Argument(metavar="ID", help="The job's number.")]


@app.command("list")
def list_jobs(
    ctx: typer.Context,
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    as_json: context.AsJson = False,
) -> None:
    """Every job, the newest last."""
    from sqlalchemy import select
    from sqlalchemy.orm import joinedload

    from db.engine import readers
    from db.models import Job
    from db.states import JobState

    if state is not None and state not in list(JobState):
        raise typer.BadParameter(f"no state {state!r}; there is: {', '.join(JobState)}")
    query = select(Job).options(joinedload(Job.study)).order_by(Job.id)
    if state is not None:
        query = query.where(Job.state == JobState(state))
    with readers(context.engine(context.config(ctx)))() as session:
        rows = [_row(job) for job in session.scalars(query)]
    columns = ["id", "state", "route", "pipeline", "study_uid", "revision", "attempts", "progress", "reason"]
    context.print_rows(rows, columns, as_json=as_json)


@app.command()
def show(ctx: typer.Context, id: JobId, as_json: context.AsJson = False) -> None:
    """One job: inputs, results, deliveries, and what its run reports."""
    from db.engine import readers

    with readers(context.engine(context.config(ctx)))() as session:
        facts = _details(_job(session, id))
    if as_json:
        context.print_json(facts)
        return
    lines = [{"what": name, "value": value} for name, value in facts.items() if not isinstance(value, list | dict)]
    lines += [{"what": f"report: {name}", "value": value} for name, value in _in_words(facts["report"]).items()]
    context.print_rows(lines, ["what", "value"], as_json=False)
    context.print_rows(facts["inputs"], ["name", "sop_instance_uid"], as_json=False)
    context.print_rows(facts["outputs"], ["kind", "sop_instance_uid", "deliveries"], as_json=False)


@app.command()
def retry(ctx: typer.Context, id: JobId) -> None:
    """Run a refused, dead or cancelled job again."""
    from db import jobs

    _decide(ctx, id, jobs.retry)


@app.command()
def cancel(ctx: typer.Context, id: JobId) -> None:
    """Do not run a job, or stop it."""
    from db import jobs

    _decide(ctx, id, jobs.cancel)


@app.command()
def release(ctx: typer.Context, id: JobId) -> None:
    """Deliver results that the quality gate held back."""
    from db import jobs

    _decide(ctx, id, jobs.release)


@app.command()
def discard(ctx: typer.Context, id: JobId) -> None:
    """Do not deliver results that the quality gate held back."""
    from db import jobs

    _decide(ctx, id, jobs.discard)


def _decide(ctx: typer.Context, id: int, decision: Callable[..., None]) -> None:
    from db.engine import sessions

    with sessions(context.engine(context.config(ctx))).begin() as session:
        job = _job(session, id)
        decision(session, job, reason=f"{decision.__name__} by hand", now=datetime.now(UTC))
        state = job.state
    print(f"job {id} is {state}")


def _job(session: Any, id: int) -> Job:
    from db.models import Job
    from dicomnode.errors import NotFound

    job: Job | None = session.get(Job, id)
    if job is None:
        raise NotFound(f"no job {id}: 'dicomnode jobs list' shows all")
    return job


def _row(job: Job) -> dict[str, Any]:
    names = ["id", "state", "route", "pipeline", "model", "revision", "attempts", "priority", "worker"]
    names += ["progress", "step", "reason", "supersedes_id", "created_at", "started_at", "finished_at"]
    return {name: getattr(job, name) for name in names} | {"study_uid": job.study.study_uid}


def _in_words(report: dict[str, Any]) -> dict[str, Any]:
    """With the verdict and its reasons on one line."""
    said = dict(report)
    reasons = said.pop("reasons", [])
    if reasons:
        said["verdict"] = f"{said['verdict']}: {'; '.join(reasons)}"
    return said


def _details(job: Job) -> dict[str, Any]:
    inputs = [{"name": each.name, "sop_instance_uid": each.instance.sop_instance_uid} for each in job.inputs]
    outputs = [
        {
            "kind": output.kind,
            "sop_instance_uid": output.sop_instance_uid,
            "sop_class_uid": output.sop_class_uid,
            "sha256": output.sha256,
            "deliveries": {each.destination: str(each.state) for each in output.deliveries},
        }
        for output in job.outputs
    ]
    return _row(job) | {
        "key": job.key,
        "options": job.options,
        "destinations": job.destinations,
        "report": job.report,
        "inputs": inputs,
        "outputs": outputs,
    }
