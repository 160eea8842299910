"""``dicomnode worklist``."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from dicomnode.cli import context

__all__ = ["app"]

app = typer.Typer()

WorkitemUid = Annotated[str, typer.Argument(metavar="UID", help="The workitem's SOP Instance UID.")]
_COLUMNS = ("uid", "state", "label", "work", "progress", "note")


@app.command("list")
def list_workitems(
    ctx: typer.Context,
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    as_json: context.AsJson = False,
) -> None:
    """List every workitem, the newest last."""
    from db.engine import readers
    from db.states import WorkitemState
    from dicomnode.worklist import entries

    if state is not None and state not in list(WorkitemState):
        raise typer.BadParameter(f"no state {state!r}; there is: {', '.join(WorkitemState)}")
    chosen = None if state is None else WorkitemState(state)
    with readers(context.engine(context.config(ctx)))() as session:
        rows = [asdict(each) for each in entries.list_entries(session, chosen)]
    context.print_rows(rows, _COLUMNS, as_json=as_json, nothing="no workitem")


@app.command()
def show(ctx: typer.Context, uid: WorkitemUid, as_json: context.AsJson = False) -> None:
    """Show one workitem: what it orders, its progress, and why it ended."""
    from db.engine import readers
    from dicomnode.worklist import entries

    with readers(context.engine(context.config(ctx)))() as session:
        facts = asdict(entries.find(session, uid))
    if as_json:
        context.print_json(facts)
        return
    facts |= {"studies": "\n".join(facts["studies"])}
    lines = [{"what": name.replace("_", " "), "value": value} for name, value in facts.items() if value]
    context.print_rows(lines, ["what", "value"], as_json=False)


@app.command()
def cancel(ctx: typer.Context, uid: WorkitemUid, reason: context.Reason = "", who: context.Who = "") -> None:
    """Cancel a workitem that nobody has claimed, or ask its performer to cancel it."""
    from db.engine import sessions
    from db.states import WorkitemState
    from dicomnode.deployment import deploying
    from dicomnode.worklist import entries

    reason, name = context.ask_reason(reason), " ".join(who.split())[:40] or deploying.identify_user()
    with sessions(context.engine(context.config(ctx))).begin() as session:
        found = entries.cancel(session, uid, reason=reason, who=name, now=datetime.now(UTC))
    is_asked = found.state is WorkitemState.IN_PROGRESS
    print(f"workitem {uid} is {found.state}{': its performer is asked to cancel it' if is_asked else ''}")
