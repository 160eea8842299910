"""``dicomnode check``."""

from __future__ import annotations

from dataclasses import asdict

import typer

from dicomnode.cli import context

__all__ = ["check"]


def check(ctx: typer.Context, as_json: context.AsJson = False) -> None:
    """Check configuration, spool, database, peers, device and models; exit 1 if anything would stop work."""
    from dicomnode import checks

    results = list(checks.run(context.config(ctx)))
    context.print_rows([asdict(each) for each in results], ["what", "result", "detail"], as_json=as_json)
    failed = [each.what for each in results if each.result == "failed"]
    if failed:
        typer.echo(f"dicomnode: {', '.join(failed)}: see the table", err=True)
        raise typer.Exit(1)
