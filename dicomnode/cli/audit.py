"""``dicomnode audit``."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from dicomnode.cli import context

__all__ = ["app"]

app = typer.Typer()


@app.command()
def verify(ctx: typer.Context) -> None:
    """Walk the whole chain of hashes; exit 1 at the first event that was changed, removed, slipped in or lost."""
    from db import audit, trail
    from db.engine import readers
    from dicomnode.errors import StorageDamaged
    from dicomnode.storage.high_water import check_nothing_lost

    config = context.config(ctx)
    with readers(context.engine(config))() as session:
        broken, events = audit.verify(session), trail.read_head(session)
        check_nothing_lost(session, config.spool_dir)
    if broken is not None:
        raise StorageDamaged(f"audit trail: event {broken.seq} {broken.reason}; keep the database as it is")
    print(f"the audit trail of {events} events holds")


@app.command()
def export(
    ctx: typer.Context,
    study: Annotated[str, typer.Argument(metavar="STUDY_UID", help="Study Instance UID.")],
    out: Annotated[Path | None, typer.Option(help="The file to write; else to stdout.")] = None,
) -> None:
    """Export the record of one study: instances, jobs, digests of models, results, deliveries, events with hashes."""
    from db.engine import readers
    from dicomnode import listings
    from dicomnode.maintenance import evidence

    with readers(context.engine(context.config(ctx)))() as session:
        facts = evidence.collect_evidence(session, listings.resolve_study(session, study), now=datetime.now(UTC))
    if out is None:
        context.print_json(facts)
        return
    out.write_text(json.dumps(facts, indent=2, default=context.as_text) + "\n", encoding="utf-8")
    print(f"{out}: {len(facts['events'])} events; the chain {'holds' if facts['chain']['holds'] else 'is broken'}")
