"""``dicomnode jobs``."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated

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
    from dicomnode.cli import tables

    if state is not None and state not in list(JobState):
        raise typer.BadParameter(f"no state {state!r}; there is: {', '.join(JobState)}")
    config, chosen = context.config(ctx), None if state is None else JobState(state)
    with readers(context.engine(config))() as session:
        if as_json:
            context.print_json(listings.list_jobs(session, chosen))
            return
        rows = tables.list_job_rows(session, chosen, mask=config.web.mask_names, now=datetime.now(UTC))
    context.print_rows(rows, tables.JOB_COLUMNS, as_json=False, nothing="no job")


@app.command()
def show(ctx: typer.Context, id: JobId, as_json: context.AsJson = False) -> None:
    """Show one job: its inputs, results and deliveries, and the report of its run."""
    from db.engine import readers
    from dicomnode import listings
    from dicomnode.cli import tables

    with readers(context.engine(context.config(ctx)))() as session:
        facts = listings.describe_job(session, listings.find_job(session, id))
    if as_json:
        context.print_json(facts)
        return
    for title, rows in tables.describe_report(facts):
        context.print_title(title)
        context.print_rows(rows, list(rows[0]), as_json=False)


@app.command()
def retry(ctx: typer.Context, id: JobId) -> None:
    """Run a refused, dead or cancelled job again."""
    from db import jobs

    _decide(ctx, id, jobs.retry, needs="only a refused, dead or cancelled job can run again")


@app.command()
def cancel(ctx: typer.Context, id: JobId) -> None:
    """Do not run a job, or stop it."""
    from db import jobs

    _decide(ctx, id, jobs.cancel, needs="a job that is done or cancelled cannot be cancelled")


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


def _decide(ctx: typer.Context, id: int, decision: Callable[..., None], reason: str = "", *, needs: str = "") -> None:
    """Decide on a job. ``needs``: the words where its state does not allow it, instead of the table's."""
    from db.engine import sessions
    from db.states import InvalidTransition
    from dicomnode import listings
    from dicomnode.errors import NotAllowed

    with sessions(context.engine(context.config(ctx))).begin() as session:
        job = listings.find_job(session, id)
        before = job.state
        try:
            decision(session, job, reason=reason or f"{decision.__name__} by hand", now=datetime.now(UTC))
        except InvalidTransition as error:
            raise NotAllowed(f"job {id} is {before}: {needs}" if needs else str(error)) from None
        state = job.state
    print(f"job {id} is {state}")
