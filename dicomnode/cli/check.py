"""``dicomnode check``."""

from __future__ import annotations

import gc
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from dicomnode.cli import context

if TYPE_CHECKING:
    from dicomnode.checks import Check

__all__ = ["check"]

_INDENT = " " * 9


def check(ctx: typer.Context, as_json: context.AsJson = False) -> None:
    """Check configuration, spool, database, peers, device and models; exit 1 if anything would stop work."""
    results: list[Check] = []
    with _without_garbage_collection():
        from dicomnode import checks

        for each in checks.run(context.config(ctx)):
            results.append(each)
            if not as_json:
                _print_line(each)
    if as_json:
        context.print_json([asdict(each) for each in results])
    if failed := [each.what for each in results if each.result == "failed"]:
        typer.echo(f"dicomnode: {', '.join(failed)}: see above", err=True)
        raise typer.Exit(1)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Collect no garbage: the imports make objects that stay, and to look through them is a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _print_line(check: Check) -> None:
    """Print one check as soon as it is done, folded at the width of the terminal."""
    width = shutil.get_terminal_size().columns
    lines = textwrap.wrap(
        f"{check.what}: {check.detail}", width, initial_indent=_INDENT, subsequent_indent=_INDENT + "  "
    )
    state = typer.style(f"{check.result:<8}", fg=context.STATE_COLORS.get(check.result))
    typer.echo(state + " " + "\n".join(lines)[len(_INDENT) :])
