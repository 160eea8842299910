"""``dicomnode peers``: list, echo and search the peers of node.toml, and fetch a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomnode.cli import context

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pynetdicom.events import Event

    from dicomnode.config import Config, Peer

__all__ = ["app"]

app = typer.Typer()

Name = Annotated[str, typer.Argument(help="A configured peer's name, or HOST:PORT:AE_TITLE.")]


@app.command("list")
def list_peers(ctx: typer.Context, as_json: context.AsJson = False) -> None:
    """List the peers of node.toml."""
    from dicomnode import listings

    context.print_rows(
        listings.list_peers(context.config(ctx)), ("name", "ae_title", "host", "port", "tls"), as_json=as_json
    )


@app.command()
def echo(ctx: typer.Context, name: Name, as_json: context.AsJson = False) -> None:
    """Test the connection to a peer by C-ECHO."""
    from dicomnode.dimse import peers

    peer, association = _find_peer(ctx, name)
    took_s = peers.echo(peer, **association)
    if as_json:
        context.print_json({"name": peer.name, "seconds": round(took_s, 4)})
    else:
        print(f"{peer.name} ({peer.ae_title}) at {peer.host}:{peer.port} answers in {took_s * 1000:.0f} ms")


@app.command()
def find(
    ctx: typer.Context,
    name: Name,
    keys: Annotated[list[str] | None, typer.Argument(help="KEYWORD=VALUE, with the wildcards * and ?.")] = None,
    level: Annotated[str, typer.Option(help="study, series or image.")] = "study",
    as_json: context.AsJson = False,
) -> None:
    """Search a peer by C-FIND, study root."""
    from dicomnode.dimse import queries

    if level.upper() not in queries.LEVELS:
        raise typer.BadParameter(f"{level!r} is none of study, series, image", param_hint="--level")
    conditions = dict(_parse_key(words) for words in keys or [])
    peer, association = _find_peer(ctx, name)
    matches = queries.find(peer, conditions, level=level.upper(), **association)
    columns = [*dict.fromkeys([*queries.LEVELS[level.upper()], *conditions])]
    context.print_rows([_row(match, columns) for match in matches], columns, as_json=as_json)


@app.command()
def fetch(
    ctx: typer.Context,
    name: Name,
    study_uid: Annotated[str, typer.Argument(help="Study Instance UID.")],
    to: Annotated[str | None, typer.Option("--move-to", help="C-MOVE to this AE title, instead of C-GET.")] = None,
    out: Annotated[Path | None, typer.Option(help="C-GET into this folder, instead of into the node.")] = None,
    as_json: context.AsJson = False,
) -> None:
    """Get a study: by C-GET into the node, as if it had been sent here, or by C-MOVE."""
    from dicomnode.dimse import queries
    from dicomnode.errors import PeerRefused

    peer, association = _find_peer(ctx, name)
    if to is not None:
        fetched = queries.move(peer, study_uid, destination_aet=to, **association)
    elif out is not None:
        out.mkdir(parents=True, exist_ok=True)
        fetched = queries.fetch(peer, study_uid, on_store=lambda event: _write_instance(event, out), **association)
    else:
        fetched = _fetch_into_node(context.config(ctx), peer, study_uid, association)
    counts = {"completed": fetched.completed, "warned": fetched.warned, "failed": fetched.failed}
    if as_json:
        context.print_json(counts)
    else:
        print(f"{name}: {', '.join(f'{count} {what}' for what, count in counts.items())}")
    if fetched.failed or not fetched.completed + fetched.warned:
        raise PeerRefused(f"peer {peer.name}: {fetched.failed} instances failed, {fetched.completed} came")


def _find_peer(ctx: typer.Context, name: str) -> tuple[Peer, dict[str, Any]]:
    """Return the peer, and the settings of the association that calls it."""
    from dicomnode.dimse import peers

    config = context.config(ctx)
    return peers.resolve_peer(name, config), {
        "calling_aet": config.node.ae_title,
        "timeout_s": config.node.network_timeout_s,
        "tls": config.node.tls,
    }


def _parse_key(text: str) -> tuple[str, str]:
    from pydicom.datadict import tag_for_keyword

    keyword, equals, value = text.partition("=")
    if not equals or tag_for_keyword(keyword) is None:
        raise typer.BadParameter(f"{text!r} is no KEYWORD=VALUE with a DICOM keyword", param_hint="KEY=VALUE")
    return keyword, value


def _row(match: Dataset, columns: list[str]) -> dict[str, Any]:
    from pydicom.multival import MultiValue

    values = {keyword: match.get(keyword, "") for keyword in columns}
    return {
        keyword: "\\".join(map(str, value)) if isinstance(value, MultiValue) else str("" if value is None else value)
        for keyword, value in values.items()
    }


def _write_instance(event: Event, folder: Path) -> int:
    """Write the instance of a C-STORE into a file and return the status; 0xC000 for a UID that is none (PS3.5 9.1)."""
    uid = str(event.request.AffectedSOPInstanceUID)
    if not set(uid) <= set("0123456789."):
        return 0xC000
    (folder / f"{uid}.dcm").write_bytes(event.encoded_dataset())
    return 0x0000


def _fetch_into_node(config: Config, peer: Peer, study_uid: str, association: dict[str, Any]) -> Any:
    from datetime import UTC, datetime

    from db.engine import sessions
    from dicomnode.dimse import queries
    from dicomnode.routing import retrieved

    engine = context.engine(config)
    take = retrieved.store_handler(config, sessions(engine), peer, lambda: datetime.now(UTC))
    try:
        return queries.fetch(peer, study_uid, on_store=take, **association)
    finally:
        engine.dispose()
