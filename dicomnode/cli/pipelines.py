"""``dicomnode pipelines``: what each pipeline takes, makes and may be told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomnode.cli import context

if TYPE_CHECKING:
    from rich.console import Console
    from sqlalchemy.orm import Session

    from dicomnode.config import Config

__all__ = ["app"]

app = typer.Typer()


@app.command("list")
def list_pipelines(ctx: typer.Context, as_json: context.AsJson = False) -> None:
    """List every pipeline with its inputs, optional ones in brackets, and the model in force."""
    from dicomnode.deployment import pipeline_facts

    config = context.config_if_any(ctx)
    with _open_session(config) as session:
        rows = pipeline_facts.list_facts(config, session)
    context.print_rows(rows, ["name", "title", "inputs", "model"], as_json=as_json)


@app.command()
def show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As 'dicomnode pipelines list' shows it.")],
    as_json: context.AsJson = False,
) -> None:
    """Show a pipeline: inputs, options with defaults, output, and the contract of the model in force."""
    from dicomnode.deployment import pipeline_facts

    config = context.config_if_any(ctx)
    with _open_session(config) as session:
        facts = pipeline_facts.describe_pipeline(name, config, session)
    if as_json:
        context.print_json(facts)
        return
    _print_facts(facts)


@contextmanager
def _open_session(config: Config) -> Iterator[Session | None]:
    """Open the node's database, where deployments are; None where there is none."""
    from db.engine import readers
    from dicomnode.errors import NodeError

    try:
        engine = context.engine(config)
    except NodeError:
        yield None
        return
    with readers(engine)() as session:
        yield session


def _print_facts(facts: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(f"[bold]{facts['name']}[/bold]: {facts['title']}")
    console.print(f"model {facts['model']}, SHA-256 {facts['digest'][:12]}, trained on {facts['trained_on']}\n")
    console.print(facts["about"], markup=False)
    needed = {True: "yes", False: "no"}
    inputs = [each | {"required": needed[each["required"]]} for each in facts["inputs"]]
    options = [each | {"default": _format_default(each["default"])} for each in facts["options"]]
    _print_part(console, "Inputs", inputs, ["name", "kind", "required", "source"])
    _print_part(console, "Options (--option NAME=VALUE)", options, ["name", "default", "values", "meaning"])
    _print_part(console, "Contract of the model", facts["contract"], ["input", "fact", "accepted", "otherwise"])
    _print_part(console, "Limits of the result", _join_limits(facts["limits"]), ["measurement", "when", "verdict"])


def _join_limits(limits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each measurement and verdict: its limits above and below belong together."""
    joined: dict[tuple[str, str], list[str]] = {}
    for each in limits:
        joined.setdefault((each["measurement"], each["verdict"]), []).append(each["when"])
    return [{"measurement": name, "verdict": how, "when": " or ".join(when)} for (name, how), when in joined.items()]


def _print_part(console: Console, title: str, rows: list[dict[str, Any]], columns: list[str]) -> None:
    if rows:
        console.print(f"\n[bold]{title}[/bold]")
        context.print_rows(rows, columns, as_json=False)


def _format_default(value: Any) -> str:
    import json

    return "none" if value is None else json.dumps(value)
