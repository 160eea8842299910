"""``dicomnode storage``."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from dicomnode.cli import context

if TYPE_CHECKING:
    from dicomnode.maintenance.verification import Discrepancy

__all__ = ["app"]

app = typer.Typer()

_COLUMNS = ["what", "row", "file", "size_bytes"]


@app.command()
def verify(
    ctx: typer.Context,
    rate: Annotated[float | None, typer.Option(min=0.1, help="Read no faster than so many MB a second.")] = None,
    as_json: context.AsJson = False,
) -> None:
    """Read every file that a row claims and compare it with its digest; exit 1 if one is missing or differs."""
    from db.engine import readers
    from dicomnode.maintenance import verification
    from dicomnode.storage.high_water import check_nothing_lost

    config = context.config(ctx)
    sessions = readers(context.engine(config))
    total = verification.count_claims(sessions)
    with context.show_progress_bar("files", total, counts_items=True) as bar:
        limit = None if rate is None else rate * 1e6
        findings = list(
            verification.verify(sessions, config.spool_dir, bytes_per_s=limit, on_checked=lambda _: bar.advance())
        )
    _print(findings, as_json)
    typer.echo(f"{total} rows with files looked at, {len(findings)} wrong", err=True)
    with sessions() as session:
        check_nothing_lost(session, config.spool_dir)
    if findings:
        raise typer.Exit(1)


@app.command()
def orphans(
    ctx: typer.Context,
    remove: Annotated[bool, typer.Option("--remove", help="Delete the files without rows.")] = False,
    as_json: context.AsJson = False,
) -> None:
    """List rows without files and files without rows; exit 1 if a row has no file."""
    from db.engine import readers, sessions
    from dicomnode.maintenance import verification
    from dicomnode.storage.high_water import check_nothing_lost

    config, now = context.config(ctx), datetime.now(UTC)
    engine = context.engine(config)
    findings = list(verification.find_orphans(readers(engine), config.spool_dir, now=now))
    _print(findings, as_json)
    if remove:
        with readers(engine)() as session:
            check_nothing_lost(session, config.spool_dir)
        deleted = verification.remove_orphans(sessions(engine), config.spool_dir, findings, now=now)
        typer.echo(f"{deleted} files without rows deleted", err=True)
    if any(each.what == "missing" for each in findings):
        raise typer.Exit(1)


@app.command()
def adopt(ctx: typer.Context, as_json: context.AsJson = False) -> None:
    """Take files without rows back into the database, after rows were lost; 'serve' starts again then."""
    from db.engine import sessions
    from dicomnode import node
    from dicomnode.maintenance import adoption

    config = context.config(ctx)
    node.prepare(config)
    findings = list(adoption.adopt(sessions(context.engine(config)), config.spool_dir, now=datetime.now(UTC)))
    context.print_rows([asdict(each) for each in findings], ["file", "outcome", "reason"], as_json=as_json,
                       nothing="no file without a row")  # fmt: skip
    typer.echo(f"{sum(each.outcome == 'adopted' for each in findings)} of {len(findings)} files adopted", err=True)


def _print(findings: list[Discrepancy], as_json: bool) -> None:
    context.print_rows([asdict(each) for each in findings], _COLUMNS, as_json=as_json, nothing="no fault")
