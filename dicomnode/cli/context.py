"""The configuration, the database and the terminal, for every command."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from sqlalchemy import Engine

    from dicomnode.config import Config

__all__ = [
    "STATE_COLORS",
    "AsJson",
    "ProgressBar",
    "Reason",
    "Who",
    "as_text",
    "ask_reason",
    "audit_reason",
    "config",
    "config_if_any",
    "engine",
    "log_to_stderr",
    "print_json",
    "print_rows",
    "print_title",
    "show_progress_bar",
]

STATE_COLORS = {
    "ok": "green", "done": "green", "delivered": "green", "current": "green", "released": "green",
    "running": "blue", "receiving": "blue", "complete": "blue", "sending": "blue", "share": "yellow",
    "held": "yellow", "warning": "yellow", "kept": "yellow", "shadow": "cyan",
    "failed": "red", "dead": "red", "refused": "magenta", "given_up": "red", "damaged": "red",
}  # fmt: skip
"""Colour of each state on a terminal; other states have none."""

_STATES = ("state", "result", "mode")
_DIGESTS = ("digest", "sha256", "before_digest", "after_digest")
_DIGEST_CHARACTERS = 12
_WHOLE_CHARACTERS = {"name": 24, "model": 24, "path": 40, "route": 20, "pipeline": 20, "after": 24}
"""Columns whose texts stay on one line up to so many characters."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


Reason = Annotated[str, typer.Option(help="Why, for the audit trail; no patient names.", show_default="asked for")]
Who = Annotated[str, typer.Option(help="Who decided it.", show_default="the user of this machine")]


def audit_reason(decision: str, reason: str, who: str) -> str:
    """Return the reason for the audit trail, in the form of the web's; ask for it on a terminal where it is missing."""
    from dicomnode.deployment import deploying

    reason = ask_reason(reason)
    return f"{decision} by {' '.join(who.split())[:40] or deploying.identify_user()}{f': {reason}' if reason else ''}"


def ask_reason(reason: str) -> str:
    """Return a reason on one line; ask for it on a terminal where it is missing."""
    if not reason and sys.stdin.isatty():
        reason = typer.prompt("Reason (for the audit trail; no patient names)")
    return " ".join(reason.split())[:300]


def config(ctx: typer.Context) -> Config:
    """Load the configuration that ``--config``, DICOMNODE_CONFIG or ./node.toml names."""
    from dicomnode.config import load

    path: Path = ctx.find_root().obj
    return load(path)


def config_if_any(ctx: typer.Context) -> Config:
    """Load the node's configuration where one exists, for commands that can do without."""
    from dicomnode.config import Config

    path: Path = ctx.find_root().obj
    is_explicit = "DICOMNODE_CONFIG" in os.environ or path != Path("node.toml")
    return config(ctx) if is_explicit or path.exists() else Config()


def engine(config: Config) -> Engine:
    """Connect to the node's database. Raises NodeError where it does not exist or is at another revision."""
    from db.engine import connect
    from dicomnode.errors import NodeError

    engine = connect(config.database_url)
    if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").exists():
        raise NodeError(f"no database at {engine.url.database}: run 'dicomnode serve' first")
    from db.migrations import current, head

    if current(engine) != head():
        raise NodeError("the database is of another version: 'dicomnode serve' brings it up to date")
    return engine


def log_to_stderr(config: Config) -> None:
    """Write the log to stderr, in the format of [node] log_format."""
    from dicomnode.monitoring import log_lines

    log_lines.set_up_logging(config.node.log_format)


def print_json(value: Any) -> None:
    """Print one JSON document; moments are in ISO 8601."""
    json.dump(value, sys.stdout, indent=2, default=as_text)
    sys.stdout.write("\n")


def print_rows(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool, nothing: str = "nothing"
) -> None:
    """Print a table of the named columns, or all facts as JSON. ``nothing``: the words for an empty table."""
    listing = list(rows)
    if as_json:
        print_json(listing)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in columns:
        longest = max((len(str(row[column])) for row in listing), default=0)
        is_whole = column in _DIGESTS or longest <= _WHOLE_CHARACTERS.get(column, 0)
        table.add_column(column.replace("_", " "), overflow="fold", no_wrap=is_whole)
    for row in listing:
        table.add_row(*(_format_cell(row[column], column) for column in columns))
    console.print(table if listing else nothing)


def print_title(title: str) -> None:
    """Print the title of the next table."""
    from rich.console import Console

    Console(highlight=False).print(f"[bold]{title}[/bold]")


@dataclass(frozen=True)
class ProgressBar:
    """A bar on stderr where that is a terminal; nothing is drawn elsewhere."""

    progress: Progress
    task: TaskID

    @property
    def is_drawn(self) -> bool:
        """True where stderr is a terminal."""
        return not self.progress.disable

    def advance(self) -> None:
        """Count one more item as done."""
        self.progress.advance(self.task)

    def update(self, completed: float, description: str, total: float | None = None) -> None:
        """Set what is done, of ``total`` where given, and the words beside the bar."""
        self.progress.update(self.task, completed=completed, description=description, total=total)

    def print_line(self, line: str) -> None:
        """Print a line on stderr, above the bar where one is drawn."""
        if self.is_drawn:
            self.progress.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr)


@contextmanager
def show_progress_bar(
    description: str, total: float | None = 1.0, *, counts_items: bool = False
) -> Iterator[ProgressBar]:
    """Show a bar on a terminal, nothing elsewhere. ``counts_items``: with the numbers, and removed at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

    from dicomnode.cli.time_left import TimeLeftColumn

    console = Console(stderr=True)
    words, bar, share = TextColumn("[progress.description]{task.description}"), BarColumn(), TaskProgressColumn()
    columns = (words, bar, share, TimeLeftColumn(), *([MofNCompleteColumn()] if counts_items else []))
    with Progress(*columns, console=console, transient=counts_items, disable=not console.is_terminal) as progress:
        yield ProgressBar(progress, progress.add_task(description, total=total))


def _format_cell(value: Any, column: str = "") -> str:
    from rich.markup import escape

    if column in _STATES and (color := STATE_COLORS.get(str(value))):
        return f"[{color}]{escape(str(value))}[/]"
    if column in _DIGESTS:
        return str(value or "")[:_DIGEST_CHARACTERS]
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M")
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else escape(str(value))


def as_text(value: Any) -> str:
    """Return a value that JSON has no type for as text."""
    return value.isoformat() if isinstance(value, datetime) else str(value)
