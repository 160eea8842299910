"""``dicomnode backup`` and ``dicomnode restore``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from dicomnode.cli import context

__all__ = ["backup", "restore"]


def backup(
    ctx: typer.Context, folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder for the backup.")]
) -> None:
    """Back up database, spool and models of a node, which may run meanwhile."""
    from dicomnode.maintenance.backup import create

    facts = create(context.config(ctx), folder, now=lambda: datetime.now(UTC))
    print(f"{folder}: {facts['files']} files, {facts['bytes'] / 1e9:.3f} GB, schema {facts['schema']}")


def restore(ctx: typer.Context, folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A backup.")]) -> None:
    """Fill the empty data folder and database that node.toml names with a backup."""
    from dicomnode.maintenance import backup

    facts = backup.restore(context.config(ctx), folder)
    print(f"{facts['files']} files and the database of {facts['ended_at']} restored; next: 'dicomnode storage verify'")
