"""Reference of the command line, from the Typer applications."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from dicomnode.cli import COMMANDS
from docs.generators.tables import format_table

__all__ = ["list_commands", "make_page"]


def make_page() -> str:
    """Return the reference of all commands as Markdown."""
    overview = [(f"[`{name}`](#dicomnode-{name})", help_line) for name, (_, _, help_line) in COMMANDS.items()]
    parts = [format_table(["command", "does"], overview)]
    for name in COMMANDS:
        parts.append(f"## `dicomnode {name}`\n")
        parts += [_format_command(words, command) for words, command in list_commands(name)]
    return "\n".join(parts)


def list_commands(name: str) -> Iterator[tuple[str, TyperCommand]]:
    """Yield the commands below one name of the command line, each with all of its words."""
    module, attribute, help_line = COMMANDS[name]
    content = getattr(import_module(module), attribute)
    app = content if isinstance(content, typer.Typer) else typer.Typer(add_completion=False)
    if app is not content:
        app.command(name, help=help_line)(content)
    found: Any = typer.main.get_command(app)
    if isinstance(found, TyperGroup):
        yield from ((f"{name} {word}", cast(TyperCommand, inner)) for word, inner in found.commands.items())
    else:
        yield (name if app is not content else f"{name} {found.name}"), found


def _format_command(words: str, command: TyperCommand) -> str:
    context = typer.Context(command, info_name=f"dicomnode {words}")
    usage = " ".join([f"dicomnode {words}", *command.collect_usage_pieces(context)])
    heading = f"### `{words}`\n\n" if " " in words else ""
    records = (parameter.get_help_record(context) for parameter in command.params)
    rows = [(f"`{names.removesuffix(' <str>')}`", meaning) for names, meaning in filter(None, records)]
    table = "\n\n" + format_table(["argument or option", "meaning"], rows) if rows else "\n"
    return f"{heading}    {usage}\n\n{' '.join((command.help or '').split())}{table}"
