"""``dicomnode jobs``."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from dicomnode.cli import context

__all__ = ["app"]

app = typer.Typer()

JobId = Annotated[int, typer.Argument(metavar="ID", help="The job's number.")]


@app.command("list")
def list_jobs(
    ctx: typer.Context,
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    as_json: context.AsJson = False,
) -> None:
    """List every job, the newest last."""
    from db.engine import readers
    from db.states import JobState
    from dicomnode import listings

    if state is not None and state not in list(JobState):
        raise typer.BadParameter(f"no state {state!r}; there is: {', '.join(JobState)}")
    with readers(context.engine(context.config(ctx)))() as session:
        rows = listings.list_jobs(session, None if state is None else JobState(state))
    columns = ["id", "state", "route", "pipeline", "study_uid", "revision", "attempts", "progress", "reason"]
    context.print_rows(rows, columns, as_json=as_json)


@app.command()
def show(ctx: typer.Context, id: JobId, as_json: context.AsJson = False) -> None:
    """Show one job: its inputs, results and deliveries, and the report of its run."""
    from db.engine import readers
    from dicomnode import listings

    with readers(context.engine(context.config(ctx)))() as session:
        facts = listings.describe_job(session, listings.find_job(session, id))
    if as_json:
        context.print_json(facts)
        return
    lines = [{"what": name, "value": value} for name, value in facts.items() if not isinstance(value, list | dict)]
    lines += [{"what": f"report: {name}", "value": value} for name, value in _join_verdict(facts["report"]).items()]
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
def release(ctx: typer.Context, id: JobId, reason: context.Reason = "", who: context.Who = "") -> None:
    """Deliver results that the quality gate held back."""
    from db import jobs

    _decide(ctx, id, jobs.release, context.audit_reason("released", reason, who))


@app.command()
def discard(ctx: typer.Context, id: JobId, reason: context.Reason = "", who: context.Who = "") -> None:
    """Do not deliver results that the quality gate held back."""
    from db import jobs

    _decide(ctx, id, jobs.discard, context.audit_reason("discarded", reason, who))


def _decide(ctx: typer.Context, id: int, decision: Callable[..., None], reason: str = "") -> None:
    from db.engine import sessions
    from dicomnode import listings

    with sessions(context.engine(context.config(ctx))).begin() as session:
        job = listings.find_job(session, id)
        decision(session, job, reason=reason or f"{decision.__name__} by hand", now=datetime.now(UTC))
        state = job.state
    print(f"job {id} is {state}")


def _join_verdict(report: dict[str, Any]) -> dict[str, Any]:
    """Return the report with the verdict and its reasons on one line."""
    joined = dict(report)
    reasons = joined.pop("reasons", [])
    if reasons:
        joined["verdict"] = f"{joined['verdict']}: {'; '.join(reasons)}"
    return joined
