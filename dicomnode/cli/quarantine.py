"""``dicomnode quarantine``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomnode.cli import context

if TYPE_CHECKING:
    from db.models import Quarantine

__all__ = ["app"]

app = typer.Typer()

Id = Annotated[int, typer.Argument(metavar="ID", help="Number of the quarantined instance.")]

_COLUMNS = (
    "id", "state", "reason", "study_uid", "series_uid", "sop_instance_uid", "sop_class_uid", "sha256", "size_bytes",
    "sender_ae_title", "sender_address", "received_at",
)  # fmt: skip


@app.command("list")
def list_quarantined(
    ctx: typer.Context,
    state: Annotated[str, typer.Option(help="kept, released, discarded or all.")] = "kept",
    as_json: context.AsJson = False,
) -> None:
    """List the instances that were not accepted, the newest last."""
    from db import quarantine
    from db.engine import readers
    from db.states import QuarantineState

    if state not in (*QuarantineState, "all"):
        raise typer.BadParameter(f"no state {state!r}; there is: {', '.join(QuarantineState)}, all")
    with readers(context.engine(context.config(ctx)))() as session:
        rows = quarantine.list_files(session, None if state == "all" else QuarantineState(state))
        facts = [_facts(row) for row in rows]
    columns = ["id", "state", "received_at", "sender_ae_title", "reason"]
    context.print_rows(facts, columns, as_json=as_json, nothing="nothing in quarantine")


@app.command()
def show(ctx: typer.Context, id: Id, as_json: context.AsJson = False) -> None:
    """Show one quarantined instance, with the path of its file."""
    from db.engine import readers
    from dicomnode.ingest import quarantined
    from dicomnode.storage import spool

    config = context.config(ctx)
    with readers(context.engine(config))() as session:
        row = quarantined.find(session, id)
        facts = _facts(row) | {"file": str(spool.path(config.spool_dir, row.sha256))}
    if as_json:
        context.print_json(facts)
        return
    context.print_rows([{"what": name, "value": value} for name, value in facts.items()], ["what", "value"],
                       as_json=False)  # fmt: skip


@app.command()
def release(ctx: typer.Context, id: Id, reason: context.Reason = "", who: context.Who = "") -> None:
    """Accept a quarantined instance; an instance that has its SOP Instance UID now goes into quarantine instead."""
    from sqlalchemy import select

    from db.engine import sessions
    from db.models import Instance, Series
    from dicomnode.ingest import quarantined

    config = context.config(ctx)
    why = context.audit_reason("released", reason, who)
    with sessions(context.engine(config)).begin() as session:
        done = quarantined.release(session, config, id, reason=why, now=datetime.now(UTC))
        study = session.scalar(select(Series.study_id).join(Instance).where(Instance.id == done.instance_id))
    print(f"quarantine {id} is released into study {study}")


@app.command()
def discard(ctx: typer.Context, id: Id, reason: context.Reason = "", who: context.Who = "") -> None:
    """Reject a quarantined instance; the next pass of retention deletes its file."""
    from db.engine import sessions
    from dicomnode.ingest import quarantined

    why, config = context.audit_reason("discarded", reason, who), context.config(ctx)
    with sessions(context.engine(config)).begin() as session:
        quarantined.discard(session, config, id, reason=why, now=datetime.now(UTC))
    print(f"quarantine {id} is discarded")


def _facts(row: Quarantine) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _COLUMNS}
