"""``dicomnode peers``: who the node knows, whether they answer, what they hold, and getting a study from them."""

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
    """The peers of node.toml."""
    from dicomnode import listings

    context.print_rows(
        listings.peers(context.config(ctx)), ("name", "ae_title", "host", "port", "tls"), as_json=as_json
    )


@app.command()
def echo(ctx: typer.Context, name: Name, as_json: context.AsJson = False) -> None:
    """C-ECHO."""
    from dicomnode.dimse import peers

    peer, who = _asked(ctx, name)
    took_s = peers.echo(peer, **who)
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
    """C-FIND, study root."""
    from dicomnode.dimse import queries

    if level.upper() not in queries.LEVELS:
        raise typer.BadParameter(f"{level!r} is none of study, series, image", param_hint="--level")
    wanted = dict(_key(words) for words in keys or [])
    peer, who = _asked(ctx, name)
    matches = queries.find(peer, wanted, level=level.upper(), **who)
    columns = [*dict.fromkeys([*queries.LEVELS[level.upper()], *wanted])]
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

    peer, who = _asked(ctx, name)
    if to is not None:
        fetched = queries.move(peer, study_uid, destination_aet=to, **who)
    elif out is not None:
        out.mkdir(parents=True, exist_ok=True)
        fetched = queries.fetch(peer, study_uid, on_store=lambda event: _keep(event, out), **who)
    else:
        fetched = _fetch_into_node(context.config(ctx), peer, study_uid, who)
    counts = {"completed": fetched.completed, "warned": fetched.warned, "failed": fetched.failed}
    if as_json:
        context.print_json(counts)
    else:
        print(f"{name}: {', '.join(f'{count} {what}' for what, count in counts.items())}")
    if fetched.failed or not fetched.completed + fetched.warned:
        raise PeerRefused(f"peer {peer.name}: {fetched.failed} instances failed, {fetched.completed} came")


def _asked(ctx: typer.Context, name: str) -> tuple[Peer, dict[str, Any]]:
    """The peer, and who asks."""
    from dicomnode.dimse import peers

    config = context.config(ctx)
    return peers.resolve_peer(name, config), {
        "calling_aet": config.node.ae_title,
        "timeout_s": config.node.network_timeout_s,
        "tls": config.node.tls,
    }


def _key(words: str) -> tuple[str, str]:
    from pydicom.datadict import tag_for_keyword

    keyword, equals, value = words.partition("=")
    if not equals or tag_for_keyword(keyword) is None:
        raise typer.BadParameter(f"{words!r} is no KEYWORD=VALUE with a DICOM keyword", param_hint="KEY=VALUE")
    return keyword, value


def _row(match: Dataset, columns: list[str]) -> dict[str, Any]:
    from pydicom.multival import MultiValue

    values = {keyword: match.get(keyword, "") for keyword in columns}
    return {
        keyword: "\\".join(map(str, value)) if isinstance(value, MultiValue) else str("" if value is None else value)
        for keyword, value in values.items()
    }


def _keep(event: Event, folder: Path) -> int:
    """C-STORE of a C-GET into a file of its own; a SOP Instance UID is made of digits and dots (PS3.5 9.1)."""
    uid = str(event.request.AffectedSOPInstanceUID)
    if not set(uid) <= set("0123456789."):
        return 0xC000
    (folder / f"{uid}.dcm").write_bytes(event.encoded_dataset())
    return 0x0000


def _fetch_into_node(config: Config, peer: Peer, study_uid: str, who: dict[str, Any]) -> Any:
    from datetime import UTC, datetime

    from db.engine import sessions
    from dicomnode.dimse import queries
    from dicomnode.routing import retrieved

    engine = context.engine(config)
    take = retrieved.store_handler(config, sessions(engine), peer, lambda: datetime.now(UTC))
    try:
        return queries.fetch(peer, study_uid, on_store=take, **who)
    finally:
        engine.dispose()
