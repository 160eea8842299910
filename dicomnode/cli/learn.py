"""``dicomnode learn``: train at night on decided cases."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from dicomnode.cli import context

__all__ = ["app"]

app = typer.Typer()

Name = Annotated[str, typer.Argument(metavar="NAME", help="The name of a section learning of node.toml.")]


@app.command("list")
def list_all(ctx: typer.Context, as_json: context.AsJson = False) -> None:
    """List the sections learning of node.toml with their nights, newly decided cases and newest run."""
    from db.engine import readers
    from dicomnode.learning import describing

    config = context.config(ctx)
    with readers(context.engine(config))() as session:
        rows = describing.list_learning(session, config, datetime.now(UTC))
    context.print_rows(rows, ["name", "pipeline", "start", "hours", "new", "needed", "run", "state"], as_json=as_json)


@app.command()
def runs(ctx: typer.Context, as_json: context.AsJson = False) -> None:
    """List every run, the newest first."""
    from db.engine import readers
    from dicomnode.learning import describing

    with readers(context.engine(context.config(ctx)))() as session:
        rows = describing.list_runs(session)
    context.print_rows(rows, ["id", "name", "base", "model", "state", "step", "nights", "use"], as_json=as_json)


@app.command()
def cases(ctx: typer.Context, name: Name, as_json: context.AsJson = False) -> None:
    """List the decided cases: split, decision, where the target comes from, and why a case is left out."""
    from db.engine import readers
    from dicomnode.learning.beginning import prepare_target
    from dicomnode.learning.cases import collect_cases

    config = context.config(ctx)
    entry = config.find_learning(name)
    with readers(context.engine(config))() as session:
        _, recipe, target = prepare_target(session, entry, config)
        rows = [each.describe() for each in collect_cases(session, entry, target, config)]
    if not as_json:
        print(f"Target of {recipe}: {target.statement}.")
    context.print_rows(rows, ["job_id", "subject", "split", "verdict", "target", "left_out"], as_json=as_json)


@app.command()
def show(
    ctx: typer.Context,
    id: Annotated[int, typer.Argument(metavar="ID", help="The run's number.")],
    as_json: context.AsJson = False,
) -> None:
    """Show one run: the comparison of both versions on each test case, and the cases that were left out."""
    from db.engine import readers
    from dicomnode.learning import describing

    with readers(context.engine(context.config(ctx)))() as session:
        facts = describing.describe_run(session, describing.find_run(session, id))
    if as_json:
        context.print_json(facts)
        return
    plain = {name: value for name, value in facts.items() if name not in ("scores", "cases", "settings")}
    context.print_rows(({"what": k, "value": str(v)} for k, v in plain.items()), ["what", "value"], as_json=False)
    _print_part("test cases", facts["scores"], ["job_id", "subject", "verdict", "old", "new", "is_better"])
    left_out = [each for each in facts["cases"] if each["left_out"]]
    _print_part("left out", left_out, ["job_id", "split", "verdict", "left_out"])


@app.command()
def cancel(
    ctx: typer.Context,
    id: Annotated[int, typer.Argument(metavar="ID", help="The run's number.")],
    reason: context.Reason = "",
    who: context.Who = "",
) -> None:
    """End a run that is open; its process stops within seconds, and nothing of it is installed."""
    from db import learning
    from db.engine import sessions
    from db.models import LearningRun
    from db.states import LearningState
    from dicomnode.learning import describing
    from dicomnode.learning.folders import remove_ended

    config = context.config(ctx)
    why = context.audit_reason("cancelled", reason, who)
    open_sessions = sessions(context.engine(config))
    with open_sessions.begin() as session:
        describing.find_run(session, id)
        found = session.get_one(LearningRun, id, with_for_update=True)
        learning.move(session, found, LearningState.FAILED, reason=why, now=datetime.now(UTC))
    remove_ended(config.learning_dir, open_sessions)
    print(f"run {id}: {why}")


@app.command()
def run(
    ctx: typer.Context,
    name: Name,
    hours: Annotated[
        float | None, typer.Option(min=0.0, help="Longest work, in hours.", show_default="those of the section")
    ] = None,
) -> None:
    """Go on with the open run, or begin one, now: export, train, evaluate, install. Nothing is deployed for studies."""
    from db.engine import sessions
    from dicomnode import node
    from dicomnode.learning.running import run_night

    config = context.config(ctx)
    entry = config.find_learning(name)
    context.log_to_stderr(config)
    with suppress(OSError):  # a unit of systemd may forbid it
        os.nice(10)  # the receiver and the workers come first
    ends_at = time.monotonic() + 3600 * (entry.hours if hours is None else hours)
    with node.stop_on_signals() as stop:
        found = run_night(
            config,
            sessions(context.engine(config)),
            entry,
            now=lambda: datetime.now(UTC),
            left_s=lambda: 0.0 if stop.is_set() else ends_at - time.monotonic(),
        )
    print(f"run {found.id} of {found.name}: {found.state}, step {found.step}, night {found.nights}. {found.reason}")


def _print_part(title: str, rows: list[dict[str, Any]], columns: list[str]) -> None:
    if rows:
        context.print_title(title)
        context.print_rows(rows, columns, as_json=False)
