"""``dicomnode notifications``: the notifications sent, and a test of their way."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from dicomnode.cli import context

__all__ = ["app"]

app = typer.Typer()

_COLUMNS = ["id", "name", "event", "job_id", "state", "attempts", "created_at", "sent_at", "reason"]


@app.command("list")
def list_notifications(
    ctx: typer.Context,
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    as_json: context.AsJson = False,
) -> None:
    """List every notification, the newest last."""
    from sqlalchemy import select

    from db.engine import readers
    from db.models import Notification
    from db.states import NotificationState

    if state is not None and state not in list(NotificationState):
        raise typer.BadParameter(f"no state {state!r}; there is: {', '.join(NotificationState)}")
    query = select(Notification).order_by(Notification.id)
    if state is not None:
        query = query.where(Notification.state == NotificationState(state))
    names = [*_COLUMNS, "event_id", "not_before"]
    with readers(context.engine(context.config(ctx)))() as session:
        rows = [{name: getattr(row, name) for name in names} for row in session.scalars(query)]
    context.print_rows(rows, _COLUMNS, as_json=as_json)


@app.command()
def test(ctx: typer.Context, name: Annotated[str, typer.Argument(help="Its name in node.toml.")]) -> None:
    """Send a test notification, now and once."""
    from dicomnode.notifications import notification

    note = notification.send_test(name, context.config(ctx), now=datetime.now(UTC))
    print(f"{name}: taken{f'; {note}' if note else ''}")
