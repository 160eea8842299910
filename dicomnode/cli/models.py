"""``dicomnode models``: the bundles on this node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomnode.cli import context
from dicomnode.errors import NotFound, StorageDamaged

if TYPE_CHECKING:
    from model_zoo.registry import BundleFacts

__all__ = ["app"]

app = typer.Typer()

Name = Annotated[str, typer.Argument(metavar="NAME[@VERSION]")]


@app.command("list")
def list_models(as_json: context.AsJson = False) -> None:
    """Every bundle on this node: version, digest, licence, training data, intended use."""
    from model_zoo import registry

    columns = ["name", "version", "digest", "licence", "trained_on", "intended_use"]
    context.print_rows([_row(facts) for facts in registry.installed()], columns, as_json=as_json)


@app.command()
def show(name: Name, as_json: context.AsJson = False) -> None:
    """One bundle: everything that it says of itself."""
    from model_zoo import registry

    bundle, _, version = name.partition("@")
    facts = registry.find(bundle, version or None)
    rows = {**facts.metadata, "folder": str(facts.path)}
    if as_json:
        context.print_json(rows)
        return
    context.print_rows(({"what": k, "value": _words(v)} for k, v in rows.items()), ["what", "value"], as_json=False)


@app.command()
def verify(
    name: Annotated[str, typer.Argument(metavar="[NAME[@VERSION]]", show_default="every bundle")] = "",
    as_json: context.AsJson = False,
) -> None:
    """Compare the weights' SHA-256 with what the metadata say; exit 1 where one differs."""
    from model_zoo import registry

    bundle, _, version = name.partition("@")
    chosen = [f for f in registry.installed() if bundle in ("", f.name) and version in ("", f.version)]
    if not chosen:
        raise NotFound(f"no bundle {name or 'at all'} on this node: 'dicomnode models list' shows what there is")
    rows = [_verified(facts) for facts in chosen]
    context.print_rows(rows, ["name", "version", "state", "reason"], as_json=as_json)
    if damaged := [row["name"] for row in rows if row["state"] != "ok"]:
        raise StorageDamaged(f"weights differ from their metadata: {', '.join(damaged)}; install the bundle again")


def _verified(facts: BundleFacts) -> dict[str, Any]:
    from model_zoo import registry

    try:
        registry.verify(facts)
    except registry.BundleError as error:
        return {"name": facts.name, "version": facts.version, "state": "damaged", "reason": str(error)}
    return {"name": facts.name, "version": facts.version, "state": "ok", "reason": ""}


def _row(facts: BundleFacts) -> dict[str, Any]:
    said = {key: facts.metadata.get(key, "") for key in ("licence", "trained_on", "intended_use", "task")}
    return {"name": facts.name, "version": facts.version, "digest": facts.digest, **said}


def _words(value: Any) -> str:
    """Nested metadata on one line."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_words(each)}" for name, each in value.items())
    return ", ".join(_words(each) for each in value) if isinstance(value, list) else str(value)
