"""``dicomnode data``: the data kit for training by simulation, evaluation and tests."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomnode.cli import context
from dicomnode.errors import ConfigError, NotFound, StorageDamaged

if TYPE_CHECKING:
    from model_zoo.data_index import Item

__all__ = ["app"]

app = typer.Typer()

Root = Annotated[Path | None, typer.Option("--data", help="Data kit's folder; default: DICOMNODE_DATA.")]


@app.command("list")
def list_items(data: Root = None, as_json: context.AsJson = False) -> None:
    """List what the data kit holds: size, licence, origin and use of each item."""
    rows = [_describe(item) for item in _read_index(data)]
    if as_json:
        context.print_json(rows)
        return
    context.print_rows(rows, ["path", "mb", "licence", "for"], as_json=False)
    total = sum(row["mb"] for row in rows)
    print(f"{len(rows)} items, {total:.0f} MB; --json has what each is and where it comes from")


@app.command()
def check(
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="Of one item.", show_default="every item")] = "",
    data: Root = None,
    as_json: context.AsJson = False,
) -> None:
    """Compare every file's SHA-256 with the kit's own lists; exit 1 if one is missing or changed,
    or if an item lists none."""
    items = [item for item in _read_index(data) if path.rstrip("/") in ("", item.path.rstrip("/"))]
    if not items:
        raise NotFound(f"no item {path} in the data kit: 'dicomnode data list' shows its paths")
    with context.show_progress_bar("checking", len(items), counts_items=True) as bar:
        rows = []
        for item in items:
            rows.append(_check(item))
            bar.advance()
    context.print_rows(rows, ["path", "files", "state", "faults"], as_json=as_json)
    if damaged := [row["path"] for row in rows if row["state"] != "ok"]:
        raise StorageDamaged(
            f"not as the data kit lists it: {', '.join(damaged)}; get these items again, with the README.md of each"
        )


def _read_index(data: Path | None) -> list[Item]:
    from model_zoo import data_index
    from model_zoo.data_kit import data_root

    try:
        return data_index.read_index(data or data_root())
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from error


def _describe(item: Item) -> dict[str, Any]:
    return {
        "path": item.path,
        "item": item.name,
        "what": item.what,
        "mb": item.size_mb,
        "licence": item.licence,
        "origin": item.origin,
        "for": item.purpose,
    }


def _check(item: Item) -> dict[str, Any]:
    from model_zoo import data_index

    try:
        states = list(data_index.check_item(item))
    except FileNotFoundError as error:
        return {"path": item.path, "files": 0, "state": "missing", "faults": str(error)}
    counts = Counter(each.state for each in states)
    faults = [f"{each.path} {each.state}" for each in states if each.state in ("missing", "changed")]
    extra = f"{counts['not listed']} not listed" if counts["not listed"] else ""
    unlisted = "ok" if counts["ok"] else "not listed"
    state = "damaged" if faults else unlisted
    return {"path": item.path, "files": counts["ok"], "state": state, "faults": "; ".join([*faults, extra]).strip("; ")}
