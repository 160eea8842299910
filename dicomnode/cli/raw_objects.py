"""Parts that the commands share which put files into Raw Data objects: stated values, sending, and its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Overrides", "parse_overrides", "send_objects"]

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEYWORD=VALUE", help="A value that the header lacks or has wrong, such as "
                 "PatientID=17, PatientName=…, StudyInstanceUID=…, AccessionNumber=…, BodyPartExamined=…; repeatable."),
]  # fmt: skip


def parse_overrides(overrides: Sequence[str] | None) -> dict[str, str]:
    """Return the values by keyword. Raises BadParameter for a text without '='."""
    return dict(_parse_pair(each) for each in overrides or [])


def _parse_pair(text: str) -> tuple[str, str]:
    keyword, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not KEYWORD=VALUE", param_hint="--set")
    return keyword, value


def send_objects(ctx: typer.Context, objects: Sequence[Path], sources: Sequence[Path], to: str) -> None:
    """Send objects; print how many were stored, and why others of ``sources`` were not: the command then exits 1."""
    from dicomnode.cli.send import send_files

    results = send_files(ctx, objects, to)
    counts = Counter(str(result.outcome) for result in results)
    print(f"{to}: {', '.join(f'{count} {outcome}' for outcome, count in sorted(counts.items()))}")
    for file, result in zip(sources, results, strict=True):
        if not result.is_stored:
            typer.echo(f"{file}: {result.text} {result.comment}".rstrip(), err=True)
    if not all(result.is_stored for result in results):
        raise typer.Exit(1)
