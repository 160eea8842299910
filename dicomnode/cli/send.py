"""``dicomnode send PATH... --to PEER``: C-STORE of files and folders."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomnode.cli import context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicomnode.dimse.peers import StoreResult

__all__ = ["send", "send_files"]


def _check_ae_title(value: str) -> str:
    """Return the AE title without outer spaces; an empty text stays empty."""
    from pydantic import TypeAdapter, ValidationError

    from dicomnode.config.value_types import AETitle

    try:
        return TypeAdapter(AETitle).validate_python(value) if value else ""
    except ValidationError:
        raise typer.BadParameter("an AE title has 1 to 16 printable ASCII characters and no backslash") from None


def send(
    ctx: typer.Context,
    paths: Annotated[list[Path], typer.Argument(help="DICOM files, and folders of them.", exists=True)],
    to: Annotated[str, typer.Option("--to", help="A configured peer's name, or HOST:PORT:AE_TITLE.")],
    calling: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="AE_TITLE",
            help="The AE title to call with.",
            show_default="[node] ae_title",
            callback=_check_ae_title,
        ),
    ] = "",
    as_json: context.AsJson = False,
) -> None:
    """Send files and folders to a peer by C-STORE."""
    from dicomnode.dimse import peers

    files = list(peers.find_dicom_files(paths))
    if not files:
        raise typer.BadParameter(f"no DICOM file below {', '.join(map(str, paths))}", param_hint="PATH")
    results = send_files(ctx, files, to, calling_aet=calling)
    rows = [_describe_result(result) for result in results]
    failed = [row for row, result in zip(rows, results, strict=True) if not result.is_stored]
    if as_json:
        context.print_json(rows)
    else:
        counts = Counter(str(result.outcome) for result in results)
        print(f"{to}: {', '.join(f'{count} {outcome}' for outcome, count in sorted(counts.items()))}")
        for row in failed:
            typer.echo(f"{row['file']}: {row['text']} {row['comment']}".rstrip(), err=True)
    if failed:
        raise typer.Exit(1)


def send_files(ctx: typer.Context, files: Sequence[Path], to: str, *, calling_aet: str = "") -> list[StoreResult]:
    """Send the files by C-STORE, with progress on a terminal; an address as ``to`` needs no configuration.

    ``calling_aet``: empty for the AE title of the node.
    """
    from dicomnode.config import Config
    from dicomnode.dimse import peers

    config = Config() if _is_address(to) and not Path(ctx.find_root().obj).exists() else context.config(ctx)
    peer = peers.resolve_peer(to, config)
    with context.show_progress_bar(f"to {to}", len(files), counts_items=True) as bar:
        return peers.store(
            peer,
            files,
            calling_aet=calling_aet or config.node.ae_title,
            on_result=lambda result: bar.advance(),
            timeout_s=config.node.network_timeout_s,
            tls=config.node.tls,
        )


def _is_address(to: str) -> bool:
    return to.count(":") >= 2


def _describe_result(result: StoreResult) -> dict[str, Any]:
    return {
        "file": str(result.path),
        "sop_instance_uid": result.sop_instance_uid,
        "outcome": str(result.outcome),
        "status": None if result.status is None else f"0x{result.status:04X}",
        "text": result.text,
        "comment": result.comment,
    }
