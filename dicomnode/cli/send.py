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


def send(
    ctx: typer.Context,
    paths: Annotated[list[Path], typer.Argument(help="DICOM files, and folders of them.", exists=True)],
    to: Annotated[str, typer.Option("--to", help="A configured peer's name, or HOST:PORT:AE_TITLE.")],
    as_json: context.AsJson = False,
) -> None:
    """Send files and folders to a peer by C-STORE."""
    from dicomnode.dimse import peers

    files = list(peers.find_dicom_files(paths))
    if not files:
        raise typer.BadParameter(f"no DICOM file below {', '.join(map(str, paths))}", param_hint="PATH")
    results = send_files(ctx, files, to)
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


def send_files(ctx: typer.Context, files: Sequence[Path], to: str) -> list[StoreResult]:
    """Send the files by C-STORE, with progress on a terminal; an address as ``to`` needs no configuration."""
    from dicomnode.config import Config
    from dicomnode.dimse import peers

    config = Config() if _is_address(to) and not Path(ctx.find_root().obj).exists() else context.config(ctx)
    peer = peers.resolve_peer(to, config)
    with context.show_progress_bar(f"to {to}", len(files), counts_items=True) as bar:
        return peers.store(
            peer,
            files,
            calling_aet=config.node.ae_title,
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
