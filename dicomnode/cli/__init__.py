"""The command line: one file per noun, imported when its command is asked for."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from dicomnode.errors import NodeError

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "init": ("dicomnode.cli.init", "init", "Write a commented node.toml and make the folders it names."),
    "check": ("dicomnode.cli.check", "check", "See whether anything would stop the node from working."),
    "serve": ("dicomnode.cli.serve", "serve", "Receive, route, run and deliver, until told to stop."),
    "work": ("dicomnode.cli.serve", "work", "Take jobs until told to stop."),
    "status": ("dicomnode.cli.status", "status", "Studies, jobs and deliveries by state; disk; last errors."),
    "send": ("dicomnode.cli.send", "send", "Send files and folders to a peer by C-STORE."),
    "run": ("dicomnode.cli.run", "run", "Run a pipeline on a folder, without network and database."),
    "deidentify": ("dicomnode.cli.deidentify", "deidentify", "Copy files without what identifies the patient."),
    "studies": ("dicomnode.cli.studies", "app", "List, show, explain, close and replay studies."),
    "jobs": ("dicomnode.cli.jobs", "app", "List, show, retry, cancel, release and discard jobs."),
    "peers": ("dicomnode.cli.peers", "app", "List, echo, search and fetch from peers."),
    "notifications": ("dicomnode.cli.notifications", "app", "List notifications, and send one as a test."),
    "kspace": ("dicomnode.cli.kspace", "app", "Carry ISMRMRD/MRD k-space in DICOM Raw Data."),
    "models": ("dicomnode.cli.models", "app", "Bundles: install, verify, deploy, compare, roll back."),
    "quarantine": ("dicomnode.cli.quarantine", "app", "What was not accepted: list, show, release, discard."),
    "storage": ("dicomnode.cli.storage", "app", "Files against rows: digests, orphans."),
    "backup": ("dicomnode.cli.backup", "backup", "Back up a node that may run meanwhile."),
    "restore": ("dicomnode.cli.backup", "restore", "Restore a backup into an empty data folder."),
    "audit": ("dicomnode.cli.audit", "app", "The audit trail: verify it, export a study's part."),
    "viewer": ("dicomnode.cli.viewer", "app", "Install the viewer that the node serves."),
    "train": ("dicomnode.cli.train", "train", "Train a model of the zoo and write it as a bundle."),
    "evaluate": ("dicomnode.cli.evaluate", "evaluate", "Make the tables of a model card again."),
    "demo": ("dicomnode.cli.demo", "demo", "The whole path of one study, on loopback."),
}
"""Name: module, what it holds for us (a function or a Typer app), and a line of help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 done, 1 failed with one line on stderr, 2 wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _build(_command_in(words))(words, prog_name="dicomnode")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        print(f"dicomnode: {_one_line(error)}", file=sys.stderr)
        if os.environ.get("DICOMNODE_TRACEBACK"):
            traceback.print_exception(error)
        return 1
    return 0


def _build(wanted: str | None) -> typer.Typer:
    app = typer.Typer(
        name="dicomnode",
        help="A DICOM/PACS-integrated clinical research node.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.callback()(_options)
    for name, (module, attribute, help_line) in COMMANDS.items():
        content = getattr(import_module(module), attribute) if name == wanted else _not_loaded
        if isinstance(content, typer.Typer):
            app.add_typer(content, name=name, help=help_line, no_args_is_help=True)
        else:
            app.command(name, help=help_line)(content)
    return app


def _options(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", envvar="DICOMNODE_CONFIG", help="Configuration file.", show_default="./node.toml"),
    ] = None,
) -> None:
    ctx.obj = config or Path("node.toml")


def _not_loaded() -> None:
    raise NodeError("this command was not loaded")


def _command_in(words: Sequence[str]) -> str | None:
    """The first word that is no option of ours."""
    rest = iter(words)
    for word in rest:
        if word == "--config":
            next(rest, None)
        elif not word.startswith("-"):
            return word
    return None


def _one_line(error: Exception) -> str:
    """What, where and what to do; an unforeseen error's own words may name a patient and are not shown."""
    from sqlalchemy.exc import DBAPIError

    from db.jobs import LeaseLost
    from db.states import InvalidTransition
    from model_zoo.bundle import BundleError
    from pipelines.contract import Refused

    if isinstance(error, NodeError | InvalidTransition | LeaseLost | Refused | BundleError):
        return " ".join(str(error).split())
    if isinstance(error, DBAPIError):
        return f"the database does not answer or refuses ({type(error).__name__}): run 'dicomnode check'"
    if isinstance(error, OSError):
        return f"{error.strerror or type(error).__name__}: {error.filename or 'a file or address'}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}, line {last.lineno}"
    return f"{type(error).__name__} in {place}; DICOMNODE_TRACEBACK=1 shows where it came from"
